"""Shapes that repaint a piece and keep its size, in numpy. Each is the twin of the function of the same name in C."""

from __future__ import annotations

import numpy as np

from ttt._grid.compose.pieces import STEPS, Mask, Piece, commonest, connected, drawn_box, enclosed, placed, shifted
from ttt._grid.compose.shapes import shape
from ttt.values import Grid


@shape
def keep_colour(piece: Piece, _source: Piece, arg: int) -> Piece | None:
    """Only the cells of a colour."""
    return piece.showing(np.where(piece.cells == arg, piece.cells, 0))


@shape
def drop_colour(piece: Piece, _source: Piece, arg: int) -> Piece | None:
    """All but the cells of a colour."""
    return piece.showing(np.where(piece.cells == arg, 0, piece.cells))


@shape
def paint(piece: Piece, _source: Piece, arg: int) -> Piece | None:
    """Every drawn cell in one colour."""
    return piece.showing(np.where(piece.cells != 0, arg, 0))


@shape
def paint_commonest(piece: Piece, source: Piece, _arg: int) -> Piece | None:
    """Every drawn cell in the commonest colour."""
    return paint(piece, source, commonest(piece.cells))


@shape
def fill_holes(piece: Piece, _source: Piece, arg: int) -> Piece | None:
    """Enclosed empty cells in a colour, or the commonest for 0."""
    return piece.showing(np.where(enclosed(piece.cells), arg or commonest(piece.cells), piece.cells))


@shape
def holes_only(piece: Piece, _source: Piece, _arg: int) -> Piece | None:
    """Enclosed empty cells in the commonest colour, nothing else."""
    return piece.showing(np.where(enclosed(piece.cells), commonest(piece.cells), 0))


def _at_edge(g: Grid) -> Mask:
    """Whether any of the eight neighbours is empty, or beyond the edge."""
    edge = np.zeros(g.shape, dtype=bool)
    for dy, dx in STEPS:
        edge |= shifted(g, dy, dx) == 0
    return edge


@shape
def outline(piece: Piece, _source: Piece, _arg: int) -> Piece | None:
    """Only the drawn cells next to an empty one or the edge."""
    return piece.showing(np.where(_at_edge(piece.cells), piece.cells, 0))


@shape
def inner(piece: Piece, _source: Piece, _arg: int) -> Piece | None:
    """All but the drawn cells next to an empty one or the edge."""
    return piece.showing(np.where(_at_edge(piece.cells), 0, piece.cells))


@shape
def outer_edge(piece: Piece, _source: Piece, arg: int) -> Piece | None:
    """Only the drawn cells that empty cells join to the border, over sides and corners (0), or all others (1)."""
    g = piece.cells
    edge = np.ones(g.shape, dtype=bool)
    edge[1:-1, 1:-1] = False
    outside = connected(g == 0, edge)
    near = outside.astype(np.uint8)
    for dy, dx in STEPS:
        near |= shifted(outside.astype(np.uint8), dy, dx)
    return piece.showing(np.where((near.astype(bool) | edge) == bool(arg), 0, g))


@shape
def fill_box(piece: Piece, _source: Piece, _arg: int) -> Piece | None:
    """Empty cells inside the drawn box in the commonest colour."""
    box = drawn_box(piece.cells)
    if box is None:
        return None
    out = piece.cells.copy()
    part = out[box[0] : box[1] + 1, box[2] : box[3] + 1]
    part[part == 0] = commonest(piece.cells)
    return piece.showing(out)


def _first_seen(out: Grid, views: list[Grid]) -> Grid:
    """Empty cells take the first colour that the views show."""
    for view in views:
        out = np.where(out == 0, view, out)
    return out


@shape
def grow(piece: Piece, _source: Piece, arg: int) -> Piece | None:
    """Empty cells in the colour of the first drawn neighbour: of 4 (0) or 8 (1)."""
    g = piece.cells
    return piece.showing(_first_seen(g, [shifted(g, -dy, -dx) for dy, dx in STEPS[: 8 if arg else 4]]))


@shape
def surround(piece: Piece, _source: Piece, arg: int) -> Piece | None:
    """Empty cells with a drawn one among eight neighbours in a colour."""
    g = piece.cells
    near = np.zeros(g.shape, dtype=bool)
    for dy, dx in STEPS:
        near |= shifted(g, dy, dx) != 0
    return piece.showing(np.where((g == 0) & near, arg, g))


@shape
def fall(piece: Piece, _source: Piece, arg: int) -> Piece | None:
    """Drawn cells moved up, left, right or down until they meet, in their order."""
    upright, back = arg in (0, 3), arg >= 2
    lines = piece.cells.T if upright else piece.cells
    out = np.zeros_like(lines)
    for line, to in zip(lines, out, strict=True):
        drawn = line[line != 0]
        if len(drawn):
            to[len(to) - len(drawn) if back else 0 :][: len(drawn)] = drawn
    return piece.showing(out.T if upright else out)


def _seen(g: Grid, direction: int) -> Grid:
    """For each cell the first drawn colour in a direction, itself left out; 0 where there is none."""
    dy, dx = STEPS[direction]
    found = np.zeros_like(g)
    for _ in range(max(g.shape)):
        found = shifted(np.where(g != 0, g, found), -dy, -dx)
    return found


@shape
def rays(piece: Piece, _source: Piece, arg: int) -> Piece | None:
    """Lines from drawn cells over empty ones, in each direction of the bit mask; the first direction wins."""
    g = piece.cells
    looks = [3 - d if d < 4 else 11 - d for d in range(8) if arg >> d & 1]
    return piece.showing(_first_seen(g, [_seen(g, d) for d in looks]))


