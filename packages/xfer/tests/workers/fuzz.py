"""Gives damaged bytes to the readers of xfer: fuzz.py handles|rings|topics SECONDS SEED.

Ends with 0 and a count, or with the first case that raised something else than an error of xfer, took a second of
processor time, or made the process grow. A case is made from the seed and its number alone, so that it can be repeated:
a fourth argument is the number of the first case.
"""

from __future__ import annotations

import contextlib
import faulthandler
import os
import random
import struct
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np

import xfer
from xfer._shared.handle import CUDA, HEADER, Fields, parse
from xfer._shared.segment import WORDS

GROWTH = 64 << 10  # KiB
ALL = (1 << 64) - 1
EDGES = [0, 1, 2, 3, 7, 8, 64, 255, 256, 4096, 1 << 16, (1 << 31) - 1, 1 << 31, (1 << 32) - 1, 1 << 63, ALL]
TOKENS = [
    b"<f4", b"O", b"|O8", b"~finfo", b"~bfloat16", b"<M8[ns]", b"<M8[99999999999ns]", b"i4,(2,", b"[", b"[]", b"[1]",
    b"V" + b"9" * 20, b"<U999999999", b'["rec",8,0,[]]', b'["sub","<f4",[-1]]', b'["sub","<f4",[99999999,99999999]]',
    b'["rec",-1,0,[["a","<f4",99]]]', b"[" * 200, b"\xff\xfe", b"<f2", b"|b1",
]  # fmt: skip
Case = Callable[[random.Random], None]


def number(chance: random.Random) -> int:
    """Return an edge, something near one, or anything."""
    return chance.choice([chance.choice(EDGES), chance.choice(EDGES) + chance.randint(-2, 2), chance.getrandbits(64)])


def scribble(chance: random.Random, raw: bytes) -> bytes:
    """Return bytes with some of them changed, cut or added."""
    data = bytearray(raw)
    for _ in range(chance.choice([1, 1, 2, 8])):
        if data:
            data[chance.randrange(len(data))] = chance.getrandbits(8)
    if chance.random() < 0.2:
        del data[chance.randrange(len(data) + 1) :]
    if chance.random() < 0.1:
        data += chance.randbytes(chance.randrange(40))
    return bytes(data)


def sealed(raw: bytes) -> bytes:
    """Return bytes with the checksum at their end made to fit."""
    return raw[:-4] + struct.pack("<I", crc32(raw[:-4])) if len(raw) >= 4 else raw


def handles() -> Case:
    """Handles, tokens of writable arrays, channels and stores, and trees in a slot, with checksums that fit."""
    pool = xfer.Pool("64MiB")
    record = np.dtype([(f"field {n}", "<f4", (2,)) for n in range(20)])
    arrays: list[Any] = [
        np.arange(12).reshape(3, 4), np.zeros((2, 2), order="F"), np.zeros(3, record), np.float32(3),
        {"a": np.ones(5), "b": [1, "x", (np.zeros(2), None)], "c": {"d": 2.5}}, np.zeros((1,) * 9), np.zeros(0),
    ]  # fmt: skip
    made = [bytes(pool.put(array)) for array in arrays]
    store = xfer.SharedArrayStore(pool)
    store.create("a", np.ones(3))
    writable, channel = xfer.WritableArray((2, 3)), xfer.Channel(2)
    tokens: list[tuple[bytes, Callable[[bytes], Any]]] = [
        (bytes(writable), xfer.WritableArray.from_bytes),
        (bytes(channel.receiver), lambda raw: xfer.Receiver.from_bytes(raw).attach()),
        (bytes(store), lambda raw: xfer.SharedArrayStore.attach(raw).list()),
    ]

    def forged(chance: random.Random) -> bytes:
        raw = chance.choice(made)
        fields, rest = Fields._make(HEADER.unpack_from(raw)), raw[HEADER.size : -4]
        for _ in range(chance.choice([1, 1, 2])):
            name = chance.choice(Fields._fields[2:])
            fields = fields._replace(**{name: number(chance)})
        if chance.random() < 0.5:
            token = chance.choice([chance.choice(TOKENS), scribble(chance, chance.choice(TOKENS))])
            ndim = chance.randrange(4)
            rest = b"".join(
                struct.pack("<Q", chance.choice([1, 2, number(chance)]) & (1 << 64) - 1) for _ in range(ndim)
            )
            fields = fields._replace(ndim=ndim, token_length=len(token), flags=chance.choice([0, 1, 8, 9, 16]))
            rest += token
        fields = fields._replace(flags=fields.flags & 0xFF & ~CUDA)  # device memory has its own rules
        widths = (None, 8, 8, 8, 8, 16, 32, 32, 64, 64, 32, 32, 64, 64)
        cut = [
            value if bits is None else int(value) & (1 << bits) - 1 for value, bits in zip(fields, widths, strict=True)
        ]
        return sealed(HEADER.pack(*cut) + rest + bytes(4))

    def case(chance: random.Random) -> None:
        kind = chance.random()
        if kind < 0.15:
            raw, call = chance.choice(tokens)
            call(sealed(scribble(chance, raw)) if chance.random() < 0.8 else scribble(chance, raw))
            return
        raw = forged(chance) if kind < 0.6 else scribble(chance, chance.choice(made))
        if chance.random() < 0.7:
            raw = sealed(raw)
        # The producer itself is hostile: the slot's own checksum fits, and so does the data of a tree.
        fields = parse(raw)
        segment = pool._slots.segments.get(fields.segment)
        if segment is None or fields.slot >= segment.slots:
            xfer.get(raw)
            return
        index, check = WORDS + 2 * fields.slot, int.from_bytes(raw[-4:], "little")
        kept = segment.words[index], segment.words[index + 1]
        start = segment.start + fields.slot * segment.stride
        data = segment.map[start : start + 600]  # less at the end of the segment
        segment.words[index], segment.words[index + 1] = fields.stamp, check
        try:
            if chance.random() < 0.5:
                segment.map[start : start + len(data)] = scribble(chance, data)[: len(data)].ljust(len(data), b"\0")
            found = xfer.get(raw, as_="numpy")
            del found
        finally:
            segment.map[start : start + len(data)] = data
            segment.words[index], segment.words[index + 1] = kept

    return case


