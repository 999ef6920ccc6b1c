"""Transformations that change a grid's size: poses, crops, scalings, tilings, panels, summaries."""

from __future__ import annotations

from functools import partial

import numpy as np

from ttt.grid.answers import Grid
from ttt.grid.scene import KINDS, PROPERTIES, REPEATS, Scene, turned
from ttt.grid.views import add, view

POSE_NAMES = (
    "as it is",
    "turned left",
    "turned upside down",
    "turned right",
    "mirrored left-right",
    "transposed",
    "mirrored up-down",
    "transposed over the other diagonal",
)


def _pose(i: int, s: Scene) -> Grid:
    g = s.grid
    return [*(turned(g, k) for k in range(4)), g[:, ::-1], g.T, g[::-1], turned(g, 2).T][i]


for _i, _name in enumerate(POSE_NAMES):
    add(_name, partial(_pose, _i), second=_i > 0, cost=0.0 if _i == 0 else 1.0)


def _box(grid: Grid, mask: np.ndarray) -> Grid | None:
    if not mask.any():
        return None
    rows, cols = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return grid[rows[0] : rows[-1] + 1, cols[0] : cols[-1] + 1]


@view("cropped to what is drawn", second=True)
def crop_front(s: Scene) -> Grid | None:
    """Crop to everything that is not background."""
    return _box(s.grid, s.front)


def _crop_colour(colour: int, s: Scene) -> Grid | None:
    return _box(s.grid, s.grid == colour)


def _crop_inside(colour: int, s: Scene) -> Grid | None:
    found = _crop_colour(colour, s)
    return None if found is None or min(found.shape) < 3 else found[1:-1, 1:-1]


def _without_colour(colour: int, s: Scene) -> Grid | None:
    if not s.counts[colour]:
        return None
    return np.where(s.grid == colour, np.uint8(s.background), s.grid)


for _c in range(10):
    add(f"cropped to colour {_c}", partial(_crop_colour, _c), second=True)
    add(f"cropped to the inside of colour {_c}", partial(_crop_inside, _c), second=True)


@view("without its outermost cells", second=True)
def crop_edge(s: Scene) -> Grid | None:
    """Drop the outermost rows and columns."""
    return s.grid[1:-1, 1:-1] if min(s.grid.shape) > 2 else None


def pick(s: Scene, kind: str, name: str, how: str) -> int | None:
    """Index of the one thing that stands out by a property: the most, the least, or the only odd one."""
    key = (kind, name, how)
    if key not in s.memo:
        s.memo[key] = _pick(s, kind, name, how)
    found: int | None = s.memo[key]
    return found


def _pick(s: Scene, kind: str, name: str, how: str) -> int | None:
    values = s.measure(kind, name)
    if not len(values):
        return None
    if how == "odd":
        if len(values) < 3:
            return None
        seen, count = np.unique(values, return_counts=True)
        single = seen[count == 1]
        return int(np.flatnonzero(values == single[0])[0]) if len(single) == 1 else None
    target = values.max() if how == "most" else values.min()
    hits = np.flatnonzero(values == target)
    if len(hits) == 1:
        return int(hits[0])
    things = s.things(kind)
    same = all(np.array_equal(things[h].alone, things[hits[0]].alone) for h in hits[1:])
    return int(hits[0]) if same and len(hits) < len(values) else None


def _crop_pick(kind: str, name: str, how: str, alone: bool, s: Scene) -> Grid | None:
    i = pick(s, kind, name, how)
    if i is None:
        return None
    thing = s.things(kind)[i]
    return thing.alone if alone else thing.patch


