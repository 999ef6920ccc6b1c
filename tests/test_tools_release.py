"""The release program: tags that agree, files that an index accepts, and a workflow that it rehearses."""

from __future__ import annotations

import urllib.request
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import yaml

Tool = Callable[[str], ModuleType]


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A repository with one package, alpha 1.2.3, that was released."""
    package = tmp_path / "packages" / "alpha"
    package.mkdir(parents=True)
    (package / "pyproject.toml").write_text('[project]\nname = "pentad-alpha"\nversion = "1.2.3"\n')
    (package / "CHANGELOG.md").write_text("# Changelog\n\n## 1.2.3 (2026-01-31)\n\nNew.\n\n## 1.2.2 (2025-01-31)\n")
    return tmp_path


def test_agreement(tool: Tool, repository: Path) -> None:
    """If tag, pyproject and heading agree, nothing is reported."""
    assert tool("release").disagreements("alpha-v1.2.3", repository) == []


@pytest.mark.parametrize(
    ("tag", "words"),
    [
        ("alpha-1.2.3", "not PACKAGE-vX.Y.Z"),
        ("v1.2.3", "not PACKAGE-vX.Y.Z"),
        ("beta-v1.2.3", "names no package"),
        ("alpha-v1.2.4", "has version 1.2.3, the tag 1.2.4"),
    ],
)
def test_a_tag_that_disagrees(tool: Tool, repository: Path, tag: str, words: str) -> None:
    """Each wrong tag is refused, and the message says what disagrees."""
    found = tool("release").disagreements(tag, repository)
    assert any(words in line for line in found), found


@pytest.mark.parametrize(
    ("changelog", "words"),
    [
        ("# Changelog\n\n## 1.2.3 (unreleased)\n", "expected YYYY-MM-DD"),
        ("# Changelog\n\n## 1.2.2 (2025-01-31)\n", "begins with 1.2.2"),
        ("# Changelog\n", "begins with no heading"),
    ],
)
def test_a_changelog_that_disagrees(tool: Tool, repository: Path, changelog: str, words: str) -> None:
    """A missing, older or undated heading is refused."""
    (repository / "packages/alpha/CHANGELOG.md").write_text(changelog)
    found = tool("release").disagreements("alpha-v1.2.3", repository)
    assert any(words in line for line in found), found


def test_every_package_has_the_two_places(tool: Tool, root: Path) -> None:
    """In this repository each CHANGELOG starts with the version of its pyproject."""
    release = tool("release")
    for project in root.glob("packages/*/pyproject.toml"):
        package = project.parent.name
        assert release.heading(package)[0] == release.version(package)


def test_notes_are_the_section_of_the_changelog(tool: Tool, repository: Path) -> None:
    """A version's notes are its own section, and a version without one is refused."""
    release = tool("release")
    assert release.notes("alpha-v1.2.3", repository) == "New.\n"
    with pytest.raises(release.ReleaseError, match=r"no section for 9\.9\.9"):
        release.notes("alpha-v9.9.9", repository)


PAGE = """[guide](docs/guide.md) and [there](https://host/x), [below](#below), ![picture](../a.png)

```python
table[1](docs)
```
`list[0](x)`
"""


def test_links_become_absolute_and_code_stays(tool: Tool) -> None:
    """On an index page relative links and pictures lead to the tagged file; code that looks like a link stays."""
    text = tool("release").absolute(PAGE, "packages/xfer", "https://host/pentad", "xfer-v1.2.3")
    assert "[guide](https://host/pentad/blob/xfer-v1.2.3/packages/xfer/docs/guide.md)" in text
    assert "![picture](https://host/pentad/raw/xfer-v1.2.3/packages/a.png)" in text
    assert text.split("picture")[0].endswith("[there](https://host/x), [below](#below), ![")
    assert text[text.index("\n\n") :] == PAGE[PAGE.index("\n\n") :]


