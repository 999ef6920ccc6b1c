"""Manifests and requirement lines: each mistake has its own precise message."""

from __future__ import annotations

from pathlib import Path

import pytest

from isolate import Policy, read_manifest
from isolate._requirements import parse
from isolate.errors import InvalidManifestError, InvalidRequirementError

GOOD = """\
name: stats
entry: main:Extension
dependencies: ["numpy<2"]
needs: {database: [get, put]}
limits: {memory: 512MiB, cpu_seconds: 5}
sandbox: {level: landlock, required: yes}
env: [HF_HOME]
timeouts: {start: 30, call: 2.5}
restart: {policy: never}
"""


def write(folder: Path, text: str | bytes, name: str = "manifest.yaml") -> Path:
    """A manifest file."""
    data = text if isinstance(text, bytes) else text.encode()
    (folder / name).write_bytes(data)
    return folder


def test_good_manifest(tmp_path: Path) -> None:
    """Every key arrives where it belongs."""
    manifest = read_manifest(write(tmp_path, GOOD))
    assert manifest.name == "stats"
    assert manifest.needs == {"database": ("get", "put")}
    assert manifest.limits.as_numbers() == {"memory": 512 << 20, "cpu_seconds": 5}
    assert manifest.sandbox.required
    assert manifest.timeouts.call == 2.5
    assert manifest.directory == tmp_path.resolve()


def test_toml(tmp_path: Path) -> None:
    """TOML says the same."""
    text = 'name = "stats"\nmodule = "pkg.main"\ndependencies = ["numpy<2"]\n[limits]\nmemory = 1000\n'
    manifest = read_manifest(write(tmp_path, text, "manifest.toml"))
    assert (manifest.entry, manifest.limits.as_numbers()) == ("pkg.main", {"memory": 1000})


