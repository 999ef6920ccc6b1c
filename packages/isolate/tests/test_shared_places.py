"""The store in a place that others reach: nothing of theirs is read, run, followed or waited for.

What a second user plants is made by this user and given to that one, which needs root; an ordinary user runs the rest.
"""

from __future__ import annotations

import json
import os
import shutil
import stat
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from isolate import EnvironmentStore, Manifest, read_manifest
from isolate._cgroup import Group
from isolate._cli import main
from isolate._places import spread, sweep, workplace
from isolate.errors import EnvironmentBuildError, InvalidManifestError, LockOutOfDateError, UnsafeStoreError

SECOND = 65534
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files to a second user")


def given(path: Path) -> Path:
    """Give a path to the second user, where this user may."""
    if os.geteuid() == 0:
        os.lchown(path, SECOND, SECOND)
    return path


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    """An extension without dependencies."""
    folder = tmp_path_factory.mktemp("extension") / "a"
    folder.mkdir()
    (folder / "manifest.yaml").write_text("name: a\n")
    (folder / "main.py").write_text("def fine(): return 1\n")
    return read_manifest(folder)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory, manifest: Manifest) -> Path:
    """A store with the environment of that extension."""
    root = tmp_path_factory.mktemp("built") / "store"
    EnvironmentStore(root).ensure(manifest)
    return root


@pytest.fixture
def own(built: Path, tmp_path: Path) -> Path:
    """A copy of that store for one test."""
    return Path(shutil.copytree(built, tmp_path / "store", symlinks=True))


USES: dict[str, Callable[[EnvironmentStore, Manifest, str], object]] = {
    "ensure": lambda store, manifest, key: store.ensure(manifest),
    "find": lambda store, manifest, key: store.find(key),
    "hold": lambda store, manifest, key: store.hold(key),
    "verify": lambda store, manifest, key: store.verify(key),
    "gc": lambda store, manifest, key: store.gc(set()),
}


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize("mode", [0o777, 0o770, 0o707, 0o2775])
def test_a_store_that_others_can_write_is_refused(own: Path, manifest: Manifest, mode: int, use: str) -> None:
    """Each way into it names the folder and the remedy, and the remedy helps."""
    store = EnvironmentStore(own)
    _, key = store.key_of(manifest)
    if os.geteuid() == 0:
        os.chown(own, 0, SECOND)
    own.chmod(mode)
    with pytest.raises(UnsafeStoreError, match=f"chmod go-w {own}"):
        USES[use](store, manifest, key)
    subprocess.run(["chmod", "go-w", str(own)], check=True)
    assert store.ensure(manifest).path == own / "envs" / key


def test_a_folder_above_the_store_that_others_can_write(tmp_path: Path, manifest: Manifest) -> None:
    """They could replace the store as a whole; in a sticky folder they cannot."""
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o777)
    with pytest.raises(UnsafeStoreError, match=f"chmod go-w {shared}"):
        EnvironmentStore(shared / "deep" / "store").ensure(manifest)
    assert list(shared.iterdir()) == []
    shared.chmod(0o1777)
    assert EnvironmentStore(shared / "deep" / "store").ensure(manifest).origin == "built"


@as_root
@pytest.mark.parametrize("what", ["store", "envs", "environment", "link", "link inside"])
def test_what_a_second_user_owns_is_refused(own: Path, manifest: Manifest, what: str) -> None:
    """A folder or link of theirs is neither used nor followed, though its mode looks private."""
    store = EnvironmentStore(own)
    _, key = store.key_of(manifest)
    aside = own.with_name("aside")
    if what == "link":
        own.rename(aside)
        own.symlink_to(aside)
        given(own)
    elif what == "link inside":
        (own / "envs").rename(aside)
        (own / "envs").symlink_to(aside)
        given(own / "envs")
    else:
        given({"store": own, "envs": own / "envs", "environment": own / "envs" / key}[what])
    with pytest.raises(UnsafeStoreError, match="user"):
        store.ensure(manifest)