@pytest.fixture(scope="module")
def built(tool: Tool, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The files of a package without a compiled core, as they would be published."""
    files: list[Path] = tool("release").build("isolate", tmp_path_factory.mktemp("dist"), "https://host/pentad")
    return files


@pytest.mark.timeout(180)
def test_built_files_are_accepted(tool: Tool, built: list[Path]) -> None:
    """Sdist and wheel pass the upload tool that the pinned action carries, and have licence, addresses and keywords."""
    assert [file.name.partition("-")[2] for file in built] == ["0.1.0.tar.gz", "0.1.0-py3-none-any.whl"]
    tool("release").verify(built)


@pytest.mark.parametrize(
    ("file", "before", "after", "words"),
    [
        ("METADATA", "Metadata-Version: 2.4", "Metadata-Version: 2.5", "Metadata-Version is 2.5"),
        ("METADATA", "Keywords: ", "Not-Keywords: ", "no Keywords"),
        ("METADATA", "Project-URL: ", "Not-URL: ", "no Project-URL"),
        ("METADATA", "\n# isolate\n", "\n# isolate\n[here](docs/x.md)\n", "relative link docs/x.md"),
        ("licenses/LICENSE", "Apache", "Other", "the licence's text is missing"),
    ],
)
def test_a_wheel_that_lacks_something(
    tool: Tool, built: list[Path], tmp_path: Path, file: str, before: str, after: str, words: str
) -> None:
    """Each thing that readers of an index page need is missed if it is not there."""
    changed = tmp_path / built[1].name
    with zipfile.ZipFile(built[1]) as source, zipfile.ZipFile(changed, "w") as target:
        for name in source.namelist():
            data = source.read(name).decode()
            if name.endswith(f".dist-info/{file}"):
                assert before in data
                data = data.replace(before, after)
            target.writestr(name, data)
    assert any(words in line for line in tool("release").lacks(changed))


def test_the_local_index_serves_what_was_built(tool: Tool, built: list[Path]) -> None:
    """The index lists each file with its hash, and ends with its block."""
    with tool("release").index(built) as address:
        page = urllib.request.urlopen(f"{address}pentad-isolate/").read().decode()
        assert page.count("#sha256=") == 2
        wheel = urllib.request.urlopen(f"{address}pentad-isolate/{built[1].name}").read()
    assert wheel == built[1].read_bytes()
    with pytest.raises(OSError, match="refused"):
        urllib.request.urlopen(address)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_wheels_with_a_core_fit_old_systems_and_both_processors(tool: Tool, tmp_path: Path) -> None:
    """Wheels with a compiled core are named for glibc 2.28 on x86-64 and aarch64 and fit that processor."""
    files = tool("release").build("xfer", tmp_path, "https://host/pentad")
    machines = {"x86_64": 62, "aarch64": 183}
    for file in files[1:]:
        architecture = next(name for name in machines if f"manylinux_2_28_{name}" in file.name)
        with zipfile.ZipFile(file) as archive:
            (core,) = (name for name in archive.namelist() if name.endswith(".so"))
            header = archive.read(core)[:20]
        assert header[:4] == b"\x7fELF"
        assert int.from_bytes(header[18:20], "little") == machines.pop(architecture)
    assert machines == {}
    tool("release").verify(files)


def test_the_upload_tool_is_that_of_the_pinned_action(tool: Tool, root: Path, tmp_path: Path) -> None:
    """Another pin of the publish action is refused until its twine is known."""
    release = tool("release")
    assert release.upload_tools()[0].startswith("twine==")
    (tmp_path / ".github" / "workflows").mkdir(parents=True)
    text = (root / ".github/workflows/release.yml").read_text()
    (pin,) = release.UPLOAD_TOOLS
    (tmp_path / ".github/workflows/release.yml").write_text(text.replace(pin, "0" * 40))
    release.ROOT = tmp_path
    with pytest.raises(release.ReleaseError, match="add the twine"):
        release.upload_tools()


def test_each_step_of_the_workflow_is_one_that_the_program_rehearses(root: Path) -> None:
    """The workflow builds and verifies with the program alone, and does nothing else to the files."""
    workflow = yaml.safe_load((root / ".github/workflows/release.yml").read_text())
    commands = [step["run"] for step in workflow["jobs"]["build"]["steps"] if "run" in step]
    assert commands == [
        'python3 tools/release.py build "${GITHUB_REF_NAME%-v*}" --out dist',
        "python3 tools/release.py verify dist",
    ]
    publish = workflow["jobs"]["publish"]["steps"]
    assert ["run" in step for step in publish] == [False, False]


@pytest.mark.parametrize("package", ["isolate", "ternary", "ttt", "xfer", "zerocopy"])
def test_the_licence_is_the_repositorys(root: Path, package: str) -> None:
    """A package carries the repository's licence, and its build tool has an upper bound."""
    assert (root / "packages" / package / "LICENSE").read_text() == (root / "LICENSE").read_text()
    assert 'requires = ["hatchling>=1.27,<' in (root / "packages" / package / "pyproject.toml").read_text()