BAD = {
    "empty": ("", "not empty"),
    "list": ("- a\n", "map of keys, not list"),
    "no name": ("entry: main\n", "name"),
    "unknown key": ("name: a\ndependancies: []\n", r"line 2: unknown key 'dependancies'; did you mean 'dependencies'"),
    "unknown inner key": (
        "name: a\nlimits:\n  memroy: 1\n",
        r"line 3: unknown key 'limits.memroy'; did you mean 'memory'",
    ),
    "duplicate": ("name: a\nentry: x\nname: b\n", r"line 3: the key 'name' appears twice"),
    "wrong type": ("name: a\nenabled: maybe\n", r"line 2: enabled: .*bool"),
    "list of wrong": ("name: a\ndependencies:\n  - x\n  - 3\n", r"dependencies.*str"),
    "python as number": ("name: a\npython: 3.12\n", r"line 2: python: .*quotes"),
    "version as number": ("name: a\nversion: 1.0\n", r"line 2: version: .*quotes"),
    "old python": ("name: a\npython: '3.8'\n", "too old"),
    "python nonsense": ("name: a\npython: 'snake'\n", "not a version"),
    "alias bomb": ("a: &a [x]\nb: &b [*a, *a]\nname: q\n", "line 1: anchors and aliases"),
    "tag": ("name: !!python/object/apply:os.system [id]\n", "line 1: the tag .* is not allowed"),
    "deep": ("name: " + "[" * 3000 + "]" * 3000, "deeper than"),
    "broken": ("name: 'a\n", "not YAML"),
    "bad name": ("name: A/b\n", "line 1: the name 'A/b'"),
    "dots": ("name: ../x\n", "the name"),
    "long name": ("name: " + "a" * 65, "the name"),
    "entry": ("name: a\nentry: os.system('x')\n", "line 2: the entry"),
    "both": ("name: a\nentry: x\nmodule: y\n", "not both"),
    "level": ("name: a\nsandbox: {level: strong}\n", r"line 2: sandbox.level"),
    "memory": ("name: a\nlimits: {memory: lots}\n", "line 2: limits.memory: 'lots' is not a size"),
    "negative": ("name: a\nlimits: {cpu_seconds: -1}\n", "not positive"),
    "not a number": ("name: a\nlimits: {cpu_seconds: .nan}\n", "line 2: limits.cpu_seconds: nan is not positive"),
    "beyond the kernel's numbers": ("name: a\nlimits: {memory: 18446744073709551615}\n", "limits.memory: .* too large"),
    "beyond any number": ("name: a\nlimits: {threads: 99999999999999999999999}\n", "limits.threads: .* too large"),
    "beyond any time": ("name: a\nlimits: {cpu_seconds: 1.0e+300}\n", "limits.cpu_seconds: .* too large"),
    "restart limit": ("name: a\nrestart: {limit: -1}\n", "line 2: restart.limit: -1 is not between"),
    "restart window": ("name: a\nrestart: {window: .nan}\n", "restart.window: nan is not between"),
    "restart backoff": ("name: a\nrestart: {backoff: .inf}\n", "restart.backoff: inf is not between"),
    "timeout": ("name: a\ntimeouts: {start: 0}\n", "timeouts.start: 0"),
    "provides": ("name: a\nprovides: [_x]\n", "not the name of a public method"),
    "env": ("name: a\nenv: ['A=B']\n", "environment variable"),
    "not isolated with dependencies": ("name: a\nisolated: false\ndependencies: [x]\n", "line 2: .*host's process"),
    "two documents": ("name: a\n---\nname: b\n", "not YAML"),
    "bad integer": ("name: a\nlimits: {cpu_seconds: 0x}\n", "cpu_seconds"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_manifests(tmp_path: Path, case: str) -> None:
    """Each mistake is named, with its line."""
    text, message = BAD[case]
    with pytest.raises(InvalidManifestError, match=message) as caught:
        read_manifest(write(tmp_path, text))
    assert "manifest.yaml" in str(caught.value)


def test_not_utf8_and_too_large_and_missing(tmp_path: Path) -> None:
    """Bytes that are no text, a file that is no manifest, no file."""
    with pytest.raises(InvalidManifestError, match=r"line 2: byte 0xff is not UTF-8"):
        read_manifest(write(tmp_path, b"name: a\ndescription: \xff\n"))
    with pytest.raises(InvalidManifestError, match="too many"):
        read_manifest(write(tmp_path, b"#" * (300 << 10)))
    with pytest.raises(InvalidManifestError, match=r"there is no manifest\.yaml"):
        read_manifest(tmp_path / "nowhere")
    with pytest.raises(InvalidManifestError, match="not TOML"):
        read_manifest(write(tmp_path, b"name = ", "manifest.toml") / "manifest.toml")
    with pytest.raises(InvalidManifestError, match=r"manifest\.toml: its values are nested too deep"):
        read_manifest(write(tmp_path, b"name = " + b"[" * 5000, "manifest.toml") / "manifest.toml")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("manifest.yaml", "name: a\ndependencies: [x]\n"),
        ("manifest.toml", 'name = "a"\ndependencies = ["x"]\n'),
        ("pyproject.toml", '[project]\nname = "a"\nversion = "1"\ndependencies = ["x"]\n'),
        ("requirements.txt", "x\n"),
        ("script.py", '# /// script\n# dependencies = ["x"]\n# ///\n'),
    ],
)
def test_files_that_begin_with_a_mark_of_their_encoding(tmp_path: Path, name: str, text: str) -> None:
    """Editors on Windows write one; it hides nothing of what follows."""
    folder = write(tmp_path, "\ufeff" + text, name)
    assert read_manifest(folder / name if name.endswith(".py") else folder).dependencies == ("x",)


def test_a_path_that_cannot_be_looked_at(tmp_path: Path) -> None:
    """A name that no file can have is an error of this package, not of the system."""
    for path in (tmp_path / ("a" * 300), tmp_path / ("a" * 300 + ".py"), "x/" * 3000):
        with pytest.raises(InvalidManifestError):
            read_manifest(path)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("numpy=>2", "not a requirement"),
        ("-r other.txt", "is an option"),
        ("--index-url x", "is an option"),
        ("./local", "bare path"),
        ("pkg.whl", "bare path"),
        ("a @ file:///x", "local path; the host must allow"),
        ("a @ https://host/a.whl", "URL; the host must allow"),
        ("-e .", "is an option"),
        ("", "not a requirement"),
    ],
)
def test_bad_requirements(line: str, message: str) -> None:
    """Each kind of line that is not a plain requirement is refused with what it is."""
    with pytest.raises(InvalidRequirementError, match=message):
        parse((line,), Policy(), "ext")


def test_policy_allows_what_it_says() -> None:
    """A URL or path is accepted when the host allows it; names are normalised and sorted."""
    parsed = parse(("B_b>1", "a @ file:///x"), Policy(allow_paths=True), "ext")
    assert [requirement.name for requirement in parsed] == ["a", "b-b"]