@shape
def join_equal(piece: Piece, _source: Piece, arg: int) -> Piece | None:
    """Empty cells between two of equal colour: bit 0 in columns, 1 in rows, 2 and 3 along diagonals."""
    g, views = piece.cells, []
    for bit, (ahead, behind) in enumerate(((0, 3), (1, 2), (4, 7), (5, 6))):
        if arg >> bit & 1:
            a = _seen(g, ahead)
            views.append(np.where(a == _seen(g, behind), a, 0).astype(np.uint8))
    return piece.showing(_first_seen(g, views))


@shape
def drop_dots(piece: Piece, _source: Piece, _arg: int) -> Piece | None:
    """Without the cells that have no neighbour of their colour."""
    g = piece.cells
    kept = np.zeros(g.shape, dtype=bool)
    for dy, dx in STEPS:
        kept |= shifted(g, dy, dx) == g
    return piece.showing(np.where(kept, g, 0))


@shape
def invert(piece: Piece, _source: Piece, _arg: int) -> Piece | None:
    """Empty cells in the commonest colour, drawn ones empty."""
    colour = commonest(piece.cells)
    return piece.showing(np.where(piece.cells == 0, colour, 0)) if colour else None


@shape
def swap_colours(piece: Piece, _source: Piece, _arg: int) -> Piece | None:
    """The two drawn colours of a piece that has exactly two exchanged."""
    pair = [c for c in np.unique(piece.cells).tolist() if c]
    if len(pair) != 2:
        return None
    to = np.arange(10, dtype=np.uint8)
    to[pair] = pair[::-1]
    return piece.showing(to[piece.cells])


@shape
def mirror_fill(piece: Piece, _source: Piece, arg: int) -> Piece | None:
    """Empty cells of the drawn box from the mirror image: by bits left-right, up-down, turned, over the diagonal."""
    box = drawn_box(piece.cells)
    if box is None:
        return None
    out = piece.cells.copy()
    part = out[box[0] : box[1] + 1, box[2] : box[3] + 1]
    if arg & 8 and part.shape[0] != part.shape[1]:
        return None
    images = (part[:, ::-1], part[::-1], part[::-1, ::-1], part.T)
    part[...] = _first_seen(part.copy(), [image.copy() for bit, image in enumerate(images) if arg >> bit & 1])
    return piece.showing(out)


@shape
def mend_tiling(piece: Piece, _source: Piece, _arg: int) -> Piece | None:
    """Empty cells from the smallest repeating pattern, by its cells, then its rows."""
    g = piece.cells
    h, w = g.shape
    rows, columns = np.divmod(np.arange(g.size).reshape(g.shape), w)
    drawn = g != 0
    for size in range(2, h * w // 2 + 1):
        for p in range(1, min(h, size) + 1):
            q = size // p
            if size % p or q > w:
                continue
            pattern = np.zeros((p, q), dtype=np.uint8)
            pattern[rows[drawn] % p, columns[drawn] % q] = g[drawn]
            made = pattern[rows % p, columns % q]
            if pattern.all() and (made[drawn] == g[drawn]).all():
                return piece.showing(made)
    return None


@shape
def shift(piece: Piece, _source: Piece, arg: int) -> Piece | None:
    """Moved by one cell; what leaves is lost."""
    return piece.showing(shifted(piece.cells, *STEPS[arg]))


@shape
def roll(piece: Piece, _source: Piece, arg: int) -> Piece | None:
    """Moved by one cell; what leaves comes in on the other side."""
    return piece.showing(np.roll(piece.cells, STEPS[arg], axis=(0, 1)))


@shape
def spread(piece: Piece, _source: Piece, arg: int) -> Piece | None:
    """Grown to the sides until nothing is empty: all colours (0), or all but the commonest (1)."""
    g, still = piece.cells, commonest(piece.cells)
    if not still:
        return None
    while True:
        growing = np.where(g == still, 0, g) if arg else g
        new = _first_seen(g, [shifted(growing, -dy, -dx) for dy, dx in STEPS[:4]])
        if np.array_equal(new, g):
            return piece.showing(g)
        g = new


@shape
def solid(piece: Piece, _source: Piece, _arg: int) -> Piece | None:
    """Every cell in the commonest colour."""
    return piece.showing(np.full_like(piece.cells, commonest(piece.cells)))


@shape
def in_frame(piece: Piece, source: Piece, _arg: int) -> Piece | None:
    """At its place in an empty grid of the input's size."""
    return Piece(0, 0, placed(piece, source.cells.shape))


@shape
def over_input(piece: Piece, source: Piece, _arg: int) -> Piece | None:
    """At its place above the input."""
    mine = placed(piece, source.cells.shape)
    return Piece(0, 0, np.where(mine != 0, mine, source.cells))


@shape
def under_input(piece: Piece, source: Piece, _arg: int) -> Piece | None:
    """At its place below the input."""
    return Piece(0, 0, np.where(source.cells != 0, source.cells, placed(piece, source.cells.shape)))


@shape
def mask_by_input(piece: Piece, source: Piece, _arg: int) -> Piece | None:
    """Only where the input is drawn."""
    below = placed(source, piece.cells.shape, piece.y, piece.x)
    return piece.showing(np.where(below != 0, piece.cells, 0))


@shape
def mask_by_empty(piece: Piece, source: Piece, _arg: int) -> Piece | None:
    """Only where the input is empty or ends."""
    below = placed(source, piece.cells.shape, piece.y, piece.x)
    return piece.showing(np.where(below == 0, piece.cells, 0))
