"""Joining the pieces of an input into one, in numpy. Each is the twin of the function of the same name in C."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ttt._grid.compose.parts import join
from ttt._grid.compose.pieces import LARGEST, Piece, commonest, placed
from ttt.values import Grid


@join
def overlay(pieces: Sequence[Piece], arg: int) -> list[Piece] | None:
    """All at their places in the box around them; later ones (0), or those with fewer drawn cells (1), lie above."""
    top, left = min(p.y for p in pieces), min(p.x for p in pieces)
    shape = (
        max(p.y + p.cells.shape[0] for p in pieces) - top,
        max(p.x + p.cells.shape[1] for p in pieces) - left,
    )
    if max(shape) > LARGEST:
        return None
    out: Grid = np.zeros(shape, dtype=np.uint8)
    for p in sorted(pieces, key=lambda p: -int(np.count_nonzero(p.cells))) if arg else pieces:
        mine = placed(p, shape, top, left)
        out = np.where(mine != 0, mine, out)
    return [Piece(top, left, out)]


def _in_line(pieces: Sequence[Piece], column: bool) -> list[Piece] | None:
    """In a row or a column, in their order."""
    if len(pieces) < 2:
        return None
    lying = [p.cells.T if column else p.cells for p in pieces]
    shape = max(g.shape[0] for g in lying), sum(g.shape[1] for g in lying)
    if max(shape) > LARGEST:
        return None
    out, at = np.zeros(shape, dtype=np.uint8), 0
    for g in lying:
        out[: g.shape[0], at : at + g.shape[1]] = g
        at += g.shape[1]
    return [Piece(0, 0, np.ascontiguousarray(out.T if column else out))]


@join
def beside(pieces: Sequence[Piece], arg: int) -> list[Piece] | None:
    """In a row (arg % 2 = 0) or a column (1), in their order (arg < 2) or the smallest box first."""
    return _in_line(sorted(pieces, key=lambda p: p.cells.size) if arg >= 2 else pieces, bool(arg % 2))


@join
def line_up(pieces: Sequence[Piece], _arg: int) -> list[Piece] | None:
    """As they lie: in a row unless the tops are farther apart than the sides."""
    gaps = [min(np.diff(sorted(places)), default=0) for places in ([p.x for p in pieces], [p.y for p in pieces])]
    column = bool(gaps[1] > gaps[0])
    return _in_line(sorted(pieces, key=lambda p: p.y if column else p.x), column)


def _piled(pieces: Sequence[Piece]) -> Grid | None:
    """Pieces of one size as one array."""
    return np.stack([p.cells for p in pieces]) if len({p.cells.shape for p in pieces}) == 1 < len(pieces) else None


@join
def pile(pieces: Sequence[Piece], arg: int) -> list[Piece] | None:
    """Pieces of one size on one pile: the first (0) or the last (1) on top."""
    cells = _piled(pieces[::-1] if arg else pieces)
    if cells is None:
        return None
    return [Piece(0, 0, np.take_along_axis(cells, (cells != 0).argmax(axis=0)[None], axis=0)[0])]


@join
def pile_logic(pieces: Sequence[Piece], arg: int) -> list[Piece] | None:
    """Pieces of one size: cells drawn in all (0), in exactly one (1), or in none (2, in colour 1)."""
    cells = _piled(pieces)
    top = pile(pieces, 0)
    if cells is None or top is None:
        return None
    times = (cells != 0).sum(axis=0)
    if arg == 2:
        return [Piece(0, 0, (times == 0).astype(np.uint8))]
    return [Piece(0, 0, np.where(times == (1 if arg else len(cells)), top[0].cells, 0).astype(np.uint8))]


@join
def colours_in_line(pieces: Sequence[Piece], arg: int) -> list[Piece] | None:
    """One cell of its commonest colour for each piece, in a row (0) or a column (1)."""
    if len(pieces) > LARGEST:
        return None
    line = np.array([[commonest(p.cells) for p in pieces]], dtype=np.uint8)
    return [Piece(0, 0, np.ascontiguousarray(line.T if arg else line))]


@join
def take_index(pieces: Sequence[Piece], arg: int) -> list[Piece] | None:
    """The piece with an index, from the end if negative."""
    at = arg + len(pieces) if arg < 0 else arg
    return [pieces[at]] if len(pieces) > 1 and 0 <= at < len(pieces) else None
