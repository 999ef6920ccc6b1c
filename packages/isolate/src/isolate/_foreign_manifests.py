"""Manifests of other tools: `pyproject.toml`, `requirements.txt`, and scripts with inline metadata (PEP 723)."""

from __future__ import annotations

import re
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from packaging.specifiers import InvalidSpecifier, SpecifierSet

from isolate._places import read_regular
from isolate._requirement_file import read_requirement_file
from isolate.errors import InvalidManifestError

PROJECT, REQUIREMENTS = "pyproject.toml", "requirements.txt"
_START = re.compile(r"# /// ([a-zA-Z0-9-]+)[ \t]*")
_SIZE_LIMIT = 4 << 20
_OLDEST, _NEWEST = 11, 14
"""Minor versions of Python that workers run on."""


def is_foreign(path: Path) -> bool:
    """Return whether a folder or file is an extension without a manifest of ours."""
    if path.is_dir():
        return (path / REQUIREMENTS).is_file() or _project(path) is not None
    return path.suffix == ".py" and path.is_file() and _script(path) is not None


def read_foreign(path: Path) -> tuple[Path, dict[str, Any]]:
    """Return the file that says what an extension needs, and its keys as our manifest has them.

    Args:
        path: A folder with `pyproject.toml` or `requirements.txt`, or a Python file.

    Raises:
        InvalidManifestError: A file cannot be read or says something that cannot be carried out.
        InvalidRequirementError: A requirements file has an option that is not understood.
    """
    if path.is_file():
        return path, {"entry": path.stem, **_keys(path, _script(path) or {}, path.stem)}
    table = _project(path)
    if table is not None:
        return path / PROJECT, {"entry": _entry(path), **_keys(path / PROJECT, table, path.name)}
    file = read_requirement_file(path / REQUIREMENTS)
    values: dict[str, Any] = {
        "name": _name(path.resolve().name),
        "entry": _entry(path),
        "dependencies": file.requirements,
        "constraints": file.constraints,
        "extra_indexes": file.extra_indexes,
        "find_links": file.find_links,
    }
    return path / REQUIREMENTS, values if file.index is None else {**values, "index": file.index}


def _entry(folder: Path) -> str:
    if not (folder / "main.py").exists() and (folder / "__init__.py").exists():
        return "."
    return "main"


def _name(text: str) -> str:
    """Return a name for an extension that has none of its own: what a file or folder is called, as far as that goes."""
    return re.sub(r"[^a-z0-9._-]+", "-", text.lower()).strip("-._")[:64] or "extension"


def _project(folder: Path) -> dict[str, Any] | None:
    """Return the `project` table of a folder, with `tool.isolate` as its key `tool`; None if there is none."""
    file = folder / PROJECT
    if not file.is_file():
        return None
    content = _toml(file, _text(file))
    project = content.get("project")
    own = content.get("tool", {}).get("isolate")
    if not isinstance(project, dict) and own is None:
        return None
    return {**(project or {}), "tool": own or {}}


def _script(file: Path) -> dict[str, Any] | None:
    """Return the inline metadata of a script, with `tool.isolate` as its key `tool`; None if there is none."""
    blocks = [lines for kind, lines in _blocks(_text(file).replace("\r\n", "\n").split("\n")) if kind == "script"]
    if len(blocks) > 1:
        raise InvalidManifestError(f"{file}: there are {len(blocks)} blocks of script metadata; wanted one")
    if not blocks:
        return None
    content = _toml(file, "\n".join(line[2:] for line in blocks[0]))
    return {**content, "tool": content.get("tool", {}).get("isolate", {})}


def _blocks(lines: list[str]) -> Iterator[tuple[str, list[str]]]:
    """Return kind and lines of each block of metadata; reads each line once, whatever is in the file.

    A block ends with the last line `# ///` of the comment that it is in.
    """
    at = 0
    while at < len(lines):
        start = _START.fullmatch(lines[at])
        at += 1
        if start is None:
            continue
        first, end = at, 0
        while at < len(lines) and (lines[at] == "#" or lines[at].startswith("# ")):
            if lines[at].rstrip(" \t") == "# ///":
                end = at
            at += 1
        if end > first:
            yield start[1], lines[first:end]
            at = end + 1


def _text(file: Path) -> str:
    try:
        return read_regular(file, _SIZE_LIMIT).decode("utf-8-sig")
    except OSError as failure:
        raise InvalidManifestError(f"{file}: {failure.strerror}") from None
    except UnicodeDecodeError:
        raise InvalidManifestError(f"{file}: not UTF-8") from None
    except ValueError as failure:
        raise InvalidManifestError(f"a manifest cannot be read: {failure}") from None


def _toml(file: Path, text: str) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as failure:
        raise InvalidManifestError(f"{file}: not TOML: {failure}") from None
    except RecursionError:  # tomllib has no limit of its own
        raise InvalidManifestError(f"{file}: its values are nested too deep") from None


def _keys(file: Path, table: dict[str, Any], name: str) -> dict[str, Any]:
    """Return our keys for a `project` table or a script's metadata; what `tool.isolate` says comes last."""
    if "dependencies" in table.get("dynamic", ()):
        raise InvalidManifestError(
            f"{file}: its dependencies are dynamic, which only a build finds out; list them, or write a manifest.yaml"
        )
    values: dict[str, Any] = {"name": _name(str(table.get("name", name)))}
    for key in ("version", "description", "dependencies"):
        if key in table:
            values[key] = table[key]
    if "requires-python" in table:
        python = _python(file, table["requires-python"])
        if python is not None:
            values["python"] = python
    own = table.get("tool", {})
    if not isinstance(own, dict):
        raise InvalidManifestError(f"{file}: tool.isolate is no table")
    return {**values, **own}


def _python(file: Path, text: Any) -> str | None:
    """Return the Python for a `requires-python`; None for the host's."""
    try:
        wanted = SpecifierSet(text)
    except (InvalidSpecifier, TypeError, AttributeError):
        raise InvalidManifestError(f"{file}: requires-python {text!r:.80} is no version specifier") from None
    if wanted.contains(".".join(map(str, sys.version_info[:3]))):
        return None
    for minor in range(_NEWEST, _OLDEST - 1, -1):
        if any(wanted.contains(f"3.{minor}.{patch}") for patch in (0, 99)):
            return f"3.{minor}"
    raise InvalidManifestError(
        f"{file}: requires-python {text!r:.80} leaves out every Python on which workers run: 3.{_OLDEST} to 3.{_NEWEST}"
    )
