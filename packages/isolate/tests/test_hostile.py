"""A child that lies: the host executes and imports nothing, and only that child suffers."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import pickle
import random
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from integration_test_base import IntegrationTestBase

from isolate._worker.calls import Export
from isolate._worker.frames import HEADER
from isolate._worker.incoming import Incoming
from isolate._worker.link import Link
from isolate._worker.protocol import CALL, CREDIT, DROP, ERROR, FREE, ITEM, READY, RELEASE, RESULT, SEGMENT, STOP
from isolate._worker.quotas import LinkLimits
from isolate._worker.threads import Threads
from isolate.errors import LinkClosedError, WireError

KINDS = [0, *range(1, 17), 200, 255]


def frame(kind: int, number: int, payload: bytes, length: int | None = None) -> bytes:
    """A frame, with a lie about its length if given."""
    return HEADER.pack(len(payload) if length is None else length, kind, number) + payload


class Victim:
    """A host's end of a link whose other end the test writes by hand."""

    def __init__(self, pending: bool = True) -> None:
        self.called: list[Any] = []
        self.closed: list[BaseException | None] = []
        self.threads = Threads()
        ours, self.peer = socket.socketpair()
        self.peer.setblocking(False)
        loop = asyncio.get_running_loop()

        async def good(*args: Any) -> str:
            self.called.append(args)
            return "good"

        def on_closed(failure: BaseException | None) -> None:
            self.closed.append(failure)
            self.link.close()

        self.link = Link(
            ours,
            loop,
            self.threads,
            {"api.good": Export(good, "async")},
            on_control=self._control,
            on_closed=on_closed,
            name="victim",
            limits=LinkLimits(frame_bytes=1 << 20),
            import_torch=False,
        )
        self.waiting = loop.create_task(self.link.acall("anything", (), {})) if pending else None

    @staticmethod
    def _control(kind: int, value: Any) -> None:
        raise WireError("no control frame is expected")

    async def until(self, condition: Callable[[], object]) -> None:
        """Wait until something has happened, which another thread may have a part in."""
        end = time.monotonic() + 60
        while not condition() and time.monotonic() < end:
            await asyncio.sleep(0.001)

    async def settle(self) -> None:
        """Let the link read all that was written."""
        for _ in range(6):
            await asyncio.sleep(0)
        while self.link.channel.paused and not self.link.channel.closed:  # another thread decodes, and imports numpy
            await asyncio.sleep(0.005)

    async def close(self) -> None:
        """Close both ends."""
        self.peer.close()
        self.link.close()
        if self.waiting is not None:
            with contextlib.suppress(Exception):  # a forged answer is an answer; what matters is that it ends
                await self.waiting
        self.threads.close()


def _message(value: Any) -> bytes:
    return msgspec.msgpack.encode(value)


def _attacks() -> dict[str, bytes]:
    evil = pickle.dumps(Evil())
    ext = msgspec.msgpack.Ext
    return {
        "length of 2^32": frame(RESULT, 1, b"", length=2**32 - 1),
        "bytes of 2^32": frame(RESULT, 1, b"\xc6\xff\xff\xff\xffabc"),
        "list of 2^32": frame(RESULT, 1, b"\xdd\xff\xff\xff\xff\xc0"),
        "map of 2^32": frame(RESULT, 1, b"\xdf\xff\xff\xff\xff\xc0"),
        "truncated": frame(RESULT, 1, b"\x92\x01"),
        "trailing": frame(RESULT, 1, b"\x01\x01"),
        "pickle as value": frame(RESULT, 1, evil),
        "unknown kind": frame(99, 0, b"\xc0"),
        "class by name": frame(RESULT, 1, _message(ext(77, b"os.system"))),
        "shape of 2^63": frame(RESULT, 1, _message(ext(8, _message(["numpy", b"", "<f8", [2**63 - 1, 2**63 - 1]])))),
        "negative shape": frame(RESULT, 1, _message(ext(8, _message(["numpy", b"", "<f8", [-1]])))),
        "object dtype": frame(RESULT, 1, _message(ext(8, _message(["numpy", b"x" * 8, "|O8", [1]])))),
        "unknown segment": frame(RESULT, 1, _message(ext(8, _message(["numpy", [1, 0, True, False], "<f8", [10]])))),
        "unknown form": frame(RESULT, 1, _message(ext(8, _message(["pickle", evil, "", []])))),
        "segment without descriptor": frame(SEGMENT, 1, b""),
        "free of nothing": frame(FREE, 0, _message([12])),
        "credit of 2^60": frame(CREDIT, 1, _message(2**60)),
        "item on a call": frame(ITEM, 1, _message(1)),
        "handle that is none": frame(RESULT, 1, _message(ext(10, _message(4)))),
        "call that is none": frame(CALL, 5, _message([1, 2])),
        "call with wrong arguments": frame(CALL, 5, _message(["api.good", {}, [], None, 1])),
        "failure that is none": frame(ERROR, 1, _message({"type": "os.system"})),
        "control out of turn": frame(READY, 0, _message({})),
        "stop from below": frame(STOP, 0, _message(None)),
        "release of words": frame(RELEASE, 0, _message(["a"])),
        "drop of a map": frame(DROP, 0, _message({})),
    }


