"""Another user plants files, pipes, folders and links in the shared places: none is waited for, followed or believed.

The tests run as root, which acts as two ordinary users in child processes.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import pickle
import shutil
import signal
import socket
import stat
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import xfer
from xfer import _cli as cli
from xfer import errors
from xfer._channel import board
from xfer._shared import bequest, names
from xfer._shared.files import check_folder, open_own

pytestmark = pytest.mark.skipif(
    not hasattr(os, "geteuid") or os.geteuid() != 0 or not os.path.isdir("/proc/self/fd"),
    reason="only root can act as a second user, and this needs Linux",
)
STRANGER, ORDINARY = 65534, 64999
_SET_DUMPABLE = 4


def as_user(uid: int, call: Callable[[], Any]) -> Any:
    """Call a function in a child process of another user; return its result, or the name of what it raised."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            signal.alarm(100)
            os.setgroups([])
            os.setgid(uid)
            os.setuid(uid)
            ctypes.CDLL(None).prctl(_SET_DUMPABLE, 1)  # so that the process may look into its own /proc
            os.write(write, pickle.dumps(outcome(call)))
        finally:
            os._exit(0)
    os.close(write)
    with open(read, "rb") as answer:
        said = answer.read()
    os.waitpid(child, 0)
    assert said, "the child waited, or crashed"
    return pickle.loads(said)


def outcome(call: Callable[[], Any]) -> Any:
    """Return what a call returns, or the name of the error that it raises; it must not wait."""
    start = time.monotonic()
    try:
        return call()
    except Exception as error:
        return type(error).__name__
    finally:
        assert time.monotonic() - start < 20


