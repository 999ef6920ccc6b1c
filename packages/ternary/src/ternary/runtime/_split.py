"""When the tiles of one row are shared out among programs of a GPU, and the memory in which their sums meet.

Programs of one launch add integers, so that their order changes no bit. The last of them to arrive stores the products
and leaves zeros for the next launch. Launches that may run at the same time need memory of their own: each stream has
its own, and so has each launch that a CUDA graph holds, since a graph may be replayed on any stream.
"""

from __future__ import annotations

import threading
from typing import NamedTuple

import torch
from torch import Tensor

from ternary._torch_private import current_stream

__all__ = ["Cut", "Meeting", "Split", "processors_of", "split_of"]


class Cut(NamedTuple):
    """How a kernel is cut into programs: the sizes that it takes as constants, and how Triton compiles it."""

    sizes: tuple[int, ...]
    warps: int
    stages: int


class Split(NamedTuple):
    """How the tiles of a row are shared out: blocks of outputs, parts of each, tiles of a part, the kernel's cut."""

    blocks: int
    parts: int
    per_part: int
    cut: Cut

    @property
    def room(self) -> int:
        """Numbers of 32 bits in which the parts meet: a sum for each output of each block, and a count for each."""
        return self.blocks * (_STRIPS * 16 + 1)


_STRIPS = 2
_FEWEST_TILES = 32  # of a part: 512 columns, 2 KiB of weights a strip
_MOST_TILES = 256  # of a step, as in the kernel for whole rows
_WIDTH = 4096  # columns at a time, of which the largest magnitude is taken
_STEPS_SAVED = 4
_INTERPRETED = 132  # multiprocessors of an H100, for Triton's interpreter


def processors_of(device: torch.device) -> int:
    """Return the multiprocessors of a CUDA device."""
    if device.type != "cuda":
        return _INTERPRETED
    return int(torch.cuda.get_device_properties(device).multi_processor_count)


def split_of(outputs: int, tiles: int, processors: int, *, wanted: bool) -> Split | None:
    """Return how to share out the tiles of a row, or None to leave each row of weights to one program.

    Parts are at most as many as let all programs run at once. Unless a split is wanted, there is one only where it
    saves what it costs by far: half of the multiprocessors are idle without it, and each program takes four steps less.
    A step waits for memory once; the meeting of the parts takes two such waits.
    """
    blocks = -(-outputs // (_STRIPS * 16))
    most = processors // blocks if blocks else 0
    if most < 2 or tiles <= _FEWEST_TILES:
        return None
    per_part = max(_FEWEST_TILES, -(-tiles // most))
    step = min(_MOST_TILES, 1 << (per_part - 1).bit_length())
    per_part = -(-per_part // step) * step
    if not wanted and -(-tiles // _MOST_TILES) - per_part // step < _STEPS_SAVED:
        return None
    parts = -(-tiles // per_part)
    warps = 8 if step == _MOST_TILES else 4
    return Split(blocks, parts, per_part, Cut((_STRIPS, step, _WIDTH), warps, 3)) if parts > 1 else None


class Meeting:
    """The memory of one device in which parts meet, all zeros between launches.

    It is made once, before a capture can begin: a graph needs memory that was zeroed outside of it.

    Args:
        device: A CUDA device.
        processors: Its multiprocessors, which bound the blocks of a split.
    """

    def __init__(self, device: torch.device, processors: int) -> None:
        self._device = device
        self._each = processors * (_STRIPS * 16 + 1)
        self._lock = threading.Lock()
        self._of_stream: dict[int, Tensor] = {}
        self._for_graphs = torch.zeros(_FOR_GRAPHS, dtype=torch.int32, device=device)
        self._used = 0
        torch.cuda.synchronize(device)  # a graph may be replayed on any stream

    def take(self, room: int) -> Tensor:
        """Return room for the next launch on the current stream; hold it until the launch is made."""
        stream = current_stream()
        if torch.cuda.is_current_stream_capturing():
            return self._for_a_graph(room)
        found = self._of_stream.get(stream)
        if found is None:
            with self._lock:
                found = self._of_stream.get(stream)
                if found is None:
                    found = torch.zeros(self._each, dtype=torch.int32, device=self._device)
                    self._of_stream[stream] = found
        return found

    def _for_a_graph(self, room: int) -> Tensor:
        """Return room that no other launch gets, as it is not known how long the graph will live.

        Where none is left, the graph zeroes memory of its own at each replay, which is a launch more.
        """
        room = -(-room // 4) * 4  # 16 bytes
        with self._lock:
            begin = self._used
            if begin + room <= _FOR_GRAPHS:
                self._used += room
                return self._for_graphs[begin : begin + room]
        return torch.zeros(room, dtype=torch.int32, device=self._device)


_FOR_GRAPHS = 1 << 20  # numbers of 32 bits, 4 MiB: 1,500 launches of 640 outputs
