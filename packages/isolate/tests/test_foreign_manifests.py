"""Extensions without a manifest of ours: requirements files, projects and scripts."""

from __future__ import annotations

import os
import re
import sys
import zipfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from integration_test_base import IntegrationTestBase

from isolate import EnvironmentStore, Policy, _foreign_manifests, read_manifest
from isolate._manifest import is_extension
from isolate._requirement_file import read_requirement_file
from isolate.errors import InvalidManifestError, InvalidRequirementError

SCRIPT = """\
# /// script
# requires-python = ">=3.11"
# dependencies = ["packaging==23.2"]
# [tool.isolate]
# timeouts = {call = 30}
# ///
import packaging

def version(): return packaging.__version__
"""


def wheel(folder: Path, version: str, content: str) -> Path:
    """Write a wheel of a package `tinything` with one module."""
    path = folder / f"tinything-{version}-py3-none-any.whl"
    info = f"tinything-{version}.dist-info"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("tinything.py", content)
        archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: tinything\nVersion: {version}\n")
        archive.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: t\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr(f"{info}/RECORD", f"tinything.py,,\n{info}/METADATA,,\n{info}/WHEEL,,\n{info}/RECORD,,\n")
    return path


class TestForeign(IntegrationTestBase):
    """Folders and files that other tools describe, loaded with a real environment each."""

    def test_each_kind_loads(self) -> None:
        """A requirements file, a project, a script and a package, beside one with a manifest."""
        pack = self.root / "My Pack_2"
        pack.mkdir()
        (pack / "requirements.txt").write_text("# what it needs\npackaging==23.2  # old\n")
        (pack / "__init__.py").write_text(
            "from . import part\nfrom .part import version\ndef name(): return part.NAME\n"
        )
        (pack / "part.py").write_text(
            "import packaging\nNAME = __name__\ndef version(): return packaging.__version__\n"
        )
        project = self.root / "project"
        project.mkdir()
        (project / "pyproject.toml").write_text(
            '[project]\nname = "Own.Name"\nversion = "1"\ndependencies = ["packaging==23.2"]\n'
            "[tool.isolate]\nprovides = ['version']\n"
        )
        (project / "main.py").write_text("import packaging\ndef version(): return packaging.__version__\n")
        (self.root / "script.py").write_text(SCRIPT)
        (self.root / "plain.py").write_text("x = 1\n")
        (self.root / "notes").mkdir()
        self.create_extension("ours", "def version(): return '23.2'")
        host, loaded = self.load_extensions()
        assert not loaded.errors
        assert sorted(loaded.extensions) == ["my-pack_2", "ours", "own.name", "script"]
        assert host["own.name"].call.version() == host["script"].call.version() == "23.2"
        assert host["my-pack_2"].call.name() == "My_Pack_2.part"
        assert host["script"].manifest.timeouts.call == 30
        environment = host["script"].report.environment  # type: ignore[union-attr]
        assert environment.key == host["own.name"].report.environment.key  # type: ignore[union-attr]

    def test_wheels_of_ones_own(self) -> None:
        """Wheels in the extension's folder are found; elsewhere the host must allow them, and an index as well."""
        folder = self.root / "pack"
        wheels = folder / "wheels"
        wheels.mkdir(parents=True)
        wheel(wheels, "1.0", "X = 1\n")
        (folder / "requirements.txt").write_text("--find-links wheels\ntinything\n")
        (folder / "main.py").write_text("import tinything\ndef x(): return tinything.X\n")
        host = self.make_host(offline=True)
        assert host.load(folder).call.x() == 1
        outside = self.root / "outside"
        outside.mkdir()
        wheel(outside, "2.0", "X = 2\n")
        (folder / "requirements.txt").write_text("-f ../outside\ntinything>1\n")
        store = EnvironmentStore(self.store, offline=True)
        with pytest.raises(InvalidRequirementError, match=r"Policy\(allow_find_links="):
            store.ensure(read_manifest(folder))
        allowed = EnvironmentStore(self.store, Policy(allow_find_links=(f"{self.root}/*",)), offline=True)
        assert allowed.ensure(read_manifest(folder)).packages == ("tinything==2.0",)
        (folder / "requirements.txt").write_text("--extra-index-url https://wheels.invalid/cu121\ntinything\n")
        with pytest.raises(InvalidRequirementError, match=r"asks for the package index 'https://wheels.invalid/cu121'"):
            store.ensure(read_manifest(folder))

    def test_edited_local_dependency_is_built_again(self) -> None:
        """A dependency that is a local file gives another environment once it has changed."""
        file = wheel(self.root, "1.0", "X = 1\n")
        folder = self.create_extension(
            "local", "import tinything\ndef x(): return tinything.X", dependencies=[f"tinything @ {file.as_uri()}"]
        )
        host = self.make_host(policy=Policy(allow_paths=True), offline=True)
        extension = host.load(folder)
        assert extension.call.x() == 1
        wheel(self.root, "1.0", "X = 20\n")
        extension.reload()
        assert extension.call.x() == 20


