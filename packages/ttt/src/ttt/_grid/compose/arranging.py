"""Arranging pieces among each other and beside the input, in numpy. Each is the twin of the function in C."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from ttt._grid.compose.parts import PROPERTIES, join
from ttt._grid.compose.pieces import LARGEST, STEPS, Piece, commonest
from ttt._grid.compose.shapes import shape
from ttt.values import Grid


@shape
def input_in_box(piece: Piece, source: Piece, _arg: int) -> Piece | None:
    """What the input has in the piece's box."""
    h, w = piece.cells.shape
    bottom, right = piece.y + h, piece.x + w
    if piece.y < 0 or piece.x < 0 or bottom > source.cells.shape[0] or right > source.cells.shape[1]:
        return None
    return piece.showing(source.cells[piece.y : bottom, piece.x : right])


@shape
def sample(piece: Piece, _source: Piece, arg: int) -> Piece | None:
    """Every row and column of a number (arg / 10), from one (arg % 10) on."""
    step, first = divmod(arg, 10)
    if min(piece.cells.shape) <= max(step, first):
        return None
    return Piece(0, 0, np.ascontiguousarray(piece.cells[first::step, first::step]))


def _labels(g: Grid, any_colour: bool) -> tuple[npt.NDArray[np.int64], int]:
    """Number connected cells, over sides and corners, in reading order."""
    label, marks = np.zeros(g.shape, dtype=np.int64), 0
    for r, c in np.argwhere(g).tolist():
        if label[r, c]:
            continue
        marks += 1
        label[r, c] = marks
        stack = [(r, c)]
        while stack:
            a, b = stack.pop()
            for dy, dx in STEPS:
                y, x = a + dy, b + dx
                if not (0 <= y < g.shape[0] and 0 <= x < g.shape[1]) or not g[y, x] or label[y, x]:
                    continue
                if any_colour or g[y, x] == g[r, c]:
                    label[y, x] = marks
                    stack.append((y, x))
    return label, marks


@shape
def fall_objects(piece: Piece, _source: Piece, arg: int) -> Piece | None:
    """Connected cells, of one colour (arg < 4) or of any, fallen as a whole to a side until they meet something."""
    out = piece.cells.copy()
    label, marks = _labels(out, arg >= 4)
    dy, dx = STEPS[arg % 4]
    moves = True
    while moves:
        moves = False
        for m in range(1, marks + 1):
            r, c = np.nonzero(label == m)
            y, x = r + dy, c + dx
            if y.min() < 0 or x.min() < 0 or y.max() >= out.shape[0] or x.max() >= out.shape[1]:
                continue
            if (~np.isin(label[y, x], (0, m))).any():
                continue
            moves = True
            colours = out[r, c]
            label[r, c], out[r, c] = 0, 0
            label[y, x], out[y, x] = m, colours
    return piece.showing(out)


@shape
def corner_of_output(piece: Piece, source: Piece, arg: int) -> Piece | None:
    """Its part of the output's size: top left (0) or right (1), bottom left (2) or right (3), or the middle (4)."""
    if source.output is None:
        return None
    h, w = source.output
    down, right = piece.cells.shape[0] - h, piece.cells.shape[1] - w
    if min(down, right) < 0 or not (down or right) or (arg == 4 and (down % 2 or right % 2)):
        return None
    top, left = (down // 2, right // 2) if arg == 4 else (down if arg >= 2 else 0, right if arg % 2 else 0)
    return piece.showing(piece.cells[top : top + h, left : left + w], top, left)


def _lanes(spans: Sequence[tuple[int, int]]) -> list[int]:
    """The lane of each span: spans that share a place lie in one lane."""
    lane, n, end = [0] * len(spans), 0, -1000
    for k in sorted(range(len(spans)), key=lambda k: spans[k][0]):
        if spans[k][0] >= end:
            n += 1
        end = max(end, spans[k][1])
        lane[k] = n - 1
    return lane


@join
def as_they_lie(pieces: Sequence[Piece], _arg: int) -> list[Piece] | None:
    """One cell of its commonest colour for each, row by row and column by column as they lie."""
    if len(pieces) < 2:
        return None
    rows = _lanes([(p.y, p.y + p.cells.shape[0]) for p in pieces])
    columns = _lanes([(p.x, p.x + p.cells.shape[1]) for p in pieces])
    size = max(rows) + 1, max(columns) + 1
    if max(size) > LARGEST:
        return None
    out = np.zeros(size, dtype=np.uint8)
    for p, row, column in zip(pieces, rows, columns, strict=True):
        out[row, column] = commonest(p.cells)
    return [Piece(0, 0, out)]


@join
def numbers_in_line(pieces: Sequence[Piece], arg: int) -> list[Piece] | None:
    """A number of each (arg / 2), nine at most, as the colour of a cell, in a row (arg % 2 = 0) or a column."""
    values = [PROPERTIES[arg // 2](p, pieces) for p in pieces]
    if not 2 <= len(values) <= LARGEST or min(values) < 0:
        return None
    line = np.minimum([values], 9).astype(np.uint8)
    return [Piece(0, 0, np.ascontiguousarray(line.T if arg % 2 else line))]
