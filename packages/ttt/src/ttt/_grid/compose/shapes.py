"""Shapes that change a piece's size or pose, in numpy. Each is the twin of the function of the same name in C."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from ttt._grid.compose.pieces import LARGEST, Piece, commonest, drawn_box, objects_of
from ttt.values import Grid

Shape = Callable[[Piece, Piece, int], Piece | None]
"""A function of a piece, the task's own input and an argument."""
SHAPES: dict[str, Shape] = {}


def shape(function: Shape) -> Shape:
    """Add a function to the table."""
    SHAPES[function.__name__] = function
    return function


def _turned(g: Grid, quarters: int) -> Grid:
    return np.rot90(g, quarters)


@shape
def pose(piece: Piece, _source: Piece, arg: int) -> Piece | None:
    """Turned left by quarters, mirrored, transposed, upside down, over the other diagonal."""
    g = piece.cells
    if arg < 4:
        return piece.showing(_turned(g, arg))
    return piece.showing((g[:, ::-1], g.T, g[::-1], g[::-1, ::-1].T)[arg - 4])


@shape
def crop(piece: Piece, _source: Piece, _arg: int) -> Piece | None:
    """The box of what is drawn."""
    box = drawn_box(piece.cells)
    if box is None:
        return None
    top, bottom, left, right = box
    return piece.showing(piece.cells[top : bottom + 1, left : right + 1], top, left)


@shape
def middle(piece: Piece, _source: Piece, _arg: int) -> Piece | None:
    """The cell in the middle, or the two or four."""
    h, w = piece.cells.shape
    top, left = (h - 1) // 2, (w - 1) // 2
    return piece.showing(piece.cells[top : top + 2 - h % 2, left : left + 2 - w % 2], top, left)


@shape
def trim(piece: Piece, _source: Piece, _arg: int) -> Piece | None:
    """Without the outermost rows and columns."""
    return piece.showing(piece.cells[1:-1, 1:-1], 1, 1) if min(piece.cells.shape) > 2 else None