def test_addresses_without_a_name(tmp_path: Path) -> None:
    """An address alone is refused with the line to write."""
    (tmp_path / "requirements.txt").write_text("git+https://host.invalid/x/img2texture.git@main\n")
    with pytest.raises(InvalidRequirementError, match=r"write 'img2texture @ git\+https://host\.invalid"):
        EnvironmentStore(tmp_path / "store").key_of(read_manifest(tmp_path))


def test_files_that_are_no_files(tmp_path: Path) -> None:
    """A named pipe must not stop the host, and a large file is not read to its end."""
    (tmp_path / "requirements.txt").write_text("-r more.txt\n")
    os.mkfifo(tmp_path / "more.txt")
    with pytest.raises(InvalidRequirementError, match="not a regular file"):
        read_manifest(tmp_path)
    (tmp_path / "more.txt").unlink()
    (tmp_path / "more.txt").touch()
    os.truncate(tmp_path / "more.txt", 1 << 40)
    with pytest.raises(InvalidRequirementError, match="too many bytes"):
        read_manifest(tmp_path)


def test_requirement_files(tmp_path: Path) -> None:
    """Comments, continuations, inclusions, short and long options."""
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "base.txt").write_text("b\n-c limits.txt\n")
    (tmp_path / "more" / "limits.txt").write_text("b<2\n")
    (tmp_path / "requirements.txt").write_bytes(
        b"\xef\xbb\xbf# first\r\n\r\na>=1,\\\r\n<2 ; python_version > '3'  # note\r\n-r more/base.txt\n"
        b"-i https://one.invalid/wheels\n--extra-index-url=https://two.invalid\n-f wheels\n--prefer-binary\n"
        b"--only-binary :all:\ngit+https://host.invalid/x.git@main#egg=x[extra]\nc @ https://host.invalid/c.whl#sha256=1\n"
    )
    found = read_requirement_file(tmp_path / "requirements.txt")
    assert found.requirements == [
        "a>=1, <2 ; python_version > '3'",
        "b",
        "x[extra] @ git+https://host.invalid/x.git@main",
        "c @ https://host.invalid/c.whl#sha256=1",
    ]
    assert (found.constraints, found.index) == (["b<2"], "https://one.invalid/wheels")
    assert (found.extra_indexes, found.find_links) == (["https://two.invalid"], [str(tmp_path / "wheels")])


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("a --hash=sha256:12", "line 2: the option --hash is not taken: hashes are in the lock file"),
        ("--no-binary :all:", r"--no-binary .*Policy\(allow_sdists=True\)"),
        ("-e .", "--editable is not taken"),
        ("-e.", "--editable is not taken"),
        ("--trusted-host x", "--trusted-host"),
        ("--never-heard-of", "--never-heard-of is not taken: it is not known here"),
        ("-z", "the option -z"),
        ("-r ../other.txt", "outside of the extension's folder"),
        ("-r https://x.invalid/r.txt", "outside of the extension's folder"),
        ("-r requirements.txt", "more than 5 deep"),
        ("-r missing.txt", "missing.txt: No such file"),
        ("--index-url", "has no value"),
        ("a==${VERSION}", "write the value"),
        ("--index-url 'x", "No closing quotation"),
    ],
)
def test_options_that_are_not_taken(tmp_path: Path, line: str, message: str) -> None:
    """Each is refused with file, line, name and what to do."""
    file = tmp_path / "requirements.txt"
    file.write_text(f"ok\n{line}\n")
    with pytest.raises(InvalidRequirementError, match=message):
        read_requirement_file(file)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.py", "# /// script\n# dependencies = [\n# ///\n", "not TOML"),
        ("a.py", "# /// script\n# x = 1\n# ///\n\n# /// script\n# x = 1\n# ///\n", "2 blocks"),
        ("a.py", '# /// script\n# requires-python = "<3.9"\n# ///\n', "3.11 to 3.14"),
        ("a.py", "# /// script\n# dependencies = [1]\n# ///\n", "dependencies"),
        ("a.py", "# /// script\n# [tool.isolate]\n# sandboxx = 1\n# ///\n", "did you mean 'sandbox'"),
        ("pyproject.toml", "[project]\nname='a'\ndynamic=['dependencies']\n", "dynamic"),
        ("pyproject.toml", "[project]\nname='a'\nrequires-python='?'\n", "no version specifier"),
        ("pyproject.toml", "[project]\nname='a'\n[tool]\nisolate=1\n", "no table"),
        ("pyproject.toml", "[tool.ruff]\n", "there is no manifest.yaml"),
    ],
)
def test_foreign_manifests_that_are_wrong(tmp_path: Path, name: str, text: str, message: str) -> None:
    """Each gives an error with its file."""
    (tmp_path / name).write_text(text)
    with pytest.raises(InvalidManifestError, match=message):
        read_manifest(tmp_path / name if name.endswith(".py") else tmp_path)


