"""How the five packages are built: which modules are public, how long things are, what the architecture page shows."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ["isolate", "ternary", "ttt", "xfer", "zerocopy"]

# The longest that each may be, in lines. A longer one says why in a comment on its first line.
LONGEST = {"class": 300, "function": 60, ".py": 500, ".c": 400, ".h": 400, ".cpp": 400, ".cu": 400}
REASON = re.compile(r"(#|//|/\*)\s*long because \S+")

IDIOMS = r"is let |are let |\bwhoever\b|know(s|ing)? nothing of|nobody asks|somebody asks|\b(is|are|was|were) told\b"

ARCHITECTURE_LINES = 60
MERMAID = re.compile(r"^```mermaid\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LABEL = re.compile(r'[\[({]"([^"]+)"[\])}]')


def source(package: str) -> Path:
    """The folder that a package is imported from."""
    return ROOT / "packages" / package / "src" / package


def modules(package: str) -> Iterator[tuple[Path, str]]:
    """Every Python file of a package: its path below the package's folder, and its text."""
    folder = source(package)
    for file in sorted(folder.rglob("*.py")):
        yield file.relative_to(folder), file.read_text()


def exported(text: str) -> set[str] | None:
    """The names in a module's `__all__`; None if it has none."""
    for node in ast.parse(text).body:
        targets = (
            node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
        )
        if any(isinstance(target, ast.Name) and target.id == "__all__" for target in targets):
            return set(ast.literal_eval(node.value))
    return None


@pytest.mark.parametrize("package", PACKAGES)
def test_a_module_is_public_only_where_the_documents_name_it(package: str) -> None:
    """Users may import a path without an underscore: it has `__all__`, and a document or the package names it."""
    folder = ROOT / "packages" / package
    documents = "\n".join(page.read_text() for page in [folder / "README.md", *sorted(folder.glob("docs/*.md"))])
    texts = dict(modules(package))
    listed = {f"{package}.{name}" for name in {"errors", *(exported(texts[Path("__init__.py")]) or ())}}
    wrong = {}
    for file, text in texts.items():
        parts = file.with_suffix("").parts
        if any(part.startswith("_") for part in parts if part != "__init__") or parts == ("__init__",):
            continue
        names = [part for part in parts if part != "__init__"]
        dotted = ".".join([package, *names])
        if exported(text) is None:
            wrong[str(file)] = "no __all__"
        elif dotted not in listed and not re.search(rf"\b{re.escape(dotted)}\b", documents):
            wrong[str(file)] = f"no document names {dotted}"
    assert wrong == {}


@pytest.mark.parametrize("package", PACKAGES)
def test_no_file_imports_a_private_name_of_another(package: str) -> None:
    """`from X.other import _name` does not occur, unless `_name` is a module. Linting finds `other._name`."""
    folder = source(package)
    wrong = []
    for file, text in modules(package):
        for node in ast.walk(ast.parse(text)):
            if not isinstance(node, ast.ImportFrom) or not node.module or node.level:
                continue
            place = folder.parent.joinpath(*node.module.split("."))
            for alias in node.names:
                is_module = (
                    (place / alias.name).is_dir()
                    or (place / f"{alias.name}.py").exists()
                    or any(place.glob(f"{alias.name}.*.so"))
                )
                private = alias.name.startswith("_") and not alias.name.startswith("__")
                if private and node.module.split(".")[0] == package and not is_module:
                    wrong.append(f"{file}:{node.lineno} {node.module}.{alias.name}")
    assert wrong == []


def too_long(file: Path, text: str) -> Iterator[str]:
    """What in a file is longer than it may be without a reason."""
    lines = text.splitlines()
    limit = LONGEST[file.suffix]
    if len(lines) > limit and not REASON.search(lines[0]):
        yield f"{file}: {len(lines)} lines, at most {limit}"
    if file.suffix != ".py":
        return
    for node in ast.walk(ast.parse(text)):
        kind = "class" if isinstance(node, ast.ClassDef) else "function"
        if not isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        assert node.end_lineno is not None
        length = node.end_lineno - node.lineno + 1
        if length > LONGEST[kind] and not REASON.search(lines[node.lineno - 1]):
            yield f"{file}:{node.lineno} {kind} {node.name}: {length} lines, at most {LONGEST[kind]}"


