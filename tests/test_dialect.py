"""The five packages speak one dialect: docstrings, errors and command lines follow the same rules."""

from __future__ import annotations

import ast
import builtins
import json
import os
import re
import subprocess
import sys
import tomllib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

griffe = pytest.importorskip("griffe", reason="needs the docs group")

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ["isolate", "ternary", "ttt", "xfer", "zerocopy"]
FULL_DISK = os.path.exists("/dev/full")
# Command lines import what they examine, which takes long on a busy machine.
pytestmark = pytest.mark.timeout(240)


@pytest.fixture(scope="module", params=PACKAGES)
def package(request: pytest.FixtureRequest) -> str:
    """Each package in turn; what is read of it serves all tests of the turn."""
    name: str = request.param
    return name


@pytest.fixture(scope="module")
def tree(package: str) -> Any:
    """A package as griffe reads it, without importing it."""
    folder = ROOT / "packages" / package / "src"
    return griffe.load(package, search_paths=[str(folder)], docstring_parser="google", resolve_aliases=True)


def public(tree: Any) -> dict[str, Any]:
    """The functions and classes in `__all__`, each where it is defined."""
    found = {str(name): tree[str(name)] for name in tree.exports}
    found = {name: entry.final_target if entry.is_alias else entry for name, entry in found.items()}
    return {name: entry for name, entry in found.items() if entry.kind.value in ("function", "class")}


def every(entry: Any) -> list[Any]:
    """A module's functions and classes and their methods, private ones included; not what it imports."""
    below = [member for member in entry.members.values() if not member.is_alias]
    return [entry, *(one for member in below for one in every(member))]


def documented(entry: Any) -> dict[str, str]:
    """The arguments and attributes that a docstring lists, each with its text."""
    sections = entry.docstring.parsed if entry.docstring else []
    wanted = ("parameters", "attributes", "other parameters")
    return {
        item.name.lstrip("*"): item.description for part in sections if part.kind.value in wanted for item in part.value
    }


def arguments(entry: Any) -> set[str]:
    """The names that a call may use."""
    names = {parameter.name for parameter in entry.parameters} - {"self", "cls"}
    if entry.kind.value == "class" and any(str(base).endswith("NamedTuple") for base in entry.bases):
        names |= {name for name, member in entry.members.items() if member.kind.value == "attribute"}
    return names


def test_no_public_name_hides_a_module(package: str, tree: Any) -> None:
    """No function of `__all__` has the name of the module that it comes from: `zerocopy.publish` is one thing."""
    init = ROOT / "packages" / package / "src" / package / "__init__.py"
    imports = [node for node in ast.parse(init.read_text()).body if isinstance(node, ast.ImportFrom)]
    hidden = {
        alias.name
        for node in imports
        for alias in node.names
        if node.module == f"{package}.{alias.name}" and (alias.asname or alias.name) in tree.exports
    }
    assert hidden == set()


def test_every_documented_argument_exists(tree: Any) -> None:
    """A docstring's Args name arguments of that function or class, and no other."""
    wrong = {}
    for entry in every(tree):
        if entry.kind.value not in ("function", "class") or not entry.docstring:
            continue
        sections = [part for part in entry.docstring.parsed if part.kind.value == "parameters"]
        named = {item.name.lstrip("*") for part in sections for item in part.value}
        if named - arguments(entry):
            wrong[entry.path] = sorted(named - arguments(entry))
    assert wrong == {}


def test_every_public_argument_is_documented(tree: Any) -> None:
    """Each argument of a public callable is in Args or Attributes, has its own docstring, or stands in backticks."""
    missing = {}
    for name, entry in public(tree).items():
        text = entry.docstring.value if entry.docstring else ""
        members = entry.members if entry.kind.value == "class" else {}
        own = {field for field, member in members.items() if not member.is_alias and member.docstring}
        init = members.get("__init__")
        listed = (
            set(documented(entry)) | own | (set(documented(init)) if init is not None and not init.is_alias else set())
        )
        shown = {word for part in re.findall(r"`([^`]+)`", text) for word in re.findall(r"\w+", part)}
        left = arguments(entry) - listed - shown
        if left:
            missing[name] = sorted(left)
    assert missing == {}