class Evil:
    """Would leave a mark if anything unpickled it."""

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
        return os.mkdir, ("/tmp/isolate-was-here",)


@pytest.mark.parametrize("attack", _attacks())
def test_attacks_end_the_link_and_nothing_else(attack: str) -> None:
    """Each violation is a wire error that closes this link; nothing runs, nothing is imported."""

    async def run() -> None:
        victim = Victim()
        before = set(sys.modules)
        victim.peer.send(_attacks()[attack])
        await victim.settle()
        await victim.until(lambda: victim.closed)
        assert len(victim.closed) == 1
        assert isinstance(victim.closed[0], (WireError, ValueError))
        assert not victim.called
        assert set(sys.modules) - before <= {"numpy"} | {name for name in sys.modules if name.startswith("numpy.")}
        await victim.close()

    asyncio.run(run())
    assert not os.path.exists("/tmp/isolate-was-here")


@pytest.mark.parametrize("text", ["O", "|O8", "<f8,|O8", "float64", "<f8,<f8", "<M8[a]x"])
def test_dtypes_that_no_array_has_are_refused(text: str) -> None:
    """NumPy reads more than arrays of isolate have, such as objects and names."""
    with pytest.raises(WireError, match="has the dtype"):
        Incoming(lambda: None).restore(["numpy", b"", text, [0]])


def test_arrays_outside_their_segment_are_refused() -> None:
    """Neither before its begin nor past its end, by one byte, in any form."""
    incoming, fd = Incoming(lambda: None), os.memfd_create("segment", os.MFD_ALLOW_SEALING)
    os.write(fd, bytes(4096))
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW)
    incoming.arrived(1, fd)
    for form, dtype in (("numpy", "|u1"), ("bytes", "")):
        for offset, nbytes in ((-1, 10), (4087, 10), (4096, 1), (0, 4097)):
            with pytest.raises(WireError, match="passes the end"):
                incoming.restore([form, [1, offset, 0, False], dtype, [nbytes]])
    assert bytes(incoming.restore(["numpy", [1, 4086, 0, False], "|u1", [10]])) == bytes(10)
    incoming.close()


@pytest.fixture(scope="module")
def handle() -> Any:
    """A handle of xfer, made before a test counts descriptors: xfer keeps one."""
    xfer = pytest.importorskip("xfer", reason="pentad-xfer is not installed")
    with xfer.Pool("1MiB") as pool:
        made = pool.put(bytearray(100))
        pool.release(made)
    return made


def test_forged_handles_of_xfer(handle: Any) -> None:
    """Bytes that are no handle end the link; a handle that is one is a value, and nothing is opened for it."""
    altered = bytearray(bytes(handle))
    altered[20] ^= 1

    async def run(payload: bytes) -> tuple[list[Any], Any]:
        victim = Victim()
        await asyncio.sleep(0)
        victim.peer.send(frame(RESULT, 1, _message(msgspec.msgpack.Ext(11, payload))))
        await victim.settle()
        value = victim.waiting.result() if victim.waiting is not None and not victim.closed else None
        await victim.close()
        return victim.closed, value

    for payload in (b"", b"XF" + bytes(80), bytes(altered), bytes(handle) + b"x"):
        closed, _ = asyncio.run(run(payload))
        assert isinstance(closed[0], WireError)
    assert asyncio.run(run(bytes(handle))) == ([], handle)


@pytest.mark.parametrize(
    "target", ["os.system", "api.__class__", "api.good.__globals__", "__import__", "", 1, 10**6, None]
)
def test_undeclared_targets_are_refused(target: Any) -> None:
    """A call to anything but a declared name is answered with an error, and the link goes on."""

    async def run() -> None:
        victim = Victim(pending=False)
        victim.peer.send(frame(CALL, 5, _message([target, ["id"], {}, None, 1])))
        victim.peer.send(frame(CALL, 6, _message(["api.good", [], {}, None, 1])))
        await victim.settle()
        await victim.settle()
        answers = victim.peer.recv(1 << 16)
        length, kind, number = HEADER.unpack_from(answers)
        assert (kind, number) == (ERROR, 5)
        assert b"was not declared" in answers[13 : 13 + length]
        assert HEADER.unpack_from(answers, 13 + length)[1:] == (RESULT, 6)
        assert victim.called == [()]
        assert not victim.closed
        await victim.close()

    asyncio.run(run())