@pytest.mark.parametrize("package", PACKAGES)
def test_sizes(package: str) -> None:
    """A class has at most 300 lines, a function 60, a file 500, a C file 400, unless its first line says why."""
    folder = source(package)
    files = [file for file in sorted(folder.rglob("*")) if file.suffix in LONGEST]
    assert files
    assert [line for file in files for line in too_long(file.relative_to(folder), file.read_text())] == []


def test_the_rule_for_sizes_finds_what_is_too_long() -> None:
    """A function of 61 lines is found, and is allowed once its first line says why."""
    body = "    pass\n" * 60
    assert list(too_long(Path("a.py"), f"def f():\n{body}")) == ["a.py:1 function f: 61 lines, at most 60"]
    assert list(too_long(Path("a.py"), f"def f():  # long because one table\n{body}")) == []
    assert list(too_long(Path("a.py"), "x = 1\n" * 501)) == ["a.py: 501 lines, at most 500"]
    assert list(too_long(Path("a.c"), "/* long because generated */\n" * 401)) == []


@pytest.mark.parametrize("package", PACKAGES)
def test_the_architecture_page_shows_every_room(package: str) -> None:
    """`docs/architecture.md` is short, each path in its diagram exists, each top-level folder and module is in it."""
    page = (ROOT / "packages" / package / "docs" / "architecture.md").read_text()
    assert len(page.splitlines()) <= ARCHITECTURE_LINES
    diagrams = MERMAID.findall(page)
    assert diagrams, "no mermaid diagram"
    labels = {label for diagram in diagrams for label in LABEL.findall(diagram)}
    assert labels, "no label in double quotes"
    folder = source(package)
    wrong = {
        label for label in labels if not ((folder / label).is_dir() if label[-1] == "/" else (folder / label).is_file())
    }
    assert wrong == set()
    rooms = {entry.name for entry in folder.iterdir() if entry.is_dir() and any(entry.rglob("*.py"))}
    rooms |= {entry.name for entry in folder.glob("*.py")} - {"__init__.py", "__main__.py", "_moved.py"}
    assert rooms - {label.split("/")[0] for label in labels} == set()


@pytest.mark.parametrize("package", PACKAGES)
def test_the_words_are_plain(package: str) -> None:
    """Idioms that had to be explained to readers do not come back."""
    folder = ROOT / "packages" / package
    files = [
        folder / "README.md",
        *folder.glob("docs/*.md"),
        *source(package).rglob("*.py"),
        *source(package).rglob("*.[ch]"),
    ]
    found = [
        f"{file.relative_to(folder)}:{number} {match[0]}"
        for file in sorted(files)
        for number, line in enumerate(file.read_text().splitlines(), 1)
        if (match := re.search(IDIOMS, line))
    ]
    assert found == []


def test_the_fleet_keeps_these_rules() -> None:
    """The files of examples/fleet are short, the service in all too, and their words are plain."""
    folder = ROOT / "examples" / "fleet"
    files = [*folder.glob("*.py"), *folder.glob("trial/*.py"), *folder.glob("plugins/*/*.py")]
    assert len(files) >= 9
    assert [line for file in files for line in too_long(file.relative_to(folder), file.read_text())] == []
    service = [folder / name for name in ("fleet.py", "gateway.py", "on_ray.py")]
    assert sum(len(file.read_text().splitlines()) for file in service) <= 300
    assert [str(file) for file in [*files, folder / "README.md"] if re.search(IDIOMS, file.read_text())] == []


def test_the_twins_exist() -> None:
    """Every file in CONTRIBUTING's table of twins exists."""
    text = (ROOT / "CONTRIBUTING.md").read_text().split("\n## Twins\n")[1].split("\n## ")[0]
    named = [
        path for line in text.splitlines() if line.startswith("| ") for path in re.findall(r"`([\w./]+/[\w./]*)`", line)
    ]
    assert len(named) > 10
    places = [
        ROOT / path if path.startswith("packages/") else source(path.split("/")[0]).parent / path for path in named
    ]
    assert [str(place) for place in places if not place.exists()] == []