SELECTORS = (*PROPERTIES, *REPEATS)
for _kind, _word in KINDS.items():
    for _name in SELECTORS:
        for _how, _how_word in (("most", "most"), ("least", "least"), ("odd", "a unique")):
            _plain = _name in ("number of cells", "number of colours", "number of odd cells", "any symmetry")
            for _alone in (False, True) if _kind in ("piece", "object") else (False,):
                add(
                    f"cropped to the {_word} with {_how_word} {_name}" + (", alone" if _alone else ""),
                    partial(_crop_pick, _kind, _name, _how, _alone),
                    cost=(1.2 if _plain else 1.6) + (0.2 if _kind == "joined" else 0.0),
                )


def _panel(i: int, s: Scene) -> Grid | None:
    things = s.things("panel")
    return things[i].patch if -len(things) <= i < len(things) else None


for _i in range(9):
    add(f"panel {_i + 1}", partial(_panel, _i))
add("the last panel", partial(_panel, -1))


def _panels_overlaid(reverse: bool, s: Scene) -> Grid | None:
    things = s.things("panel")
    if len({t.patch.shape for t in things}) != 1:
        return None
    out = np.full_like(things[0].patch, s.background)
    for t in things if reverse else things[::-1]:
        out = np.where(t.patch != s.background, t.patch, out)
    return out


add("panels laid over one another, first on top", partial(_panels_overlaid, False))
add("panels laid over one another, last on top", partial(_panels_overlaid, True))


@view("how many panels draw each cell")
def panels_counted(s: Scene) -> Grid | None:
    """Per cell the number of panels that have something drawn there."""
    things = s.things("panel")
    if len({t.patch.shape for t in things}) != 1 or len(things) > 9:
        return None
    return sum(
        ((t.patch != s.background).astype(np.uint8) for t in things), start=np.zeros(things[0].patch.shape, np.uint8)
    )


@view("panels without separators")
def panels_joined(s: Scene) -> Grid | None:
    """Remove the separator lines."""
    if s.separators is None:
        return None
    rows, cols, _ = s.separators
    return np.delete(np.delete(s.grid, rows, axis=0), cols, axis=1)


def _panel_summary(what: str, s: Scene) -> Grid | None:
    rows, cols = s.panel_layout
    things = s.things("panel")
    if not things:
        return None
    values = []
    for t in things:
        drawn = t.colours.copy()
        drawn[t.background] = 0
        total = int(drawn.sum())
        values.append(
            {
                "colour": int(drawn.argmax()) if total else t.background,
                "count": min(total, 9),
                "full": int(total == t.mask.size),
                "drawn": int(total > 0),
            }.get(what, 0)
        )
    if what in ("fullest", "emptiest"):
        totals = s.measure("panel", "number of cells")
        target = totals.max() if what == "fullest" else totals.min()
        values = [int(v == target) for v in totals]
    return np.array(values, dtype=np.uint8).reshape(len(rows), len(cols))


for _what, _text in {
    "colour": "commonest colour",
    "count": "number of drawn cells",
    "full": "being full",
    "drawn": "being drawn at all",
    "fullest": "being the fullest",
    "emptiest": "being the emptiest",
}.items():
    add(f"one cell per panel: {_text}", partial(_panel_summary, _what))


def _upscaled(n: int, s: Scene) -> Grid:
    return np.repeat(np.repeat(s.grid, n, axis=0), n, axis=1)


def _downscaled(n: int, s: Scene) -> Grid | None:
    h, w = s.grid.shape
    if h % n or w % n or h * w == n * n:
        return None
    small = s.grid[::n, ::n]
    return small if np.array_equal(np.repeat(np.repeat(small, n, axis=0), n, axis=1), s.grid) else None


for _n in (2, 3, 4, 5):
    add(f"scaled up {_n} times", partial(_upscaled, _n), second=_n < 4)
    add(f"scaled down {_n} times", partial(_downscaled, _n), second=_n < 4)


@view("scaled down as far as it goes", second=True)
def shrunk(s: Scene) -> Grid | None:
    """Scale down by the largest whole number that loses nothing."""
    for n in range(15, 1, -1):
        small = _downscaled(n, s)
        if small is not None:
            return small
    return None