def test_every_public_callable_shows_itself(package: str, tree: Any) -> None:
    """Each callable in `__all__` has a `>>>` example, and the package's tests run them."""
    silent = {
        name
        for name, entry in public(tree).items()
        if entry.docstring is None or not re.search(r"^\s*>>> ", entry.docstring.value, re.MULTILINE)
    }
    assert silent == set()
    runner = ROOT / "packages" / package / "tests" / "test_docstrings.py"
    assert runner.exists()
    assert "doctest" in runner.read_text()


def test_every_error_says_what_to_do(tree: Any) -> None:
    """Each public error has a first paragraph with its condition and a second one with a remedy, but for the base."""
    errors = tree["errors"]
    silent = []
    for name in sorted(errors.exports):
        entry = errors[str(name)]
        entry = entry.final_target if entry.is_alias else entry
        texts = [part.value for part in entry.docstring.parsed if part.kind.value == "text"]
        if len("\n".join(texts).split("\n\n")) < 2 and "Base of " not in texts[0]:
            silent.append(entry.path)
    assert silent == []


def test_docstrings_have_one_style(tree: Any) -> None:
    """Single backticks, and an argument's text begins with a capital letter."""
    wrong = []
    for entry in every(tree):
        if entry.docstring and "``" in entry.docstring.value.replace("```", ""):
            wrong.append(f"{entry.path}: double backticks")
        for name, text in documented(entry).items():
            # A dtype keeps its own spelling.
            if text[:1].islower() and not re.match(r"[a-z]+\d", text):
                wrong.append(f"{entry.path}: {name}: {text[:40]!r}")
    assert wrong == []


def test_exceptions_end_in_error(package: str) -> None:
    """A class that is an exception says so by its name; a warning ends in Warning."""
    bases: dict[str, set[str]] = {}
    places: dict[str, str] = {}
    folder = ROOT / "packages" / package / "src" / package
    for file in sorted(folder.rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.ClassDef):
                bases[node.name] = {ast.unparse(base).rpartition(".")[2] for base in node.bases}
                places[node.name] = f"{file.relative_to(folder)}:{node.lineno}"

    def kind(name: str, seen: frozenset[str] = frozenset()) -> type[BaseException] | None:
        found = getattr(builtins, name, None)
        if isinstance(found, type) and issubclass(found, BaseException):
            return Warning if issubclass(found, Warning) else BaseException
        kinds = [kind(base, seen | {name}) for base in bases.get(name, ()) if base not in seen]
        return next(filter(None, kinds), None)

    endings: dict[Any, str] = {BaseException: "Error", Warning: "Warning"}
    wrong = [f"{places[name]} {name}" for name in bases if (found := kind(name)) and not name.endswith(endings[found])]
    assert wrong == []


COMMANDS = (("--version",), ("--json", "doctor"), ("doctor", "--json"), ("no-such-command",))
# Where the output of further commands goes, by the name of the place.
ELSEWHERE = (
    ("closed pipe", "--help"),
    ("closed output", "doctor"),
    ("full disk", "doctor", "--json"),
    ("full disk", "--version"),
)

Ran = dict[tuple[str, ...], subprocess.CompletedProcess[str]]


