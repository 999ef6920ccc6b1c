"""What a pack and its packages try while its environment is built: nothing of theirs runs, and the policy holds."""

from __future__ import annotations

import shutil
import sys
import zipfile
from pathlib import Path

import pytest

from isolate import EnvironmentStore, Host, Manifest, Policy, read_manifest
from isolate._locks import Locks
from isolate._requirements import parse_lock
from isolate.errors import EnvironmentBuildError, InvalidRequirementError, IsolateError

HASH = "--hash=sha256:" + "a" * 64
BACKEND = """open({ran!r}, "w").write("ran")
def get_requires_for_build_wheel(config=None): return []
get_requires_for_build_editable = get_requires_for_build_wheel
"""


def wheel(folder: Path, name: str, files: dict[str, str]) -> Path:
    """Write a wheel with these files too; `PACKAGE` stands for what its own folders begin with."""
    place = folder / f"{name}-1-py3-none-any.whl"
    with zipfile.ZipFile(place, "w") as archive:
        info = f"{name}-1.dist-info"
        archive.writestr(f"{name}.py", "x = 1\n")
        archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1\n")
        archive.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: x\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        for path, text in files.items():
            archive.writestr(path.replace("PACKAGE", f"{name}-1"), text)
        archive.writestr(f"{info}/RECORD", "")
    return place


def pack(folder: Path, *dependencies: str) -> Manifest:
    """An extension that brings its own wheels."""
    (folder / "wheels").mkdir(parents=True, exist_ok=True)
    lines = [f"name: pack\ndependencies: {list(dependencies)}", "find_links: [wheels]"]
    (folder / "manifest.yaml").write_text("\n".join([*lines, "sandbox: {level: landlock}\n"]))
    (folder / "main.py").write_text("def fine(): return 1\n")
    return read_manifest(folder)


LINES = {
    "editable": "-e {source}",
    "editable, long": "--editable={source}",
    "folder": "{source}",
    "folder by name": "evil @ file://{source}",
    "folder beside": "./source",
    "wheel": "evil @ file://{source}/evil-1-py3-none-any.whl",
    "bare wheel": "evil-1-py3-none-any.whl",
    "address": "evil @ https://127.0.0.1:9/evil-1-py3-none-any.whl",
    "bare address": "https://127.0.0.1:9/evil-1-py3-none-any.whl",
    "repository": "evil @ git+file://{source}",
    "source allowed": "--no-binary :all:\nevil==1",
    "source allowed, beside": "evil==1 --no-binary=evil",
    "wheels not wanted": "--only-binary :none:\nevil==1",
    "index": "--index-url http://127.0.0.1:9/\nevil==1",
    "index, short": "-i http://127.0.0.1:9/",
    "second index": "--extra-index-url=http://127.0.0.1:9/",
    "links": "--find-links {source}",
    "links, short": "-f{source}",
    "file": "-r {source}/more.txt",
    "constraints": "--constraint {source}/more.txt",
    "settings": "evil==1 --config-settings=x=y",
    "continued": "evil==1 \\\n  --no-binary \\\n  evil",
    "after a hash": f"evil==1 {HASH} --no-binary=evil",
    "another line": "evil==1\r-e {source}",
    "form feed": "evil==1\f-e {source}",
    "line separator": "evil==1\u2028-e {source}",
    "not pinned": "evil>=1",
    "a pattern": "evil==1.*",
    "two pins": "evil==1,==2",
    "no version": "evil",
}


@pytest.mark.parametrize("name", LINES)
def test_a_lock_says_versions_and_nothing_else(name: str, tmp_path: Path) -> None:
    """The pack writes this file too, and its first line is no secret: an option or an address in it is refused."""
    source, ran = tmp_path / "source", tmp_path / "ran"
    source.mkdir()
    (source / "pyproject.toml").write_text(
        '[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["."]\n'
        '[project]\nname = "evil"\nversion = "1"\n'
    )
    (source / "backend.py").write_text(BACKEND.format(ran=str(ran)))
    (source / "setup.py").write_text(BACKEND.format(ran=str(ran)))
    manifest = pack(tmp_path / "pack")
    wheel(manifest.directory / "wheels", "evil", {})
    header = Locks(manifest, Policy(), []).header
    (manifest.directory / manifest.lock_file).write_text(f"{header}\n{LINES[name].format(source=source)}\n")
    with pytest.raises(InvalidRequirementError):
        EnvironmentStore(tmp_path / "store", offline=True).ensure(manifest)
    assert not ran.exists()
    assert not (tmp_path / "store" / "envs").exists()


