"""Which paint each code of the cells takes, asked of all known cells; with the compiled core, or in numpy."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from ttt._grid.compose.core import library
from ttt._grid.compose.screening import Mask
from ttt._grid.geometry import Numbers


class _Paints(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_int32) for name in ("paints", "cells", "known", "sampled")),
        *((name, ctypes.c_void_p) for name in ("colours", "wanted", "free", "name")),
    )


class Palette:
    """Paints over cells, cheapest first.

    Args:
        colours: The colour of each paint (rows) in each cell.
        names: Of the paints; paints of one name cost once.
        costs: Of the paints.
        wanted: The colours of the first cells, which are known.
        sampled: Whether the marks that `chosen` takes leave out some of the known cells.
        compiled: Whether to use the compiled core where there is one; the answers are the same.
    """

    def __init__(
        self,
        colours: npt.NDArray[np.uint8],
        names: Sequence[str],
        costs: Sequence[float],
        wanted: npt.NDArray[np.uint8],
        sampled: bool,
        compiled: bool = True,
    ) -> None:
        self._core = library() if compiled else None
        self._colours, self._wanted, self._sampled = np.ascontiguousarray(colours), wanted, sampled
        self._free = np.array([cost <= 0.0 for cost in costs], dtype=bool)
        numbers = {name: n for n, name in enumerate(dict.fromkeys(names))}
        self._name = np.array([numbers[name] for name in names], dtype=np.int32)
        kept = self._colours, self._wanted, self._free, self._name
        self._paints = _Paints(*colours.shape, len(wanted), sampled, *(a.ctypes.data for a in kept))

    def chosen(self, codes: Numbers, mistaken: Mask) -> tuple[npt.NDArray[np.int32], Numbers] | None:
        """Choose for each code the first right paint, before others one that costs nothing or is chosen already.

        Args:
            codes: The code of each cell.
            mistaken: For each code (rows) and paint whether the paint is known to be wrong.

        Returns:
            The paint of each code and the colour of each cell, -1 for codes that no known cell has; None where a code
            has no right paint.
        """
        best, out = np.full(len(mistaken), -1, dtype=np.int32), np.full(len(codes), -1, dtype=np.int64)
        if self._core is None:
            return (best, out) if self._choose(codes, mistaken, best, out) else None
        given = np.ascontiguousarray(codes, dtype=np.int64), np.ascontiguousarray(mistaken)
        cases = self._core.choose_paints(
            ctypes.byref(self._paints),
            given[0].ctypes.data,
            len(mistaken),
            given[1].ctypes.data,
            best.ctypes.data,
            out.ctypes.data,
        )
        if cases < 0:
            raise MemoryError("no memory for the search")
        return (best, out) if cases else None

    def _choose(self, codes: Numbers, mistaken: Mask, best: npt.NDArray[np.int32], out: Numbers) -> bool:
        known, free = codes[: len(self._wanted)], self._free.copy()
        for key in range(len(mistaken)):
            here = np.flatnonzero(known == key)
            if not len(here):
                continue
            right = np.flatnonzero(~mistaken[key])
            if self._sampled:
                right = right[(self._colours[np.ix_(right, here)] == self._wanted[here]).all(axis=1)]
            if not len(right):
                return False
            best[key] = right[np.argmax(free[right])]
            free |= self._name == self._name[best[key]]
            everywhere = codes == key
            out[everywhere] = self._colours[best[key], everywhere]
        return True