def output_elsewhere(package: str, place: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a package's command line with an output that cannot be written."""
    line = [sys.executable, "-m", package, *arguments]
    options: dict[str, Any] = {"stderr": subprocess.PIPE, "text": True, "timeout": 200}
    if place == "closed output":
        return subprocess.run(["sh", "-c", 'exec "$0" "$@" >&-', *line], stdout=subprocess.PIPE, **options)
    if place == "full disk":
        with open("/dev/full", "w") as full:
            return subprocess.run(line, stdout=full, **options)
    read, write = os.pipe()
    os.close(read)
    try:
        return subprocess.run(line, stdout=write, **options)
    finally:
        os.close(write)


@pytest.fixture(scope="module")
def ran(package: str) -> Ran:
    """What a package's command line does for each of COMMANDS, and for those of ELSEWHERE that can be tried here.

    Two run at a time, because imports take seconds.
    """

    def command(arguments: tuple[str, ...]) -> subprocess.CompletedProcess[str]:
        if arguments in ELSEWHERE:
            return output_elsewhere(package, *arguments)
        line = [sys.executable, "-m", package, *arguments]
        return subprocess.run(line, capture_output=True, text=True, timeout=200, stdin=subprocess.DEVNULL)

    tried = [entry for entry in ELSEWHERE if os.name == "posix" and (entry[0] != "full disk" or FULL_DISK)]
    commands = [*COMMANDS, *tried]
    with ThreadPoolExecutor(2) as pool:
        return dict(zip(commands, pool.map(command, commands), strict=True))


def shape(value: Any) -> Any:
    """What a JSON value is made of, without the figures in it."""
    if isinstance(value, dict):
        return {key: shape(each) for key, each in value.items()}
    return type(value).__name__ if isinstance(value, bool | str | list) else "number or null"


def test_command_lines_say_their_version(package: str, ran: Ran) -> None:
    """The script is `X._cli:main`, and `python -m X --version` prints the version of the distribution."""
    project = tomllib.loads((ROOT / "packages" / package / "pyproject.toml").read_text())["project"]
    assert project["scripts"] == {package: f"{package}._cli:main"}
    done = ran["--version",]
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.split()[-1] == project["version"]


def test_doctor_speaks_json_before_and_after(ran: Ran) -> None:
    """`--json` means the same before the command and after it, down to the indent, which is two in all packages."""
    before, after = ran["--json", "doctor"], ran["doctor", "--json"]
    assert before.returncode == after.returncode in (0, 1), before.stderr
    assert "Traceback" not in before.stderr + after.stderr
    assert shape(json.loads(before.stdout)) == shape(json.loads(after.stdout))
    indents = [[len(line) - len(line.lstrip()) for line in done.stdout.splitlines()] for done in (before, after)]
    assert set(indents[0]) == set(indents[1])
    assert min(set(indents[0]) - {0}) == 2


def test_a_wrong_command_is_one_line(package: str, ran: Ran) -> None:
    """A command that does not exist ends with status 2, and the last line of stderr names the program."""
    done = ran["no-such-command",]
    assert done.returncode == 2
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    assert done.stderr.splitlines()[-1].startswith(f"{package}: ")


@pytest.mark.skipif(os.name != "posix", reason="a pipe that closes early ends a program differently on Windows")
def test_a_closed_pipe_is_no_traceback(ran: Ran) -> None:
    """A reader that goes away, as `head` does, ends the command without a word."""
    assert ran["closed pipe", "--help"].stderr == ""


@pytest.mark.skipif(os.name != "posix", reason="a shell closes the output")
def test_an_output_that_is_closed_is_no_traceback(ran: Ran) -> None:
    """Who closes the output before the start, as `>&-` does, gets nothing there and status 0."""
    done = ran["closed output", "doctor"]
    assert (done.returncode, "Traceback" in done.stderr) == (0, False), done.stderr


@pytest.mark.skipif(not FULL_DISK, reason="needs /dev/full")
@pytest.mark.parametrize("words", [("doctor", "--json"), ("--version",)], ids=" ".join)
def test_an_output_on_a_full_disk_is_no_traceback(ran: Ran, words: tuple[str, ...]) -> None:
    """At most one line says so."""
    done = ran["full disk", *words]
    assert done.stderr.count("\n") <= 1, done.stderr
