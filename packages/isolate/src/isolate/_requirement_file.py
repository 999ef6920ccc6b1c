"""Reads requirements files as pip knows them: what is harmless is understood, any other option is refused by name."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass, field
from pathlib import Path

from isolate._places import read_regular
from isolate.errors import InvalidRequirementError

_SIZE_LIMIT = 256 << 10
_DEPTH_LIMIT = 5
_COMMENT = re.compile(r"(^|\s)#.*$")
_EGG = re.compile(r"(?:#|&)egg=([A-Za-z0-9][A-Za-z0-9._-]*)(\[[\w,-]*\])?")
_SHORT = {"-i": "--index-url", "-f": "--find-links", "-r": "--requirement", "-c": "--constraint", "-e": "--editable"}
_LONG = {"--pypi-url": "--index-url"}
_IGNORED = {
    "--prefer-binary": "wheels are the only choice already",
    "--only-binary": "wheels are the only choice already",
    "--no-cache-dir": "the cache is uv's",
    "--disable-pip-version-check": "pip is not used",
}
_REFUSED = {
    "--hash": "hashes are in the lock file, which `isolate lock` writes",
    "--require-hashes": "hashes are in the lock file, which `isolate lock` writes",
    "--no-binary": "building from source runs code while installing; the host allows it with Policy(allow_sdists=True)",
    "--pre": "name the pre-release that is wanted, as in name>=2.0rc1",
    "--no-index": "the host decides whether an index is used: Host(offline=True)",
    "--trusted-host": "certificates are always checked",
    "--editable": "an editable install would run code from outside the environment; name the package",
    "--no-deps": "dependencies are always installed; list constraints instead",
    "--config-settings": "it is for builds from source",
    "--global-option": "it is for builds from source",
}


@dataclass(slots=True)
class RequirementFile:
    """What a requirements file and those that it includes ask for.

    Attributes:
        requirements: Requirement lines.
        constraints: Lines of constraint files.
        index: The package index; None for the host's.
        extra_indexes: Indexes that are asked first.
        find_links: Folders and pages with wheels.
    """

    requirements: list[str] = field(default_factory=list)
    constraints: list[str] = field(default_factory=list)
    index: str | None = None
    extra_indexes: list[str] = field(default_factory=list)
    find_links: list[str] = field(default_factory=list)


def read_requirement_file(path: Path) -> RequirementFile:
    """Read a requirements file and what it includes.

    Raises:
        InvalidRequirementError: It cannot be read or has an option that is not understood; with file, line and remedy.
    """
    found = RequirementFile()
    _read(path, found, found.requirements, path.parent.resolve(), 0)
    return found


def _read(path: Path, found: RequirementFile, target: list[str], root: Path, depth: int) -> None:
    try:
        text = read_regular(path, _SIZE_LIMIT).decode("utf-8-sig")
    except OSError as failure:
        raise InvalidRequirementError(f"{path}: {failure.strerror}") from None
    except UnicodeDecodeError:
        raise InvalidRequirementError(f"{path}: not UTF-8; save it as UTF-8") from None
    except ValueError as failure:  # a named pipe, or too large
        raise InvalidRequirementError(str(failure)) from None
    pending, first = "", 0
    for number, raw in enumerate([*text.splitlines(), ""], 1):
        first = first if pending else number
        line = pending + raw
        if line.rstrip().endswith("\\") and not _COMMENT.search(line):
            pending = line.rstrip()[:-1] + " "
            continue
        pending = ""
        line = _COMMENT.sub("", line).strip()
        if line:
            _take(line, f"{path}, line {first}", path, found, target, root, depth)


def _take(line: str, where: str, path: Path, found: RequirementFile, target: list[str], root: Path, depth: int) -> None:
    if "${" in line:
        raise InvalidRequirementError(f"{where}: variables of the environment are not put in; write the value")
    if not line.startswith("-"):
        requirement, option, _ = line.partition(" --")
        if option:
            _option(f"--{line.partition(' --')[2]}", where, path, found, root, depth)
        target.append(_named(requirement.strip()))
        return
    _option(line, where, path, found, root, depth)


def _named(requirement: str) -> str:
    """Return a requirement; one of the form `git+https://…#egg=name` with its name in front, as the standard has it."""
    egg = _EGG.search(requirement)
    if egg is None or "@ " in requirement or "://" not in requirement:
        return requirement
    url, marker, condition = requirement.partition(" ;")
    return f"{egg[1]}{egg[2] or ''} @ {_EGG.sub('', url).strip()}{marker}{condition}"


def _option(line: str, where: str, path: Path, found: RequirementFile, root: Path, depth: int) -> None:
    try:
        words = shlex.split(line)
    except ValueError as failure:
        raise InvalidRequirementError(f"{where}: {failure}") from None
    name, _, value = words[0].partition("=")
    if name[:2] in _SHORT and not name.startswith("--"):
        name, value = _SHORT[name[:2]], name[2:] or value
    name = _LONG.get(name, name)
    value = value or (words[1] if len(words) > 1 else "")
    if name in _IGNORED:
        return
    if name in ("--index-url", "--extra-index-url", "--find-links", "--requirement", "--constraint"):
        if not value:
            raise InvalidRequirementError(f"{where}: {name} has no value")
        if name == "--index-url":
            found.index = value
        elif name == "--extra-index-url":
            found.extra_indexes.append(value)
        elif name == "--find-links":
            found.find_links.append(value if "://" in value else str((path.parent / value).resolve()))
        else:
            target = found.requirements if name == "--requirement" else found.constraints
            _include(value, where, path, found, target, root, depth)
        return
    why = _REFUSED.get(name, "it is not known here")
    raise InvalidRequirementError(f"{where}: the option {name} is not taken: {why}")


def _include(
    value: str, where: str, path: Path, found: RequirementFile, target: list[str], root: Path, depth: int
) -> None:
    other = (path.parent / value).resolve()
    if "://" in value or not other.is_relative_to(root):
        raise InvalidRequirementError(f"{where}: {value!r} is outside of the extension's folder; put its lines here")
    if depth >= _DEPTH_LIMIT:
        raise InvalidRequirementError(f"{where}: files include each other more than {_DEPTH_LIMIT} deep")
    _read(other, found, target, root, depth + 1)
