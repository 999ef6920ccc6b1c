"""Another user plants things where zerocopy keeps its files: nothing waits, and nothing planted is read or followed."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import signal
import socket
import stat
import tempfile
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import zerocopy
from zerocopy import ModelRef, ZerocopyError
from zerocopy import _directory as places
from zerocopy._segment import checking
from zerocopy.errors import SegmentGoneError, UntrustedPathError, UnusableDirectoryError

Publish = Callable[..., ModelRef]
pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
ATTACKER, ORDINARY = 65534, 54321
VICTIMS = [pytest.param(0, id="root"), pytest.param(ORDINARY, id="user")]
needs_root = pytest.mark.skipif(
    not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root can act as two other users"
)
MODEL = {"w": torch.arange(2000.0)}


def as_user(user: int, act: Callable[[], object]) -> None:
    """Run a function as another user in a forked child, which an alarm ends if it waits for anything."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            signal.alarm(200)
            os.setgroups([])
            os.setgid(user)
            os.setuid(user)
            act()
            status = 0
        except BaseException:  # of any type: it is shown, and the child ends here
            traceback.print_exc()
        finally:
            os._exit(status)
    assert os.waitpid(child, 0)[1] == 0


@pytest.fixture
def shared() -> Iterator[Path]:
    """A folder as /tmp: every user can put files into it, and change their own alone."""
    folder = Path(tempfile.mkdtemp(prefix="zerocopy-test-", dir="/tmp"))
    folder.chmod(0o1777)
    yield folder
    shutil.rmtree(folder)


def fifo(path: Path) -> None:
    """Plant a FIFO, whose opening waits for a writer."""
    os.mkfifo(path, 0o666)


def link(path: Path) -> None:
    """Plant a link to a file that the attacker cannot write."""
    path.symlink_to(path.parent / "canary")


def zero(path: Path) -> None:
    """Plant a link to a device that never ends."""
    path.symlink_to("/dev/zero")


def folder(path: Path) -> None:
    """Plant a folder."""
    path.mkdir(0o777)


def file(path: Path) -> None:
    """Plant a file that starts like a segment."""
    path.write_bytes(b"ZEROCOPY" + bytes(5000))
    path.chmod(0o666)


def listening(path: Path) -> None:
    """Plant a socket."""
    with socket.socket(socket.AF_UNIX) as end:
        end.bind(str(path))


PLANTS = (fifo, link, zero, folder, file, listening)
NAMES = (
    "net@1-00000000.zc", "net@99-00000000.zc", "net@current", "net@last", "net@current.part", "net@last.part",
    "net@0-0.zc.gate.part", "net@0-00000000.zc.part", "other@current", "other@2-00000000.zc",
)  # fmt: skip


def attempt(act: Callable[[], Any]) -> Any:
    """Return what a call returns, or the typed error that it raises."""
    try:
        return act()
    except ZerocopyError as error:
        return error


@needs_root
@pytest.mark.parametrize("victim", VICTIMS)
@pytest.mark.parametrize("plant", PLANTS)
def test_everything_is_planted_in_a_shared_folder(plant: Callable[[Path], None], victim: int, shared: Path) -> None:
    """Each name is taken by something of another user: each call works or raises a typed error, and changes nothing."""

    def attack() -> None:
        for name in NAMES:
            plant(shared / name)

    def use() -> None:
        canary = shared / "canary"
        canary.write_text("precious")
        ref = attempt(lambda: zerocopy.publish(MODEL, name="mine", directory=shared, keep=True))
        assert torch.equal(ref.load(cached=False)["w"], MODEL["w"])
        assert zerocopy.current("mine", directory=shared) == ref
        taken = attempt(lambda: zerocopy.publish(MODEL, name="net", directory=shared, keep=True))
        assert isinstance(taken, UnusableDirectoryError)  # its link is another user's
        for name in ("net", "other"):
            for call in (zerocopy.current, zerocopy.follow):
                assert isinstance(attempt(lambda name=name, call=call: call(name, directory=shared)), ZerocopyError)
        shared_error = attempt(lambda: zerocopy.share("net", lambda: MODEL, directory=shared, timeout=1))
        assert isinstance(shared_error, ZerocopyError)
        assert zerocopy.sweep(shared) == []
        report = zerocopy.report(directory=shared, pids=[])
        assert [info.name for info in report.segments] == ["mine"]
        assert {entry.file for entry in report.unreadable} == {name for name in NAMES if name.endswith(".zc")}
        assert canary.read_text() == "precious"
        zerocopy.unpublish(ref)

    as_user(ATTACKER, attack)
    before = {name: os.lstat(shared / name) for name in NAMES}
    as_user(victim, use)
    after = {name: os.lstat(shared / name) for name in NAMES}
    assert [(s.st_ino, s.st_size, s.st_mode) for s in before.values()] == [
        (s.st_ino, s.st_size, s.st_mode) for s in after.values()
    ]
    assert {path.name for path in shared.iterdir()} == {*NAMES, "canary"}