@shape
def half(piece: Piece, _source: Piece, arg: int) -> Piece | None:
    """Left, right, upper or lower half; the middle line of an odd length belongs to neither."""
    h, w = piece.cells.shape
    h, w = (h // 2, w) if arg >= 2 else (h, w // 2)
    top = piece.cells.shape[0] - h if arg == 3 else 0
    left = piece.cells.shape[1] - w if arg == 1 else 0
    return piece.showing(piece.cells[top : top + h, left : left + w], top, left)


@shape
def mirror_out(piece: Piece, _source: Piece, arg: int) -> Piece | None:
    """With the mirror image to the right, left, below or above."""
    g, axis = piece.cells, int(arg < 2)
    parts = [g, np.flip(g, axis)]
    return piece.showing(np.concatenate(parts[::-1] if arg in (1, 3) else parts, axis))


@shape
def mosaic(piece: Piece, _source: Piece, arg: int) -> Piece | None:
    """Four copies as a square: 0 mirrored outwards, 1 turned by quarters clockwise from the top left."""
    g = piece.cells
    if arg == 0:
        return piece.showing(np.block([[g, g[:, ::-1]], [g[::-1], g[::-1, ::-1]]]))
    if g.shape[0] != g.shape[1]:
        return None
    return piece.showing(np.block([[g, _turned(g, 3)], [_turned(g, 1), _turned(g, 2)]]))


@shape
def tile(piece: Piece, _source: Piece, arg: int) -> Piece | None:
    """Copies side by side: ten times the rows of copies plus the columns."""
    return piece.showing(np.tile(piece.cells, divmod(arg, 10)))


@shape
def scale_up(piece: Piece, _source: Piece, arg: int) -> Piece | None:
    """Each cell as a square."""
    return piece.showing(piece.cells.repeat(arg, axis=0).repeat(arg, axis=1))


@shape
def scale_down(piece: Piece, _source: Piece, _arg: int) -> Piece | None:
    """Each of the largest squares of one colour as a cell."""
    g = piece.cells
    for k in range(LARGEST, 1, -1):
        if g.shape[0] % k == 0 and g.shape[1] % k == 0:
            small = g[::k, ::k]
            if np.array_equal(small.repeat(k, axis=0).repeat(k, axis=1), g):
                return piece.showing(small)
    return None


def _selected(piece: Piece, rows: list[int], columns: list[int]) -> Piece | None:
    g = piece.cells
    return None if (len(rows), len(columns)) == g.shape else piece.showing(g[np.ix_(rows, columns)])


@shape
def rows_once(piece: Piece, _source: Piece, _arg: int) -> Piece | None:
    """Without the rows and columns that equal the one before."""
    g = piece.cells
    rows = [r for r in range(g.shape[0]) if r == 0 or (g[r] != g[r - 1]).any()]
    columns = [c for c in range(g.shape[1]) if c == 0 or (g[:, c] != g[:, c - 1]).any()]
    return _selected(piece, rows, columns)


@shape
def drop_empty_lines(piece: Piece, _source: Piece, _arg: int) -> Piece | None:
    """Without the rows and columns in which nothing is drawn."""
    g = piece.cells
    rows, columns = np.flatnonzero(g.any(axis=1)).tolist(), np.flatnonzero(g.any(axis=0)).tolist()
    return _selected(piece, rows, columns) if rows else None


def _product(whole: Piece, part: Piece, place: Piece) -> Piece | None:
    if whole.cells.shape[0] * part.cells.shape[0] > LARGEST or whole.cells.shape[1] * part.cells.shape[1] > LARGEST:
        return None
    return place.showing(np.kron((whole.cells != 0).astype(np.uint8), part.cells))


@shape
def self_product(piece: Piece, _source: Piece, _arg: int) -> Piece | None:
    """A copy of the piece at each of its drawn cells."""
    return _product(piece, piece, piece)


@shape
def product_with_input(piece: Piece, source: Piece, _arg: int) -> Piece | None:
    """A copy of the piece at each drawn cell of the input."""
    return _product(source, piece, piece)


@shape
def input_product(piece: Piece, source: Piece, _arg: int) -> Piece | None:
    """A copy of the input at each drawn cell of the piece."""
    return _product(piece, source, piece)


@shape
def tile_input_frame(piece: Piece, source: Piece, _arg: int) -> Piece | None:
    """Repeated from the top left over a grid of the input's size."""
    h, w = source.cells.shape
    g = piece.cells
    return Piece(0, 0, g[np.ix_(np.arange(h) % g.shape[0], np.arange(w) % g.shape[1])])


@shape
def add_frame(piece: Piece, _source: Piece, arg: int) -> Piece | None:
    """One more cell on every side, of a colour or of the commonest for 0."""
    return piece.showing(np.pad(piece.cells, 1, constant_values=arg or commonest(piece.cells)), -1, -1)


@shape
def single_cell(piece: Piece, _source: Piece, _arg: int) -> Piece | None:
    """One cell of the commonest colour."""
    colour = commonest(piece.cells)
    return piece.showing(np.full((1, 1), colour, dtype=np.uint8)) if colour else None


@shape
def to_origin(piece: Piece, _source: Piece, _arg: int) -> Piece | None:
    """The same at the top left."""
    return Piece(0, 0, piece.cells)


def _shares(given: int, wanted: int) -> npt.NDArray[np.int64]:
    """How much of each given cell lies under each wanted cell, where both are spread over one length."""
    y, at = np.arange(given), np.arange(wanted)[:, None]
    low, high = np.maximum(y * wanted, at * given), np.minimum((y + 1) * wanted, (at + 1) * given)
    shares: npt.NDArray[np.int64] = np.maximum(high - low, 0)
    return shares


def _fitted(piece: Piece, size: tuple[int, ...]) -> Piece | None:
    """Resized: each cell the colour that covers most of it, the lowest of equals."""
    g = piece.cells
    if size == g.shape:
        return None
    down, across = _shares(g.shape[0], size[0]), _shares(g.shape[1], size[1])
    weight = np.stack([down @ (g == c) @ across.T for c in range(10)])
    return Piece(0, 0, weight.argmax(axis=0).astype(np.uint8))


@shape
def fit_output(piece: Piece, source: Piece, _arg: int) -> Piece | None:
    """Resized to the output's size."""
    return None if source.output is None else _fitted(piece, source.output)


@shape
def fit_input(piece: Piece, source: Piece, _arg: int) -> Piece | None:
    """Resized to the input's size."""
    return _fitted(piece, source.cells.shape)


def _taken(piece: Piece, rows: npt.NDArray[np.int64], columns: npt.NDArray[np.int64]) -> Piece:
    """The cells at some rows and columns, empty where they lie outside."""
    h, w = piece.cells.shape
    inside = ((rows >= 0) & (rows < h))[:, None] & ((columns >= 0) & (columns < w))
    found = piece.cells[np.ix_(np.clip(rows, 0, h - 1), np.clip(columns, 0, w - 1))]
    return Piece(0, 0, np.where(inside, found, 0).astype(np.uint8))


def _tiled(piece: Piece, size: tuple[int, ...], apart: int) -> Piece:
    """Copies over a frame, some cells apart, one of them at its place."""
    h, w = piece.cells.shape
    rows, columns = (np.arange(n) for n in size)
    return _taken(piece, (rows - piece.y) % (h + apart), (columns - piece.x) % (w + apart))


@shape
def tile_output(piece: Piece, source: Piece, arg: int) -> Piece | None:
    """Copies over the output's frame, `arg` cells apart, one of them at its place."""
    return None if source.output is None else _tiled(piece, source.output, arg)


@shape
def tile_input(piece: Piece, source: Piece, arg: int) -> Piece | None:
    """Copies over the input's frame, `arg` cells apart, one of them at its place."""
    return _tiled(piece, source.cells.shape, arg)


def _mirrored(piece: Piece, size: tuple[int, ...], apart: int) -> Piece:
    """The same with each second copy mirrored."""
    found = []
    for n, at, side in zip(size, (piece.y, piece.x), piece.cells.shape, strict=True):
        places, step = (np.arange(n) - at) % (2 * (side + apart)), side + apart
        found.append(np.where(places >= step, step + side - 1 - places, places))
    return _taken(piece, *found)


@shape
def mirror_output(piece: Piece, source: Piece, arg: int) -> Piece | None:
    """Copies over the output's frame, each second mirrored."""
    return None if source.output is None else _mirrored(piece, source.output, arg)


@shape
def mirror_input(piece: Piece, source: Piece, arg: int) -> Piece | None:
    """Copies over the input's frame, each second mirrored."""
    return _mirrored(piece, source.cells.shape, arg)


def _counted(g: Grid, what: int) -> int:
    if what == 2:
        return objects_of(g)
    return len(np.unique(g[g != 0])) if what else int(np.count_nonzero(g))


@shape
def block(piece: Piece, _source: Piece, arg: int) -> Piece | None:
    """As many cells as it has drawn cells, colours or objects: a square, a row or a column."""
    what, form = divmod(arg, 3)
    n = _counted(piece.cells, what)
    if not 1 <= n <= LARGEST:
        return None
    shape_ = (1 if form == 1 else n, 1 if form == 2 else n)
    return Piece(0, 0, np.full(shape_, commonest(piece.cells), dtype=np.uint8))