@pytest.fixture
def place(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A folder that all users share, in the place of /dev/shm, and in it a canary of the stranger's."""
    folder = tempfile.mkdtemp(prefix="users-", dir="/dev/shm")
    os.chmod(folder, 0o1777)
    monkeypatch.setattr(names, "DIRECTORY", folder)
    Path(folder, "canary").write_text("untouched")
    os.chmod(f"{folder}/canary", 0o666)
    yield folder
    assert Path(folder, "canary").read_text() == "untouched"
    assert stat.S_IMODE(os.stat(f"{folder}/canary").st_mode) == 0o666
    shutil.rmtree(folder)


def _socket(path: str, folder: str) -> None:
    with socket.socket(socket.AF_UNIX) as made, contextlib.suppress(OSError):
        os.chdir(folder)
        made.bind(os.path.basename(path))


def _file(mode: int) -> Callable[[str, str], None]:
    def plant(path: str, folder: str) -> None:
        del folder
        Path(path).write_bytes(bytes(1 << 16))
        os.chmod(path, mode)

    return plant


PLANTS: dict[str, Callable[[str, str], None]] = {
    "pipe": lambda path, folder: os.mkfifo(path, 0o666),
    "folder": lambda path, folder: os.mkdir(path, 0o777),
    "link to the canary": lambda path, folder: os.symlink(f"{folder}/canary", path),
    "link to nothing": lambda path, folder: os.symlink(f"{folder}/nothing", path),
    "socket": _socket,
    "open file": _file(0o666),
    "closed file": _file(0o600),
}


def planted(kind: str, *paths: str) -> None:
    """Have the stranger plant something at each path."""
    for path in paths:
        assert as_user(STRANGER, lambda path=path: PLANTS[kind](path, names.DIRECTORY)) is None  # type: ignore[misc]


def run(victim: int, call: Callable[[], Any]) -> Any:
    """Run a call as a victim."""
    return outcome(call) if victim == 0 else as_user(victim, call)


def topic_path(victim: int, name: str) -> str:
    """Return where a victim's topic lies."""
    return board.path_of(name).replace(f"{names.TOPIC}0-", f"{names.TOPIC}{victim}-")


def publish_and_read() -> Any:
    """Use a topic with a writer and two readers."""
    with xfer.Topic("t") as topic, topic.subscribe() as reader, topic.subscribe(every=True) as other:
        topic.publish(np.arange(3))
        got = [end.recv(timeout=60).tolist() for end in (reader, other)]
        topic.publish(np.arange(4))
        return got + [end.recv(timeout=60).tolist() for end in (reader, other)]


@pytest.mark.parametrize("victim", [0, ORDINARY])
def test_a_topic_whose_place_is_taken_is_refused(place: str, victim: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever stands at a topic's place is refused with a typed error, not listed, not removed and not reaped."""
    path = topic_path(victim, "t")
    for kind in PLANTS:
        planted(kind, path)
        assert run(victim, publish_and_read) == "UntrustedFileError", kind
        assert run(victim, lambda: [board.topics(), xfer.Topic("t").remove(), names.strangers()]) == [
            [], None, [path]
        ]  # fmt: skip
        assert run(victim, lambda: cli.main(["reap"])) == 0
        assert os.path.lexists(path)
        shutil.rmtree(path) if kind == "folder" else os.unlink(path)
    assert run(victim, publish_and_read) == [[0, 1, 2], [0, 1, 2], [0, 1, 2, 3], [0, 1, 2, 3]]
    assert run(victim, lambda: xfer.Topic("t").remove()) is None
    assert sorted(os.listdir(place)) == ["canary"]


@pytest.mark.parametrize("victim", [0, ORDINARY])
def test_planted_wake_up_pipes_are_passed_by(place: str, victim: int) -> None:
    """A topic works beside the stranger's files at the places of its first wake-up pipes, and writes into none."""
    for kind in PLANTS:
        path = topic_path(victim, "t")
        planted(kind, f"{path}+0", f"{path}+2")
        assert run(victim, publish_and_read) == [[0, 1, 2], [0, 1, 2], [0, 1, 2, 3], [0, 1, 2, 3]], kind
        assert run(victim, lambda: xfer.Topic("t").remove()) is None
        assert sorted(os.listdir(place)) == ["canary", os.path.basename(f"{path}+0"), os.path.basename(f"{path}+2")]
        if kind.endswith("file"):
            assert Path(f"{path}+0").read_bytes() == bytes(1 << 16)
        for end in (0, 2):
            shutil.rmtree(f"{path}+{end}") if kind == "folder" else os.unlink(f"{path}+{end}")


@pytest.mark.parametrize("victim", [0, ORDINARY])
def test_planted_names_of_segments_are_neither_believed_nor_waited_for(place: str, victim: int) -> None:
    """Named pools, `reap`, `ls` and readers go on beside planted signs of life; a planted segment is refused."""

    def use() -> Any:
        with xfer.Pool("1MiB", backend="named") as pool:
            handle = pool.put(np.arange(5))
            got = xfer.get(handle).tolist()
            xfer.trim()
        old = pool.pid, bytes(handle), names.segment_path(f"xfer-{names.user()}-{pool.pid}-", handle.fields.segment)
        return got, old

    got, (pid, raw, segment) = run(victim, use)
    assert got == [0, 1, 2, 3, 4]
    for kind in PLANTS:
        sign = f"{place}/xfer-{victim}-{pid}-00ff.alive"
        planted(kind, sign, segment)
        assert run(victim, use)[0] == [0, 1, 2, 3, 4], kind
        assert run(victim, lambda: xfer.get(raw)) == "UntrustedFileError", kind
        prefix = f"xfer-{victim}-{pid}-"
        assert run(victim, lambda prefix=prefix: [names.listing(), names.reap(), names.is_locked(prefix)]) == [
            [], [], False
        ]  # fmt: skip
        assert run(victim, lambda: cli.main(["ls", "--json"])) == 0
        assert run(victim, names.strangers) == sorted([sign, segment])
        for path in (sign, segment):
            shutil.rmtree(path) if kind == "folder" else os.unlink(path)


@pytest.mark.parametrize("victim", [0, ORDINARY])
def test_own_files_that_others_can_use_are_refused(place: str, victim: int) -> None:
    """A link, a second name and a mode of more than 0600 are refused with the reason, also on one's own file."""
    path = topic_path(victim, "t")

    def spoil(how: str) -> Any:
        with xfer.Topic("t") as topic:
            topic.publish(np.zeros(1))
        if how == "mode":
            os.chmod(path, 0o640)
        elif how == "second name":
            os.link(path, f"{place}/second")
        else:
            os.rename(path, f"{place}/second")
            os.symlink(f"{place}/second", path)
        try:
            publish_and_read()
        except errors.UntrustedFileError as error:
            return str(error)
        finally:
            for spoilt in os.listdir(place):
                if spoilt != "canary":
                    os.unlink(f"{place}/{spoilt}")

    for how, why in {"mode": "mode 640", "second name": "a second name", "link": "cannot be opened"}.items():
        said = run(victim, lambda how=how: spoil(how))  # type: ignore[misc]
        assert why in said
        assert "Remove it, or choose another name" in said


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077, 0o277])
def test_files_are_closed_to_others_whatever_the_umask(place: str, umask: int) -> None:
    """Every file and pipe that a named pool or a topic makes has the mode 0600."""

    def use() -> Any:
        os.umask(umask)
        topic = xfer.Topic("t")
        with xfer.Pool("1MiB", backend="named") as pool, topic.subscribe() as reader:
            pool.put(np.zeros(9))
            topic.publish(np.zeros(3))
            reader.recv(timeout=60)
            found = {
                entry: f"{stat.S_IMODE(os.stat(f'{place}/{entry}').st_mode):o}"
                for entry in os.listdir(place)
                if entry.startswith("xfer-")
            }
        topic.remove()
        return found

    for victim in (0, ORDINARY):
        found = as_user(victim, use)
        assert len(found) == 5
        assert set(found.values()) == {"600"}