@view("each cell scaled to the grid's own size")
def upscaled_by_shape(s: Scene) -> Grid:
    """Every cell becomes a block of the grid's own height and width."""
    h, w = s.grid.shape
    return np.repeat(np.repeat(s.grid, h, axis=0), w, axis=1)


@view("tiled as often as it has cells")
def tiled_by_shape(s: Scene) -> Grid:
    """The grid tiled by its own height and width."""
    return np.tile(s.grid, s.grid.shape)


@view("each drawn cell replaced by the whole")
def self_product(s: Scene) -> Grid:
    """A copy of the grid where a cell is drawn, background elsewhere."""
    h, w = s.grid.shape
    return np.kron(s.front, np.ones((h, w), np.uint8)) * np.tile(s.grid - s.background, (h, w)) + np.uint8(s.background)


@view("scaled up by its number of colours")
def upscaled_by_colours(s: Scene) -> Grid | None:
    """Scale up by the number of colours other than the background."""
    n = int(np.count_nonzero(s.counts)) - 1
    return _upscaled(n, s) if n > 1 else None


@view("scaled up by its number of drawn cells")
def upscaled_by_cells(s: Scene) -> Grid | None:
    """Scale up by the number of cells that are not background."""
    n = int(s.front.sum())
    return _upscaled(n, s) if 1 < n < 15 else None


def _tiled(rows: int, cols: int, s: Scene) -> Grid:
    return np.tile(s.grid, (rows, cols))


for _r, _w in ((1, 2), (2, 1), (2, 2), (3, 3), (1, 3), (3, 1), (4, 4), (5, 5), (1, 4), (4, 1)):
    add(f"tiled {_r} x {_w}", partial(_tiled, _r, _w), second=True)


@view("with its left-right mirror image to the right", second=True)
def mirror_right(s: Scene) -> Grid:
    """Append the mirror image to the right."""
    return np.hstack([s.grid, s.grid[:, ::-1]])


@view("with its left-right mirror image to the left", second=True)
def mirror_left(s: Scene) -> Grid:
    """Put the mirror image to the left."""
    return np.hstack([s.grid[:, ::-1], s.grid])


@view("with its up-down mirror image below", second=True)
def mirror_below(s: Scene) -> Grid:
    """Append the mirror image below."""
    return np.vstack([s.grid, s.grid[::-1]])


@view("with its up-down mirror image above", second=True)
def mirror_above(s: Scene) -> Grid:
    """Put the mirror image above."""
    return np.vstack([s.grid[::-1], s.grid])


@view("mosaic of its four turns")
def turns(s: Scene) -> Grid | None:
    """The grid and its three turns in a square."""
    g = s.grid
    if g.shape[0] != g.shape[1]:
        return None
    return np.vstack([np.hstack([g, turned(g, 3)]), np.hstack([turned(g, 1), turned(g, 2)])])


def _unique(axis: int, s: Scene) -> Grid:
    g = s.grid if axis == 0 else s.grid.T
    keep = [i for i in range(len(g)) if i == 0 or not np.array_equal(g[i], g[i - 1])]
    return g[keep] if axis == 0 else g[keep].T


add("without repeated rows", partial(_unique, 0))
add("without repeated columns", partial(_unique, 1))


@view("without repeated rows and columns", second=True)
def unique_both(s: Scene) -> Grid:
    """Drop rows, then columns, equal to the one before."""
    return _unique(1, Scene(_unique(0, s)))


@view("without empty rows and columns", second=True)
def no_empty(s: Scene) -> Grid | None:
    """Drop rows and columns that are all background."""
    g = s.grid[s.front.any(axis=1)][:, s.front.any(axis=0)]
    return g if g.size else None