def test_links_of_this_user_are_followed(own: Path, manifest: Manifest) -> None:
    """A store on another disk by a link of one's own works as before."""
    link = own.with_name("link")
    link.symlink_to("store")
    assert EnvironmentStore(link).ensure(manifest).origin == "ready"


PLANTED = ["tmp", "locks", "envs", "locks/{key}.use", "locks/{key}.build.flock", "envs/{key}/.isolate.json"]


@pytest.mark.timeout(20)
@pytest.mark.parametrize("kind", ["pipe", "link", "dangling", "loop", "folder"])
@pytest.mark.parametrize("place", PLANTED)
def test_planted_names_neither_block_nor_lead_elsewhere(
    own: Path, tmp_path: Path, manifest: Manifest, place: str, kind: str
) -> None:
    """Wherever a name pipe or a link waits in the store, each use ends at once and touches nothing outside."""
    store = EnvironmentStore(own)
    _, key = store.key_of(manifest)
    outside, absent = tmp_path / "outside", tmp_path / "absent"
    outside.write_text("untouched")
    path = own / place.format(key=key)
    if path.is_dir():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)
    if kind == "pipe":
        os.mkfifo(path, 0o666)
    elif kind == "folder":
        path.mkdir()
    else:
        path.symlink_to({"link": outside, "dangling": absent, "loop": path}[kind])
    given(path)
    for use in USES.values():
        try:
            made = use(store, manifest, key)
            if hasattr(made, "close"):
                made.close()
        except (UnsafeStoreError, EnvironmentBuildError, OSError):
            continue
    assert outside.read_text() == "untouched"
    assert not absent.exists()


@pytest.mark.timeout(20)
def test_extension_folders_with_pipes(tmp_path: Path, manifest: Manifest) -> None:
    """A manifest or lock file that is no file is an error at once."""
    folder = tmp_path / "a"
    folder.mkdir()
    os.mkfifo(folder / "manifest.yaml")
    with pytest.raises(InvalidManifestError):
        read_manifest(folder)
    (folder / "manifest.yaml").unlink()
    (folder / "manifest.yaml").write_text("name: a\n")
    os.mkfifo(folder / "isolate.lock")
    with pytest.raises(LockOutOfDateError, match="not a regular file"):
        EnvironmentStore(tmp_path / "store").ensure(read_manifest(folder))


@pytest.fixture
def any_umask() -> Iterator[None]:
    """Restore the umask after a test."""
    before = os.umask(0o022)
    os.umask(before)
    yield
    os.umask(before)


@pytest.mark.parametrize("umask", [0o000, 0o077, 0o777])
def test_modes_do_not_depend_on_the_umask(any_umask: None, tmp_path: Path, manifest: Manifest, umask: int) -> None:
    """Folders are 0700 and lock files 0600; nothing in an environment can be written by others."""
    os.umask(umask)
    environment = EnvironmentStore(tmp_path / "store").ensure(manifest)
    with EnvironmentStore(tmp_path / "store").hold(environment.key):
        pass
    os.umask(0o022)
    for folder in ("", "envs", "locks", "tmp"):
        assert stat.S_IMODE((tmp_path / "store" / folder).stat().st_mode) == 0o700
    for path in (tmp_path / "store" / "locks").iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    for path in environment.path.rglob("*"):
        assert path.is_symlink() or not path.stat().st_mode & 0o022, path


