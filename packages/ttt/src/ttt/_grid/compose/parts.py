"""Cutting a piece into pieces and choosing among them, in numpy. Each is the twin of the function in C."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import groupby

import numpy as np
import numpy.typing as npt

from ttt._grid.compose.pieces import STEPS, Piece, commonest, connected, drawn_box, enclosed, shifted
from ttt.values import Grid

MOST_PIECES = 48
"""Pieces that one input may be cut into."""
Split = Callable[[Piece, int], list[Piece] | None]
Join = Callable[[Sequence[Piece], int], list[Piece] | None]
SPLITS: dict[str, Split] = {}
JOINS: dict[str, Join] = {}


def split(function: Split) -> Split:
    """Add a function from a piece to pieces to the table."""
    SPLITS[function.__name__] = function
    return function


def join(function: Join) -> Join:
    """Add a function from pieces to pieces to the table."""
    JOINS[function.__name__] = function
    return function


def _marked(piece: Piece, where: npt.NDArray[np.bool_]) -> Piece:
    """The marked cells as a piece of their own box."""
    top, bottom, left, right = drawn_box(where.astype(np.uint8)) or (0, 0, 0, 0)
    box = slice(top, bottom + 1), slice(left, right + 1)
    return Piece(piece.y + top, piece.x + left, np.where(where[box], piece.cells[box], 0).astype(np.uint8))


def _components(piece: Piece, one_colour: bool, diagonal: bool) -> list[Piece] | None:
    """Connected sets of drawn cells, in reading order of their first cells."""
    g = piece.cells
    h, w = g.shape
    left = g != 0
    found = []
    for r, c in np.argwhere(left).tolist():
        if not left[r, c]:
            continue
        where = np.zeros(g.shape, dtype=bool)
        stack = [(r, c)]
        left[r, c] = False
        while stack:
            a, b = stack.pop()
            where[a, b] = True
            for dy, dx in STEPS[: 8 if diagonal else 4]:
                y, x = a + dy, b + dx
                if 0 <= y < h and 0 <= x < w and left[y, x] and (not one_colour or g[y, x] == g[r, c]):
                    left[y, x] = False
                    stack.append((y, x))
        found.append(_marked(piece, where))
        if len(found) > MOST_PIECES:
            return None
    return found or None


@split
def cut_pieces(piece: Piece, arg: int) -> list[Piece] | None:
    """Connected cells of one colour, over sides (0) or corners too (1)."""
    return _components(piece, True, bool(arg))


@split
def cut_objects(piece: Piece, arg: int) -> list[Piece] | None:
    """Connected drawn cells, over sides (0) or corners too (1)."""
    return _components(piece, False, bool(arg))


@split
def cut_colours(piece: Piece, _arg: int) -> list[Piece] | None:
    """All cells of each drawn colour."""
    return [_marked(piece, piece.cells == c) for c in np.unique(piece.cells).tolist() if c] or None


def _window(piece: Piece, top: int, left: int, h: int, w: int) -> Piece:
    return Piece(piece.y + top, piece.x + left, np.ascontiguousarray(piece.cells[top : top + h, left : left + w]))


def _marked_corner(g: Grid, r: int, c: int, inside: int) -> int:
    """The colour of three of the four cells from a place on, all but one; 0 where they differ or it has that colour."""
    four = g[r : r + 2, c : c + 2].ravel().tolist()
    odd = four.pop(inside)
    return four[0] if four.count(four[0]) == 3 and odd != four[0] else 0


@split
def cut_marked(piece: Piece, _arg: int) -> list[Piece] | None:
    """What lies in boxes with marked corners, in reading order, smaller ones first.

    A corner is marked where of the four cells around it those outside the box have one colour and that inside another.
    """
    g = piece.cells
    rows, columns = range(g.shape[0] - 1), range(g.shape[1] - 1)
    corner = [np.array([[_marked_corner(g, r, c, k) for c in columns] for r in rows], dtype=np.uint8) for k in range(4)]
    found = []
    for r, c in np.argwhere(corner[3]).tolist() if corner[3].size else []:
        for bottom, right in np.argwhere(corner[0][r + 1 :, c + 1 :] == corner[3][r, c]).tolist():
            h, w = bottom + 1, right + 1
            if corner[3][r, c] == corner[2][r, c + w] == corner[1][r + h, c]:
                found.append(_window(piece, r + 1, c + 1, h, w))
    return found if 0 < len(found) <= MOST_PIECES else None


def _full(lines: Grid, colour: int) -> npt.NDArray[np.bool_]:
    full: npt.NDArray[np.bool_] = (lines == colour).all(axis=1)
    return full


def _stretches(cut: npt.NDArray[np.bool_]) -> list[tuple[int, int]]:
    """Starts and lengths of the stretches between cuts."""
    found = []
    for is_cut, run in groupby(range(len(cut)), key=lambda i: bool(cut[i])):
        places = list(run)
        if not is_cut:
            found.append((places[0], len(places)))
    return found


@split
def cut_panels(piece: Piece, _arg: int) -> list[Piece] | None:
    """Between the full lines of the colour with most of them, else the longer side in halves, thirds or quarters."""
    g = piece.cells
    h, w = g.shape
    lines = [0] + [int(_full(g, c).sum() + _full(g.T, c).sum()) for c in range(1, 10)]
    if max(lines):
        colour = int(np.argmax(lines))
        rows, columns = _stretches(_full(g, colour)), _stretches(_full(g.T, colour))
    else:
        longer, shorter = (h, w) if h > w else (w, h)
        n = next((k for k in range(2, 5) if longer == k * shorter), 0)
        if not n:
            return None
        cuts, whole = [(i * shorter, shorter) for i in range(n)], [(0, shorter)]
        rows, columns = (cuts, whole) if h > w else (whole, cuts)
    if not 2 <= len(rows) * len(columns) <= MOST_PIECES:
        return None
    return [_window(piece, top, left, height, width) for top, height in rows for left, width in columns]


@split
def cut_lines(piece: Piece, arg: int) -> list[Piece] | None:
    """Each row (0) or column (1)."""
    h, w = piece.cells.shape
    found = [_window(piece, 0, i, h, 1) for i in range(w)] if arg else [_window(piece, i, 0, 1, w) for i in range(h)]
    return found if len(found) > 1 else None


def _parts_between(g: Grid, colour: int) -> list[npt.NDArray[np.bool_]]:
    """The parts between the cells of a colour; none where it does not touch all sides or does not separate."""
    wall = g == colour
    if not (wall[0].any() and wall[-1].any() and wall[:, 0].any() and wall[:, -1].any()):
        return []
    edge = np.ones(g.shape, dtype=bool)
    edge[1:-1, 1:-1] = False
    outer = connected(wall, edge)
    near = outer.astype(np.uint8)
    for dy, dx in STEPS:
        near |= shifted(outer.astype(np.uint8), dy, dx)
    left, found = ~wall, []
    while left.any():
        first = np.zeros(g.shape, dtype=bool)
        first.reshape(-1)[int(left.argmax())] = True
        part = connected(left, first)
        if not (near.astype(bool) & part).any():
            return []
        found.append(part)
        left &= ~part
    return found if len(found) > 1 else []


@split
def cut_parts(piece: Piece, _arg: int) -> list[Piece] | None:
    """What lies between the cells of the colour, drawn or empty, whose smallest part is largest."""
    best: list[npt.NDArray[np.bool_]] = []
    most = 0
    for colour in range(10):
        parts = _parts_between(piece.cells, colour)
        least = min((int(p.sum()) for p in parts), default=0)
        if least > most:
            best, most = parts, least
    return [_marked(piece, p) for p in best] or None


def _shape_of(p: Piece) -> tuple[tuple[int, ...], bytes]:
    return p.cells.shape, (p.cells != 0).tobytes()


def _drawing(p: Piece) -> tuple[tuple[int, ...], bytes]:
    return p.cells.shape, p.cells.tobytes()


def _alike(mark: Callable[[Piece], object]) -> Callable[[Piece, Sequence[Piece]], int]:
    return lambda p, together: sum(mark(p) == mark(q) for q in together)


def _symmetries(p: Piece, _all: Sequence[Piece]) -> int:
    g = p.cells
    square = g.shape[0] == g.shape[1]
    return int((g == g[:, ::-1]).all()) + int((g == g[::-1]).all()) + int(square and (g == g.T).all())


def _odd_cells(p: Piece, _all: Sequence[Piece]) -> int:
    count = np.bincount(p.cells.ravel(), minlength=10)[1:]
    return int(count.sum() - count.max())


PROPERTIES: tuple[Callable[[Piece, Sequence[Piece]], int], ...] = (
    lambda p, _all: int(np.count_nonzero(p.cells)),
    lambda p, _all: int(p.cells.size),
    lambda p, _all: int(p.cells.shape[0]),
    lambda p, _all: int(p.cells.shape[1]),
    lambda p, _all: len(np.unique(p.cells[p.cells != 0])),
    lambda p, _all: int((p.cells == 0).sum()),
    _symmetries,
    lambda p, _all: p.y,
    lambda p, _all: p.x,
    _odd_cells,
    lambda p, _all: int(enclosed(p.cells).sum()),
    _alike(_shape_of),
    _alike(_drawing),
    _alike(lambda p: commonest(p.cells)),
    lambda p, _all: commonest(p.cells),
)
"""The numbers that pieces are compared by, in the order of `NUMBERS` in table.py."""


def _values(pieces: Sequence[Piece], which: int) -> list[int]:
    return [PROPERTIES[which](p, pieces) for p in pieces]


def _extreme(pieces: Sequence[Piece], arg: int) -> list[bool] | None:
    """Which have the most or (odd argument) the least of property arg / 2; None where all have as much."""
    values = _values(pieces, arg // 2)
    if min(values) == max(values):
        return None
    return [v == (min(values) if arg % 2 else max(values)) for v in values]


@join
def keep_extreme(pieces: Sequence[Piece], arg: int) -> list[Piece] | None:
    """Those with the most or the least."""
    chosen = _extreme(pieces, arg)
    return None if chosen is None else [p for p, c in zip(pieces, chosen, strict=True) if c]


@join
def drop_extreme(pieces: Sequence[Piece], arg: int) -> list[Piece] | None:
    """All but those with the most or the least."""
    chosen = _extreme(pieces, arg)
    return None if chosen is None else [p for p, c in zip(pieces, chosen, strict=True) if not c]


@join
def take_extreme(pieces: Sequence[Piece], arg: int) -> list[Piece] | None:
    """The one with the most or the least; several only if they are drawn alike, then the first."""
    kept = keep_extreme(pieces, arg)
    return kept[:1] if kept and len({_drawing(p) for p in kept}) == 1 else None


@join
def take_first(pieces: Sequence[Piece], arg: int) -> list[Piece] | None:
    """The first of those with the most or the least."""
    kept = keep_extreme(pieces, arg)
    return kept[:1] if kept else None


@join
def take_odd(pieces: Sequence[Piece], arg: int) -> list[Piece] | None:
    """The one whose number no other has, where exactly one such is among three or more."""
    values = _values(pieces, arg)
    single = [p for p, v in zip(pieces, values, strict=True) if values.count(v) == 1]
    return single if len(pieces) > 2 and len(single) == 1 else None


@join
def sort_by(pieces: Sequence[Piece], arg: int) -> list[Piece] | None:
    """The most first; equals stay in their order."""
    values = _values(pieces, arg)
    order = sorted(range(len(pieces)), key=lambda i: -values[i])
    return [pieces[i] for i in order] if len(pieces) > 1 else None