def test_pythons(tmp_path: Path) -> None:
    """The host's Python where it fits, else the newest that does."""
    script = tmp_path / "a.py"
    for wanted, python in ((">=3.11", None), ("==3.12.*", "3.12"), (">=3.12,<3.14", "3.13")):
        script.write_text(f'# /// script\n# requires-python = "{wanted}"\n# ///\n')
        found = read_manifest(script).python
        assert found == python or (found is None and sys.version_info >= (3, 12))
    script.write_text("x = 1\n")
    assert not is_extension(script)
    assert read_manifest(script).dependencies == ()  # asked for by name, a script needs no metadata


_LINES = st.sampled_from(
    ["# /// script", "# /// other \t", "# ///", "# /// ", "#", "# x = 1", "#x", "", "x", " # ///", "# /// a b"]
)
# As the specification of inline metadata has it; quadratic, so for short texts only.
_SPECIFIED = re.compile(r"(?m)^# /// (?P<type>[a-zA-Z0-9-]+)[ \t]*$\n(?P<content>(^#(| .*)$\n)+)^# ///[ \t]*$")


@given(st.lists(_LINES, max_size=12))
def test_blocks_are_those_of_the_specification(lines: list[str]) -> None:
    """The reader in one pass finds what the specified pattern finds."""
    specified = [(match["type"], match["content"].splitlines()) for match in _SPECIFIED.finditer("\n".join(lines))]
    assert list(_foreign_manifests._blocks(lines)) == specified


def test_a_script_of_many_starts_is_read_once(tmp_path: Path) -> None:
    """A pattern that searches from each start would read this file for hours, on the host's loop."""
    script = tmp_path / "a.py"
    script.write_text("# /// x\n" * 400_000)
    assert not _foreign_manifests.is_foreign(script)