def test_a_folder_without_the_sticky_bit_is_refused(place: str) -> None:
    """Where others may rename this user's files, named pools and topics are refused, with what to do."""
    os.chmod(place, 0o777)
    for call in (lambda: xfer.Pool("1MiB", backend="named"), lambda: xfer.Topic("t").publish(np.zeros(1))):
        with pytest.raises(errors.UntrustedFileError, match=r"chmod \+t"):
            call()
    os.chown(place, STRANGER, STRANGER)
    os.chmod(place, 0o1777)
    with pytest.raises(errors.UntrustedFileError, match="replace"):
        check_folder(place)


def test_root_takes_no_memory_of_another_user(place: str) -> None:
    """A handle, a channel and a writable array of another user's process are refused by root, which may open them."""

    def produce() -> None:
        with xfer.Pool("1MiB") as pool, xfer.Channel(2, pool=pool) as channel, xfer.WritableArray(3) as array:
            tokens = [bytes(pool.put(np.arange(3))), bytes(channel.receiver), bytes(array)]
            os.write(write, pickle.dumps(tokens))
            os.read(end, 1)

    read, write = os.pipe()
    end, go = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(go)
        os._exit(0 if as_user(STRANGER, produce) is None else 1)
    try:
        os.close(write)
        os.close(end)
        handle, receiver, array = pickle.loads(os.read(read, 1 << 16))
        for call in (
            lambda: xfer.get(handle),
            xfer.Receiver.from_bytes(receiver).attach,
            lambda: xfer.WritableArray.from_bytes(array),
        ):
            with pytest.raises(errors.UntrustedFileError, match="run both as the same user"):
                call()
    finally:
        os.close(go)
        os.close(read)
        assert os.waitpid(child, 0)[1] == 0


def test_what_was_opened_is_checked_and_closed_again(place: str) -> None:
    """Root can open a stranger's file: it is refused by what the opened file says, and no descriptor stays."""
    path = f"{place}/{names.TOPIC}0-mine"
    planted("closed file", path)
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(errors.UntrustedFileError, match=f"belongs to user {STRANGER}"):
        open_own(path, os.O_RDONLY)
    assert len(os.listdir("/proc/self/fd")) == before


def test_results_are_left_to_and_taken_from_the_same_user_only() -> None:
    """Another user's mailbox gets nothing, and what another user sends is closed unread."""
    before = len(os.listdir("/proc/self/fd"))
    with xfer.Pool("1MiB") as pool:
        handle = pool.put(np.arange(3), consume=True)
        segment = pool._slots.segments[handle.fields.segment]
        ready, told = os.pipe()
        child = os.fork()
        if child == 0:  # it has the mailbox's name, and is another user
            try:
                address = f"\0xfer-results-0-{os.getpid()}"
                bequest.HEIR._socket.close()
                os.setuid(STRANGER)
                with socket.socket(socket.AF_UNIX) as box:
                    box.bind(address)
                    box.listen()
                    os.write(told, b"x")
                    time.sleep(200)
            except Exception as error:
                os.write(told, repr(error).encode())
            finally:
                os._exit(0)
        try:
            assert os.read(ready, 100) == b"x"
            assert not bequest._send(child, [segment])
        finally:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            os.close(ready)
            os.close(told)

        own = [os.dup(segment.fd), os.dup(segment.ledger.fd)]  # memory that passes every check of itself

        def intrude() -> bool:
            file = os.memfd_create("intruder")
            for fds in ([file, file], own):
                with socket.socket(socket.AF_UNIX) as made:
                    made.connect(f"\0xfer-results-0-{os.getppid()}")
                    socket.send_fds(made, [b"XFB1"], fds)
            return True

        assert as_user(STRANGER, intrude) is True
        for fd in own:
            os.close(fd)
        for what in ("/dev/zero", "/proc/self/exe"):  # and this user's own nonsense
            with socket.socket(socket.AF_UNIX) as made, open(what, "rb") as file:
                made.connect(f"\0xfer-results-0-{os.getpid()}")
                socket.send_fds(made, [b"XFB1"], [file.fileno(), file.fileno()])
                socket.send_fds(made, [b"XFB1"], [file.fileno()])
        assert bequest.HEIR.find(1) is None
        assert bequest.HEIR.find(segment.id) is None
        assert len(bequest.HEIR._pending) == 0
    xfer.trim()
    assert len(os.listdir("/proc/self/fd")) <= before