def test_an_address_carries_no_variable_of_the_host_away(tmp_path: Path) -> None:
    """In place of `${NAME}` uv puts the value, so one of a pack could send a secret to its author."""
    line = "evil @ http://127.0.0.1:9/${HOME}/evil-1-py3-none-any.whl"
    policy = Policy(allow_urls=True, allow_paths=True)
    for manifest in (
        Manifest(name="pack", directory=tmp_path, dependencies=(line,)),
        Manifest(name="pack", directory=tmp_path, dependencies=("evil",), constraints=(line,)),
    ):
        with pytest.raises(InvalidRequirementError, match="variable of the environment"):
            EnvironmentStore(tmp_path / "store", policy).ensure(manifest)
    with pytest.raises(InvalidRequirementError, match="variable of the environment"):
        parse_lock(f"{line}\n", policy, "pack")


def test_locks_as_uv_writes_them() -> None:
    """Pins, hashes, markers, extras and comments are kept; addresses are where the policy allows them."""
    text = (
        f"# a comment\nnumpy==2.0.0 ; python_full_version >= '3.12' \\\n    {HASH} \\\n    {HASH}\n"
        f"    # via something\nTorch[cuda]==2.6.0+cu124 \\\r\n    {HASH}\r\n"
    )
    lines = (
        f'numpy==2.0.0; python_full_version >= "3.12" \\\n    {HASH} \\\n    {HASH}\n'
        f"torch[cuda]==2.6.0+cu124 \\\n    {HASH}\n"
    )
    assert parse_lock(text, Policy(), "a") == parse_lock(lines, Policy(), "a") == lines
    assert parse_lock("", Policy(), "a") == ""
    assert parse_lock("evil==1 # a comment that goes on \\\n-e /evil\n", Policy(), "a") == "evil==1\n"
    address = f"evil @ https://example.com/evil-1.whl#sha256=ab \\\n    {HASH}\n"
    assert parse_lock(address, Policy(allow_urls=True), "a") == address


FILES = {
    "pyvenv.cfg": "PACKAGE.data/data/pyvenv.cfg",
    "pyvenv.cfg in bin": "PACKAGE.data/data/bin/pyvenv.cfg",
    "interpreter": "PACKAGE.data/data/bin/python",
    "path file as a script": "PACKAGE.data/scripts/python._pth",
}


@pytest.mark.parametrize("name", FILES)
def test_a_package_cannot_choose_the_standard_library(name: str, tmp_path: Path) -> None:
    """With a `pyvenv.cfg` of its own, the interpreter would run the package's code before the worker is confined."""
    folder, ran = tmp_path / "pack", tmp_path / "ran"
    manifest = pack(folder, "evil==1")
    library = f"lib/python3.{sys.version_info[1]}"
    for path in (Path(sys.base_prefix) / library).iterdir():
        (folder / "evil" / library).mkdir(parents=True, exist_ok=True)
        if path.name == "socket.py":
            (folder / "evil" / library / path.name).write_text(f"{path.read_text()}\nopen({str(ran)!r}, 'w').close()\n")
        elif path.name != "site-packages":
            (folder / "evil" / library / path.name).symlink_to(path)
    (folder / "evil" / "bin").mkdir()
    wheel(folder / "wheels", "evil", {FILES[name]: "home = evil/bin\ninclude-system-site-packages = false\n"})
    with Host(tmp_path / "store", offline=True) as host, pytest.raises(EnvironmentBuildError):
        host.load(folder)
    assert not ran.exists()
    assert list((tmp_path / "store" / "tmp").iterdir()) == []
    with pytest.raises(IsolateError):
        EnvironmentStore(tmp_path / "store", offline=True).ensure(manifest)


def test_packages_that_are_no_attack(tmp_path: Path) -> None:
    """Scripts whose names only begin alike, and data, are installed."""
    folder = tmp_path / "pack"
    manifest = pack(folder, "good==1")
    files = {"PACKAGE.data/scripts/python-good": "#!python\n", "PACKAGE.data/data/share/pyvenv.cfg": "home = x\n"}
    wheel(folder / "wheels", "good", files)
    environment = EnvironmentStore(tmp_path / "store", offline=True).ensure(manifest)
    assert environment.packages == ("good==1",)
    assert (environment.path / "bin" / "python-good").exists()
    shutil.rmtree(environment.path)