def _half(part: str, s: Scene) -> Grid | None:
    h, w = s.grid.shape
    g = s.grid
    if part == "top":
        return g[: (h + 1) // 2]
    if part == "bottom":
        return g[h // 2 :]
    if part == "left":
        return g[:, : (w + 1) // 2]
    return g[:, w // 2 :]


for _part in ("top", "bottom", "left", "right"):
    add(f"the {_part} half", partial(_half, _part), second=True)


def _third(i: int, axis: int, s: Scene) -> Grid | None:
    n = s.grid.shape[axis]
    return None if n % 3 else np.split(s.grid, 3, axis=axis)[i]


for _i in range(3):
    add(f"horizontal third {_i + 1}", partial(_third, _i, 0))
    add(f"vertical third {_i + 1}", partial(_third, _i, 1))


def _colours_sorted(rare_first: bool, wide: bool, s: Scene) -> Grid | None:
    order = [c for c in np.argsort(-s.counts, kind="stable") if s.counts[c] and c != s.background]
    if not order:
        return None
    line = np.array(order[::-1] if rare_first else order, dtype=np.uint8)
    return line[None, :] if wide else line[:, None]


for _rare, _text in ((False, "commonest"), (True, "rarest")):
    add(f"its colours, {_text} first, as a column", partial(_colours_sorted, _rare, False))
    add(f"its colours, {_text} first, as a row", partial(_colours_sorted, _rare, True))


def _bars(wide: bool, s: Scene) -> Grid | None:
    order = [c for c in np.argsort(-s.counts, kind="stable") if s.counts[c] and c != s.background]
    if not order or s.counts[order[0]] > 30:
        return None
    out = np.full((len(order), int(s.counts[order[0]])), s.background, dtype=np.uint8)
    for i, c in enumerate(order):
        out[i, : s.counts[c]] = c
    return out if wide else out.T


add("bars of its colour counts, across", partial(_bars, True))
add("bars of its colour counts, down", partial(_bars, False))


def _count_line(kind: str, s: Scene) -> Grid | None:
    n = len(s.things(kind))
    return np.full((1, n), 1, dtype=np.uint8) if 0 < n <= 30 else None


def _count_diagonal(kind: str, s: Scene) -> Grid | None:
    n = len(s.things(kind))
    return np.eye(n, dtype=np.uint8) if 0 < n <= 30 else None


for _kind in ("piece", "object", "colour"):
    add(f"a row as long as there are {KINDS[_kind]}s", partial(_count_line, _kind))
    add(f"a square as large as there are {KINDS[_kind]}s", partial(_count_diagonal, _kind))


@view("with a border of background around", second=True)
def padded(s: Scene) -> Grid:
    """Add one background cell on every side."""
    return np.pad(s.grid, 1, constant_values=s.background)


@view("with its edge repeated outwards", second=True)
def padded_edge(s: Scene) -> Grid:
    """Add one cell on every side, equal to its neighbour."""
    return np.pad(s.grid, 1, mode="edge")


def _concat_things(kind: str, across: bool, s: Scene) -> Grid | None:
    things = s.things(kind)
    if not 2 <= len(things) <= 8:
        return None
    if across:
        things = sorted(things, key=lambda t: t.left)
    sides = {t.height if across else t.width for t in things}
    if len(sides) != 1:
        return None
    parts = [t.alone for t in things]
    return np.hstack(parts) if across else np.vstack(parts)


for _kind in ("piece", "object"):
    add(f"its {KINDS[_kind]}s side by side", partial(_concat_things, _kind, True))
    add(f"its {KINDS[_kind]}s one below the other", partial(_concat_things, _kind, False))


@view("its objects laid over one another")
def objects_overlaid(s: Scene) -> Grid | None:
    """Objects of equal box size on top of one another."""
    things = s.things("object")
    if len(things) < 2 or len({t.mask.shape for t in things}) != 1:
        return None
    out = things[0].alone.copy()
    for t in things[1:]:
        out = np.where(out == s.background, t.alone, out)
    return out