def taken_folder(path: Path) -> None:
    """Plant a whole segment directory, with a FIFO in it that is called current."""
    path.mkdir(0o777)
    path.chmod(0o777)
    fifo(path / "net@1-00000000.zc")
    (path / "net@current").symlink_to("net@1-00000000.zc")
    (path / "verified").mkdir(0o777)


def link_to_a_folder(path: Path) -> None:
    """Plant a link to a folder."""
    path.symlink_to(path.parent)


@needs_root
@pytest.mark.parametrize("victim", VICTIMS)
@pytest.mark.parametrize("plant", [*PLANTS, taken_folder, link_to_a_folder])
def test_the_default_directory_is_taken(
    plant: Callable[[Path], None], victim: int, shared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The user's own directory was made by another: publish and the readers of names refuse, the others say so."""
    monkeypatch.setattr(places, "memory_folder", lambda: shared)
    monkeypatch.delenv("ZEROCOPY_DIRECTORY")

    def use() -> None:
        calls: list[Callable[[], Any]] = [
            lambda: zerocopy.publish(MODEL, name="net", keep=True),
            lambda: zerocopy.share("net", lambda: MODEL, timeout=1),
            lambda: zerocopy.current("net"),
            lambda: zerocopy.follow("net"),
        ]
        for call in calls:
            error = attempt(call)
            assert isinstance(error, UntrustedPathError), error
            assert "made for this user alone" in str(error)
        assert attempt(zerocopy.sweep) == []
        assert [entry.file for entry in zerocopy.report(pids=[]).unreadable][:1] == [""]

    as_user(ATTACKER, lambda: plant(shared / f"zerocopy-{victim}"))
    before = sorted(shared.rglob("*"))
    as_user(victim, use)
    assert sorted(shared.rglob("*")) == before


@needs_root
def test_a_segment_of_another_user_is_not_read(shared: Path) -> None:
    """A genuine segment that another user owns is refused by its owner; one of root's serves everybody."""
    ref = zerocopy.publish(MODEL, directory=shared / "mine", keep=True)
    path = Path(ref.path)
    path.parent.chmod(0o755)
    path.chmod(0o444)

    def refused() -> None:
        with pytest.raises(UntrustedPathError, match=f"belongs to user {ATTACKER}"):
            ref.load(cached=False)

    def loaded() -> None:
        assert torch.equal(ref.load(cached=False)["w"], MODEL["w"])

    as_user(ORDINARY, loaded)
    os.chown(path, ATTACKER, ATTACKER)
    as_user(0, refused)
    as_user(ORDINARY, refused)
    as_user(ATTACKER, loaded)
    os.chown(path, 0, 0)
    zerocopy.unpublish(ref)


def test_a_segment_that_others_can_write(tmp_path: Path, publish: Publish) -> None:
    """It is refused by its mode before anything of it is read."""
    ref = publish(MODEL, directory=tmp_path)
    for mode in (0o420, 0o602):
        os.chmod(ref.path, mode)
        with pytest.raises(UntrustedPathError, match="can be written by other users"):
            ref.load(cached=False)
    (entry,) = zerocopy.report(directory=tmp_path).unreadable
    assert entry.file == Path(ref.path).name
    assert "can be written by other users" in entry.reason
    assert f"not read: {entry.file}" in str(zerocopy.report(directory=tmp_path))
    os.chmod(ref.path, 0o400)


@pytest.mark.parametrize("mode", [0o777, 0o775, 0o757])
def test_a_folder_that_others_can_write(mode: int, tmp_path: Path) -> None:
    """It is refused, and the message says what to do; a folder inside it is made for this user and will do."""
    open_folder = tmp_path / "open"
    open_folder.mkdir()
    open_folder.chmod(mode)
    for call in (
        lambda: zerocopy.publish(MODEL, directory=open_folder),
        lambda: zerocopy.current("net", directory=open_folder),
        lambda: zerocopy.share("net", lambda: MODEL, directory=open_folder),
    ):
        with pytest.raises(UntrustedPathError, match=r"a folder inside it.*chmod go-w"):
            call()
    assert list(open_folder.iterdir()) == []
    zerocopy.unpublish(zerocopy.publish(MODEL, directory=open_folder / "mine"))
    assert stat.S_IMODE((open_folder / "mine").stat().st_mode) == 0o700


@pytest.mark.parametrize("umask", [0, 0o022, 0o077, 0o277, 0o777], ids=oct)
def test_modes_do_not_depend_on_the_umask(umask: int, tmp_path: Path) -> None:
    """What is made is for this user alone, and this user can use it."""
    before = os.umask(umask)
    try:
        ref = zerocopy.publish(MODEL, name="net", directory=tmp_path / "a" / "b")
        paths = [path for path in (tmp_path / "a").rglob("*") if not path.is_symlink()]
        modes = {path: stat.S_IMODE(path.stat().st_mode) for path in paths}
        assert modes.pop(tmp_path / "a" / "b") == 0o700
        assert set(modes.values()) == {0o400}
        assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o700
        assert torch.equal(ref.load(cached=False)["w"], MODEL["w"])
        zerocopy.unpublish(ref)
    finally:
        os.umask(before)


def test_a_lock_that_is_not_released(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that holds the folder's lock for good stops a publish with an error, not for good."""
    holder = os.open(tmp_path, os.O_RDONLY)
    fcntl.flock(holder, fcntl.LOCK_SH)
    try:
        with monkeypatch.context() as impatient:
            impatient.setattr("zerocopy._lease.PATIENCE", 0.2)
            impatient.setattr("zerocopy._caretaker_process.PATIENCE", 0.2)
            with pytest.raises(UnusableDirectoryError, match=r"has held the lock.*chmod 700"):
                zerocopy.publish(MODEL, name="net", directory=tmp_path)
    finally:
        os.close(holder)
    zerocopy.unpublish(zerocopy.publish(MODEL, name="net", directory=tmp_path))


def test_a_note_that_is_none(tmp_path: Path) -> None:
    """Another process holds a FIFO that is called like the notes of released tensors: a report does not wait for it."""
    path = tmp_path / "zerocopy-released"
    os.mkfifo(path)
    child = os.fork()
    if child == 0:
        os.open(path, os.O_RDWR)
        signal.pause()
    try:
        assert zerocopy.report(directory=tmp_path, pids=[child]).views == ()
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def test_names_that_are_no_links(tmp_path: Path, publish: Publish) -> None:
    """Files and folders that are called like a name's links are not believed, and a report goes on."""
    (tmp_path / "odd@current").write_text("odd@1-00000000.zc")
    (tmp_path / "else@current").mkdir()
    (tmp_path / "away@current").symlink_to("../../etc/passwd")
    ref = publish(MODEL, name="net", directory=tmp_path)
    assert [info.name for info in zerocopy.report(directory=tmp_path).segments] == ["net"]
    assert zerocopy.current("net", directory=tmp_path) == ref
    for name in ("odd", "else", "away"):
        with pytest.raises(zerocopy.errors.UnknownNameError):
            zerocopy.current(name, directory=tmp_path)
    zerocopy.sweep(tmp_path)
    assert (tmp_path / "odd@current").read_text() == "odd@1-00000000.zc"


def test_removed_while_it_was_opened(tmp_path: Path, publish: Publish, monkeypatch: pytest.MonkeyPatch) -> None:
    """A segment that is removed between opening and leasing it is gone, although its bytes could still be read."""
    ref = publish(MODEL, directory=tmp_path)
    real = checking.share

    def late(fd: int, path: str) -> None:
        os.unlink(path)
        real(fd, path)

    monkeypatch.setattr(checking, "share", late)
    with pytest.raises(SegmentGoneError, match="was removed"):
        ref.load(cached=False)


def test_planted_notes_verify_nothing(tmp_path: Path, publish: Publish, monkeypatch: pytest.MonkeyPatch) -> None:
    """A link in the folder of notes, or a folder that others can write, is no proof that a copy was verified."""
    from zerocopy._segment import verified

    monkeypatch.setattr(places, "memory_folder", lambda: tmp_path)
    monkeypatch.delenv("ZEROCOPY_DIRECTORY")
    ref = publish(MODEL, directory=tmp_path / "segments")
    head = checking.open_segment(Path(ref.path))
    try:
        os.utime(ref.path, ns=(1, 1))
        notes = places.prepare(None) / "verified"
        with contextlib.suppress(FileNotFoundError):
            assert not verified.is_verified(head.fd, head.manifest)
        monkeypatch.setattr(verified.time, "time_ns", lambda: os.fstat(head.fd).st_ctime_ns + 10**9)
        verified.note_verified(head.fd, head.manifest)
        assert verified.is_verified(head.fd, head.manifest)
        (note,) = notes.iterdir()
        assert stat.S_IMODE(note.stat().st_mode) == 0o600
        notes.chmod(0o777)
        assert not verified.is_verified(head.fd, head.manifest)
        notes.chmod(0o700)
        note.rename(tmp_path / "moved")
        note.symlink_to(tmp_path / "moved")
        assert not verified.is_verified(head.fd, head.manifest)
    finally:
        os.close(head.fd)
        from zerocopy import _lease

        _lease.inherit(head.fd)


def test_two_programs_keep_apart(fresh_run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`ZEROCOPY_DIRECTORY` gives a program, its children and the command line names of their own."""
    monkeypatch.setenv("ZEROCOPY_DIRECTORY", str(tmp_path / "one"))
    ref = zerocopy.publish(MODEL, name="classifier")
    assert Path(ref.path).parent == tmp_path / "one"
    listed = fresh_run("-m", "zerocopy", "report", "--json").stdout
    assert [segment["name"] for segment in json.loads(listed)["segments"]] == ["classifier"]
    monkeypatch.setenv("ZEROCOPY_DIRECTORY", str(tmp_path / "two"))
    with pytest.raises(zerocopy.errors.UnknownNameError):
        zerocopy.current("classifier")
    other = zerocopy.publish(MODEL, name="classifier")
    assert (other.version, Path(other.path).parent) == (1, tmp_path / "two")
    zerocopy.unpublish(ref)
    zerocopy.unpublish(other)
    monkeypatch.delenv("ZEROCOPY_DIRECTORY")
    assert places.default_directory().name.startswith("zerocopy-")