def rings() -> Case:
    """A channel's memory, damaged by the process at the other end, for both ends and both cores."""

    def case(chance: random.Random) -> None:
        channel = xfer.Channel(chance.choice([1, 2, 5]), pool=pool, compiled=chance.random() < 0.6, spin=0)
        try:
            for _ in range(chance.randrange(4)):
                array = np.ones(chance.choice([1, 3, 100, 20_000]), chance.choice(["f4", "i8", "S7"]))
                with contextlib.suppress(xfer.errors.WaitTimeoutError):
                    channel.sender.send(array, timeout=0)
            if chance.random() < 0.5:
                with contextlib.suppress(xfer.errors.WaitTimeoutError):
                    channel.receiver.recv(timeout=0)
            channel.sender.attach()
            ring = channel.sender._ring
            for _ in range(chance.choice([1, 2, 6])):
                place = chance.random()
                if place < 0.4:
                    ring.words[8 * chance.randrange(12) + chance.choice([0, 0, 0, 1, 2])] = number(chance) & ALL
                elif place < 0.6:
                    at = 1024 + 4 * chance.randrange(10)
                    ring.map[at : at + 4] = struct.pack("<I", number(chance) & 0xFFFFFFFF)
                elif place < 0.9:
                    at = ring.start + 640 * chance.randrange(ring.capacity) + 4 * chance.randrange(16)
                    ring.map[at : at + 4] = struct.pack("<I", number(chance) & 0xFFFFFFFF)
                else:
                    at = chance.randrange(len(ring.map))
                    ring.map[at] = chance.getrandbits(8)
            for _ in range(4):
                calls: list[Callable[[], Any]] = [
                    lambda: channel.receiver.recv(timeout=0), lambda: channel.sender.send(np.ones(3), timeout=0),
                    lambda: channel.sender.send(np.ones(20_000), timeout=0), channel.receiver.ready,
                    channel.sender.ready, lambda: channel.sender.flush(timeout=0),
                    lambda: xfer.wait([channel.receiver], timeout=0),
                    lambda: channel.receiver.recv(timeout=0.001),
                ]  # fmt: skip
                with contextlib.suppress(xfer.XferError):
                    chance.choice(calls)()
        finally:
            channel.close()

    pool = xfer.Pool("64MiB")
    return case


def topics() -> Case:
    """A topic's file, damaged by another process of the same user."""
    name = f"test {os.getppid()} fuzz {os.getpid()}"
    pool = xfer.Pool("64MiB")

    def case(chance: random.Random) -> None:
        topic = xfer.Topic(name, keep=chance.choice([1, 3]), pool=pool)
        try:
            with topic.subscribe() as reader, topic.subscribe(every=True) as other:
                for _ in range(chance.randrange(3)):
                    topic.publish(np.ones(chance.choice([3, 20_000])), timeout=0.01)
                board = reader._board
                for _ in range(chance.choice([1, 2, 6])):
                    if chance.random() < 0.5:
                        words = [*range(4), *range(8, 8 + 32)]
                        board.words[chance.choice(words)] = number(chance) & ALL
                    else:
                        board._map[chance.randrange(len(board._map))] = chance.getrandbits(8)
                calls: list[Callable[[], Any]] = [
                    lambda: reader.recv(timeout=0), lambda: other.recv(timeout=0), reader.ready,
                    lambda: topic.publish(np.ones(3), timeout=0.001), lambda: xfer.wait([reader, other], timeout=0),
                    lambda: topic.subscribe().close(),
                ]  # fmt: skip
                for _ in range(4):
                    with contextlib.suppress(xfer.XferError, ValueError):  # another `keep` is a ValueError
                        chance.choice(calls)()
        finally:
            topic.remove()

    return case


def peak() -> int:
    """Return the most kilobytes that this program has had; getrusage would count what its parent had before it."""
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0])


def main(what: str, seconds: str, seed: str, first: str = "0") -> None:
    """Run cases until the time is up."""
    faulthandler.enable()
    case, end, count = (
        {"handles": handles, "rings": rings, "topics": topics}[what](),
        time.monotonic() + float(seconds),
        int(first),
    )
    memory = 0
    while time.monotonic() < end or count - int(first) <= 10:  # however slow the machine is
        start = time.process_time()
        faulthandler.dump_traceback_later(60, exit=True)
        try:
            case(random.Random(f"{seed} {count}"))
        except xfer.XferError:
            pass
        except BaseException:
            print(f"case {count} of {what} with seed {seed}", file=sys.stderr)
            raise
        used = time.process_time() - start
        assert used < 5, f"case {count} of {what} with seed {seed} took {used:.1f} s of the processor"
        count += 1
        if count == int(first) + 2000:
            memory = peak()
    grown = peak() - memory if memory else 0
    assert grown < GROWTH, f"{what} with seed {seed} grew by {grown} KiB in {count} cases"
    print(count - int(first))


if __name__ == "__main__":
    main(*sys.argv[1:])
