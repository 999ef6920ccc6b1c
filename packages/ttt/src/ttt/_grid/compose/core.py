"""The compiled enumeration, called through ctypes; absent where the package was built without a compiler."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ttt._grid.compose.rows import Row, Start
from ttt._grid.compose.sources import digest
from ttt._grid.compose.table import GIVES_LIST, TAKES_LIST, Primitive
from ttt.errors import StaleCoreError

Ints = npt.NDArray[np.int32]
LIBRARY = Path(__file__).with_name("libttt_compose.so")
SOURCES = Path(__file__).with_name("csrc")


def check(core: ctypes.CDLL, folder: Path) -> None:
    """Check that a core was compiled from the sources in a folder.

    Args:
        core: The compiled core.
        folder: The sources; nothing is compared where they are not installed.

    Raises:
        StaleCoreError: It was compiled from other sources.
    """
    wanted = digest(folder)
    said = getattr(core, "compose_sources", None)  # absent in cores of before there was a digest
    if said is not None:
        said.argtypes, said.restype = [], ctypes.c_char_p
    if wanted and (said is None or said() != wanted.encode()):
        raise StaleCoreError(
            f"{LIBRARY} was compiled from other sources than the ttt beside it: install pentad-ttt again (in a "
            f"checkout: `uv sync --reinstall-package pentad-ttt`), or delete that file to search in numpy"
        )


@cache
def library() -> ctypes.CDLL | None:
    """The compiled core, None where there is none.

    Raises:
        StaleCoreError: It was compiled from other sources than those beside it.
    """
    if not LIBRARY.exists():
        return None
    try:
        core = ctypes.CDLL(str(LIBRARY))
    except OSError:
        return None
    check(core, SOURCES)
    pointer, number, wide = ctypes.c_void_p, ctypes.c_int, ctypes.c_int64
    core.compose_function.argtypes = [ctypes.c_char_p]
    core.compose_open.argtypes = [
        pointer,
        number,
        pointer,
        number,
        pointer,
        *[number] * 2,
        pointer,
        *[number] * 4,
        wide,
        wide,
    ]
    core.compose_open.restype = pointer
    core.compose_close.argtypes = [pointer]
    core.compose_run.argtypes = [pointer, wide]
    core.compose_nodes.argtypes = [pointer]
    core.compose_work.argtypes, core.compose_work.restype = [pointer], wide
    core.compose_node.argtypes, core.compose_node.restype = [pointer, number, pointer], pointer
    core.compose_fields.argtypes = [pointer, pointer]
    core.compose_cells.argtypes = [pointer, pointer, number, number, pointer]
    core.compose_test_sizes.argtypes = [pointer, pointer, number, pointer]
    core.layers_bits.argtypes = [pointer, number, number, pointer, pointer, number, number, pointer, pointer]
    core.layers_score.argtypes = [*[pointer] * 5, number, number, number, *[pointer] * 3]
    core.screen_wrong.argtypes = [pointer, pointer, number, number, pointer, number, number, pointer]
    core.screen_least.argtypes = [pointer, pointer, number, number, pointer, number, number, pointer]
    core.screen_pairs.argtypes = [pointer, pointer, number, number, number, pointer, number, number, pointer]
    core.screen_disjoint.argtypes = [pointer, number, number, number, pointer]
    core.repair_tiling.argtypes = [pointer, number, number, number, pointer]
    core.repair_mirror.argtypes = [pointer, number, number, number, pointer]
    core.choose_paints.argtypes = [pointer, pointer, number, *[pointer] * 3]
    core.things_tried.argtypes = [pointer, pointer, number, *[pointer] * 5, number]
    core.things_vectors.argtypes = [pointer, pointer]
    core.columns_dense.argtypes = [pointer, number, pointer]
    core.layers_bottom.argtypes = [pointer, pointer, number, number]
    return core


class Compiled:
    """An enumeration in the compiled core; the same results as `engine.Enumeration`."""

    def __init__(self, start: Start, primitives: Sequence[Primitive]) -> None:
        core = library()
        if core is None:
            raise RuntimeError("the compiled core is absent")
        self._core, self._handle = core, None
        self._tests = start.inputs - start.pairs
        table = np.array(
            [
                [
                    core.compose_function(p.function.encode()),
                    p.arg,
                    p.cost,
                    (p.function in TAKES_LIST) + 2 * (p.function in GIVES_LIST) + 4 * p.maps,
                ]
                for p in primitives
            ],
            dtype=np.int32,
        )
        if (table[:, 0] < 0).any():
            raise StaleCoreError(f"{LIBRARY} lacks a function of the table: install pentad-ttt again")
        limits = start.limits
        self._handle = core.compose_open(
            start.row,
            len(start.row),
            start.targets,
            len(start.targets),
            start.sizes,
            start.inputs,
            start.pairs,
            table.ctypes.data,
            len(table),
            limits.nodes,
            limits.cost,
            limits.spare,
            limits.work,
            limits.memory,
        )
        if not self._handle:
            raise MemoryError("no memory for the search")

    def __del__(self) -> None:
        if self._handle:
            self._core.compose_close(self._handle)
            self._handle = None

    def run(self, units: int) -> bool:
        """Go on for some work units; whether the end is reached."""
        done = self._core.compose_run(self._handle, units)
        if done < 0:
            raise MemoryError("no memory for the search")
        return bool(done)

    @property
    def work(self) -> int:
        """Work units spent."""
        return int(self._core.compose_work(self._handle))

    def nodes(self) -> Ints:
        """Parent, primitive, cost, flags and length of all values found, in order."""
        fields = np.empty((self._core.compose_nodes(self._handle), 5), dtype=np.int32)
        self._core.compose_fields(self._handle, fields.ctypes.data)
        return fields

    def test_sizes(self, at: Ints) -> npt.NDArray[np.uint8]:
        """Height and width of each test's piece, for values with one piece for each input."""
        sizes = np.empty((len(at), self._tests, 2), dtype=np.uint8)
        self._core.compose_test_sizes(self._handle, at.ctypes.data, len(at), sizes.ctypes.data)
        return sizes

    def cells(self, at: Ints, stride: int) -> npt.NDArray[np.uint8]:
        """The cells of such values, one row each, where all have `stride` cells."""
        cells = np.empty((len(at), stride), dtype=np.uint8)
        self._core.compose_cells(self._handle, at.ctypes.data, len(at), stride, cells.ctypes.data)
        return cells

    def row(self, at: int) -> Row:
        """The bytes of a value."""
        fields = (ctypes.c_int32 * 5)()
        where = self._core.compose_node(self._handle, at, fields)
        return ctypes.string_at(where, fields[4])