def test_builds_in_progress_are_not_swept(tmp_path: Path) -> None:
    """A folder that a process writes stays, whatever clock or process ids say; one whose maker was killed goes."""
    code = """
    import sys, time
    from pathlib import Path
    from isolate._places import workplace
    with workplace(Path(sys.argv[1])) as path:
        (path / "half").write_text("written")
        print(path, flush=True)
        time.sleep(60)
    """
    command = [sys.executable, "-c", textwrap.dedent(code), str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        path = Path(other.stdout.readline().strip())
        os.utime(path, (0, 0))
        sweep(tmp_path)
        assert (path / "half").exists()
        other.kill()
    sweep(tmp_path)
    assert list(tmp_path.iterdir()) == []
    with workplace(tmp_path) as path:
        sweep(tmp_path)
        assert path.exists()
    assert list(tmp_path.iterdir()) == []


def test_builds_and_sweeps_at_once(tmp_path: Path) -> None:
    """Hosts that start together make, sweep and remove workplaces at once: each keeps its own, and none is left."""
    end = time.monotonic() + 1
    done = []

    def build(name: str) -> None:
        while time.monotonic() < end:
            with workplace(tmp_path, name) as path:
                (path / threading.current_thread().name).touch(exist_ok=False)
                time.sleep(0)
                assert os.listdir(path) == [threading.current_thread().name]
                done.append(name)

    def clean() -> None:
        while time.monotonic() < end:
            sweep(tmp_path)

    with ThreadPoolExecutor() as pool:
        for work in [
            *(pool.submit(build, name) for name in ("", "", "same", "same")),
            *(pool.submit(clean) for _ in range(2)),
        ]:
            work.result()
    assert {"", "same"} <= set(done)
    sweep(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_new_environments_are_placed_apart(tmp_path: Path) -> None:
    """On ext4 each build gets a place where no files have been removed; elsewhere nothing changes and nothing fails."""

    def attributes() -> str:
        return subprocess.run(["lsattr", "-d", str(tmp_path)], capture_output=True, text=True).stdout.split(" ")[0]

    kind = subprocess.run(["stat", "-f", "-c", "%T", str(tmp_path)], capture_output=True, text=True).stdout.strip()
    spread(tmp_path)
    spread(tmp_path)
    spread(Path("/dev/shm"))
    with workplace(tmp_path) as path:
        assert path.exists()
    if kind == "ext2/ext3" and shutil.which("lsattr"):
        assert "T" in attributes()


def test_groups_of_hosts_that_were_killed_are_swept() -> None:
    """A control group outlives its processes; the next host removes it, and no group that is in use or new."""
    group = Group(None)
    if group.path is None:
        pytest.skip("this process may not make control groups")
    with subprocess.Popen(["sleep", "60"]) as held:
        left = [group.path.with_name(f"isolate-{2**22 + number}-left") for number in range(3)]
        try:
            for path in left:
                path.mkdir()
            (left[1] / "cgroup.procs").write_text(str(held.pid))
            code = (
                "import sys, isolate._cgroup as groups; groups._NEW = float(sys.argv[1]); "
                "print(groups.Group(None).remove())"
            )
            for new, stay in ((60, [True, True, True]), (0, [False, True, False])):
                run = subprocess.run([sys.executable, "-c", code, str(new)], capture_output=True, text=True)
                assert run.stdout == "True\n", run.stderr
                assert [path.exists() for path in left] == stay
            assert group.path.exists()
        finally:
            held.kill()
            held.wait()
            for path in left:
                if path.exists():
                    path.rmdir()
            assert group.remove()


MARKERS = {
    "empty": b"",
    "no object": b"[]",
    "no keys": b"{}",
    "old": b'{"packages": [], "inputs": "", "extension": "a"}',
    "wrong types": b'{"packages": 1, "inputs": [], "extension": null, "files": {}}',
    "short rows": b'{"packages": [], "inputs": "", "extension": "a", "files": [["x"]]}',
    "deep": b"[" * 100_000,
    "bytes": bytes(range(256)),
}


@pytest.mark.parametrize("name", MARKERS)
def test_damaged_markers(own: Path, manifest: Manifest, name: str) -> None:
    """An environment whose marker is damaged is not complete, and is built again."""
    store = EnvironmentStore(own)
    _, key = store.key_of(manifest)
    (own / "envs" / key / ".isolate.json").write_bytes(MARKERS[name])
    assert store.find(key) is None
    assert store.verify(key) == ["it is not complete"]
    assert store.ensure(manifest).origin == "built"


DAMAGES: dict[str, Callable[[Path], object]] = {
    "an edit": lambda folder: (folder / "pyvenv.cfg").write_text("home = /tmp\n"),
    "a truncated file": lambda folder: os.truncate(folder / "pyvenv.cfg", 0),
    "a missing file": lambda folder: (folder / "pyvenv.cfg").unlink(),
    "another interpreter": lambda folder: (
        (folder / "bin" / "python").unlink(),
        (folder / "bin" / "python").symlink_to("/x"),
    ),
    "a missing folder": lambda folder: shutil.rmtree(folder / "lib"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_damage_is_noticed_and_mended(
    own: Path, manifest: Manifest, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """`list` does not call it ready, `verify` names it, and the next use builds it again."""
    store = EnvironmentStore(own)
    folder = store.ensure(manifest).path
    DAMAGES[name](folder)
    place = str(manifest.directory)
    assert main(["--store", str(own), "--json", "list", place]) == 0
    assert json.loads(capsys.readouterr().out)[0]["state"] == "not built"
    assert main(["--store", str(own), "verify", place]) == 1
    assert "damaged" in capsys.readouterr().out
    environment = store.ensure(manifest)
    assert environment.origin == "built"
    assert store.verify(environment.key) == []


def test_verify_reads_contents_and_repair_builds_anew(
    own: Path, manifest: Manifest, capsys: pytest.CaptureFixture[str]
) -> None:
    """An edit that keeps size and time, and a file that was added, are found and mended too."""
    store = EnvironmentStore(own)
    environment = store.ensure(manifest)
    assert main(["--store", str(own), "verify", str(manifest.directory)]) == 0
    script = environment.path / "pyvenv.cfg"
    before, text = script.stat(), script.read_bytes()
    script.write_bytes(b"X" + text[1:])
    os.utime(script, ns=(before.st_atime_ns, before.st_mtime_ns))
    (environment.site_packages / "evil.pth").write_text("import os")
    added = str((environment.site_packages / "evil.pth").relative_to(environment.path))
    assert store.verify(environment.key) == [f"{added} was added", "pyvenv.cfg was changed"]
    assert main(["--store", str(own), "repair", str(manifest.directory)]) == 0
    assert "built anew" in capsys.readouterr().out
    assert store.verify(environment.key) == []
    assert script.read_bytes() == text
    assert main(["--store", str(own), "repair", str(manifest.directory)]) == 0
    assert "nothing to repair" in capsys.readouterr().out
    assert list((own / "tmp").iterdir()) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a small file system")
def test_a_full_disk_is_a_typed_error(tmp_path: Path) -> None:
    """On a file system of some kilobytes, building fails with our error and leaves nothing."""
    folder = tmp_path / "extension"
    folder.mkdir()
    (folder / "manifest.yaml").write_text("name: full\ndependencies: [packaging==23.2]\n")
    place = tmp_path / "small"
    place.mkdir()
    code = """
    import ctypes, os, sys
    from pathlib import Path
    from isolate import EnvironmentStore, read_manifest
    from isolate.errors import EnvironmentBuildError
    libc = ctypes.CDLL(None, use_errno=True)
    place, private = sys.argv[1].encode(), 1 << 14 | 1 << 18
    failed = libc.unshare(0x00020000) or libc.mount(b"none", b"/", None, private, None)
    if failed or libc.mount(b"none", place, b"tmpfs", 0, b"size=" + sys.argv[3].encode()):
        print("no mount")
        sys.exit()
    try:
        EnvironmentStore(Path(sys.argv[1]) / "store").ensure(read_manifest(sys.argv[2]))
    except EnvironmentBuildError as failure:
        left = list((Path(sys.argv[1]) / "store").glob("tmp/*")) + list((Path(sys.argv[1]) / "store").glob("envs/*"))
        print("typed", left, "No space" in str(failure) or "os error 28" in str(failure))
    """
    for size in ("4k", "24k", "120k"):
        command = [sys.executable, "-c", textwrap.dedent(code), str(place), str(folder), size]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.stdout == "no mount\n":
            pytest.skip("no file system can be mounted here")
        assert done.stdout == "typed [] True\n", (size, done)