def test_forged_exception_names_stay_text() -> None:
    """An exception named after any class arrives as RemoteError unless it is in the closed set."""

    async def run() -> None:
        for number, name in enumerate(
            ["subprocess.Popen", "SystemExit", "KeyboardInterrupt", "object", "StopIteration"], 1
        ):
            victim = Victim()
            await asyncio.sleep(0)
            victim.peer.send(frame(ERROR, 1, _message([name, name, f"m{number}", ["id"], "trace"])))
            await victim.settle()
            assert victim.waiting is not None
            with pytest.raises(Exception, match=f"m{number}") as caught:
                await victim.waiting
            assert type(caught.value).__name__ == "RemoteError"
            victim.waiting = None
            await victim.close()

    asyncio.run(run())


def test_descriptors_that_are_no_sealed_memory() -> None:
    """A pipe, an unsealed memory file, or a flood of descriptors ends the link, and none of them stays open."""

    async def run() -> None:
        read, write = os.pipe()
        unsealed = os.memfd_create("x", os.MFD_ALLOW_SEALING)
        os.ftruncate(unsealed, 4096)
        for fds in ([read], [unsealed], [read] * 40):
            before = len(os.listdir("/proc/self/fd"))
            victim = Victim()
            await asyncio.sleep(0)
            socket.send_fds(victim.peer, [frame(SEGMENT, 1, b"")], fds)
            await victim.settle()
            await victim.until(lambda: victim.closed)  # noqa: B023 - called here only
            assert isinstance(victim.closed[0], WireError)
            await victim.close()
            assert len(os.listdir("/proc/self/fd")) <= before
        for fd in (read, write, unsealed):
            os.close(fd)

    asyncio.run(run())


def _random_frame(rng: random.Random, good: list[bytes]) -> bytes:
    kind, number = rng.choice(KINDS), rng.choice([0, 1, 2, 5, rng.getrandbits(63)])
    choice = rng.randrange(5)
    if choice == 0:
        return rng.randbytes(rng.randrange(1, 80))
    if choice == 1:
        return frame(kind, number, rng.randbytes(rng.randrange(60)))
    if choice == 2:
        data = bytearray(rng.choice(good))
        for _ in range(rng.randrange(1, 4)):
            data[rng.randrange(len(data))] = rng.getrandbits(8)
        return bytes(data)
    if choice == 3:
        return rng.choice(good)[: rng.randrange(1, 40)]
    return struct.pack("<IBQ", rng.getrandbits(32), kind, number) + rng.randbytes(20)


def test_ten_thousand_frames() -> None:
    """Random, mutated, truncated and forged frames: no exception escapes, no caller hangs, no link stays half open."""
    rng = random.Random(7)
    good = [
        *_attacks().values(),
        frame(CALL, 5, _message(["api.good", [1], {}, None, 1])),
        frame(RESULT, 1, _message([1, {"a": b"x"}])),
    ]

    async def run() -> int:
        escaped: list[Any] = []
        asyncio.get_running_loop().set_exception_handler(lambda loop, context: escaped.append(context))
        sent = 0
        while sent < 10_000:
            victim = Victim()
            for _ in range(20):
                sent += 1
                try:
                    victim.peer.send(_random_frame(rng, good))
                except (BrokenPipeError, BlockingIOError):
                    break
                await asyncio.sleep(0)
            await victim.settle()
            for failure in victim.closed:
                assert failure is None or isinstance(failure, (ValueError, LookupError, TypeError, OverflowError))
            await victim.close()
        assert escaped == []
        return sent

    assert asyncio.run(run()) >= 10_000
    assert not os.path.exists("/tmp/isolate-was-here")


class TestHostileChild(IntegrationTestBase):
    """The same from a real extension that gets hold of its own socket."""

    def test_only_the_hostile_extension_fails(self) -> None:
        """A child that writes garbage to its socket is ended and named; its neighbour goes on."""
        self.create_extension(
            "hostile",
            """
            import os, sys, time
            def attack():
                os.write(int(sys.argv[1]), b"\\xff" * 64)
                time.sleep(30)
            """,
            restart={"policy": "never"},
        )
        self.create_extension("neighbour", "def fine(): return 1")
        host, loaded = self.load_extensions()
        assert not loaded.errors
        with pytest.raises(LinkClosedError, match="broke the protocol"):
            host["hostile"].call.attack()
        assert host["neighbour"].call.fine() == 1


def test_host_decodes_without_importing() -> None:
    """A fresh interpreter that decodes exceptions and values by foreign names has imported none of them."""
    code = (
        "import sys\n"
        "from isolate._worker import failures\n"
        "failure = failures.revive(['x', 'antigravity.Fly', 'm', None, 't'])\n"
        "print(type(failure).__name__, 'antigravity' in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["RemoteError", "False"]
