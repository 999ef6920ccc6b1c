"""Transformations that change a grid's size: poses, crops, scalings, tilings, halves, summaries of colours."""

from __future__ import annotations

from functools import partial

import numpy as np

from ttt._grid.geometry import Mask, turned
from ttt._grid.rectangles import outline
from ttt._grid.scene import Scene
from ttt._grid.transforms.registry import Table, Transform, per_colour
from ttt.values import Grid

POSES: Table = {
    "as it is": Transform(lambda s: s.grid, cost=0.0),
    "turned left": Transform(lambda s: turned(s.grid, 1), second=True),
    "turned upside down": Transform(lambda s: turned(s.grid, 2), second=True),
    "turned right": Transform(lambda s: turned(s.grid, 3), second=True),
    "mirrored left-right": Transform(lambda s: s.grid[:, ::-1], second=True),
    "transposed": Transform(lambda s: s.grid.T, second=True),
    "mirrored up-down": Transform(lambda s: s.grid[::-1], second=True),
    "transposed over the other diagonal": Transform(lambda s: turned(s.grid, 2).T, second=True),
}


def _box(grid: Grid, mask: Mask) -> Grid | None:
    if not mask.any():
        return None
    rows, cols = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return grid[rows[0] : rows[-1] + 1, cols[0] : cols[-1] + 1]


def _crop_colour(colour: int, s: Scene) -> Grid | None:
    return _box(s.grid, s.grid == colour)


def _crop_inside(colour: int, s: Scene) -> Grid | None:
    found = _crop_colour(colour, s)
    return None if found is None or min(found.shape) < 3 else found[1:-1, 1:-1]


def _crop_edge(s: Scene) -> Grid | None:
    return s.grid[1:-1, 1:-1] if min(s.grid.shape) > 2 else None


CROPS: Table = {
    "cropped to what is drawn": Transform(lambda s: _box(s.grid, s.front), second=True),
    **per_colour(
        {
            "cropped to colour {}": lambda c: Transform(partial(_crop_colour, c), second=True),
            "cropped to the inside of colour {}": lambda c: Transform(partial(_crop_inside, c), second=True),
        }
    ),
    "without its outermost cells": Transform(_crop_edge, second=True),
}


def _upscaled(n: int, s: Scene) -> Grid:
    return np.repeat(np.repeat(s.grid, n, axis=0), n, axis=1)


def _downscaled(n: int, s: Scene) -> Grid | None:
    h, w = s.grid.shape
    if h % n or w % n or h * w == n * n:
        return None
    small = s.grid[::n, ::n]
    return small if np.array_equal(np.repeat(np.repeat(small, n, axis=0), n, axis=1), s.grid) else None


def _shrunk(s: Scene) -> Grid | None:
    """Scale down by the largest whole number that loses nothing."""
    for n in range(15, 1, -1):
        small = _downscaled(n, s)
        if small is not None:
            return small
    return None


def _outline(inside: bool, s: Scene) -> Grid | None:
    box = outline(s)
    if box is None:
        return None
    top, left, bottom, right = box
    return s.grid[top + inside : bottom - inside, left + inside : right - inside]


OUTLINES: Table = {
    "cropped to the largest outline of one colour": Transform(partial(_outline, False)),
    "cropped to what lies in the largest outline of one colour": Transform(partial(_outline, True)),
}


def _upscaled_by_shape(s: Scene) -> Grid:
    """Repeat every cell in a block of the grid's own height and width."""
    h, w = s.grid.shape
    return np.repeat(np.repeat(s.grid, h, axis=0), w, axis=1)


def _self_product(s: Scene) -> Grid:
    """Put a copy of the grid where a cell is drawn, background elsewhere."""
    h, w = s.grid.shape
    return np.kron(s.front, np.ones((h, w), np.uint8)) * np.tile(s.grid - s.background, (h, w)) + np.uint8(s.background)


def _upscaled_by_colours(s: Scene) -> Grid | None:
    n = int(np.count_nonzero(s.counts)) - 1
    return _upscaled(n, s) if n > 1 else None


def _upscaled_by_cells(s: Scene) -> Grid | None:
    n = int(s.front.sum())
    return _upscaled(n, s) if 1 < n < 15 else None


SCALES: Table = {
    "scaled up 2 times": Transform(partial(_upscaled, 2), second=True),
    "scaled down 2 times": Transform(partial(_downscaled, 2), second=True),
    "scaled up 3 times": Transform(partial(_upscaled, 3), second=True),
    "scaled down 3 times": Transform(partial(_downscaled, 3), second=True),
    "scaled up 4 times": Transform(partial(_upscaled, 4)),
    "scaled down 4 times": Transform(partial(_downscaled, 4)),
    "scaled up 5 times": Transform(partial(_upscaled, 5)),
    "scaled down 5 times": Transform(partial(_downscaled, 5)),
    "scaled down as far as possible": Transform(_shrunk, second=True),
    "each cell enlarged to the grid's own size": Transform(_upscaled_by_shape),
    "tiled as many times as it has rows and columns": Transform(lambda s: np.tile(s.grid, s.grid.shape)),
    "each drawn cell replaced by the whole grid": Transform(_self_product),
    "scaled up by its number of colours": Transform(_upscaled_by_colours),
    "scaled up by its number of drawn cells": Transform(_upscaled_by_cells),
}


def _tiled(rows: int, columns: int, s: Scene) -> Grid:
    return np.tile(s.grid, (rows, columns))


def _four_turns(s: Scene) -> Grid | None:
    g = s.grid
    if g.shape[0] != g.shape[1]:
        return None
    return np.vstack([np.hstack([g, turned(g, 3)]), np.hstack([turned(g, 1), turned(g, 2)])])


TILINGS: Table = {
    "tiled 1 x 2": Transform(partial(_tiled, 1, 2), second=True),
    "tiled 2 x 1": Transform(partial(_tiled, 2, 1), second=True),
    "tiled 2 x 2": Transform(partial(_tiled, 2, 2), second=True),
    "tiled 3 x 3": Transform(partial(_tiled, 3, 3), second=True),
    "tiled 1 x 3": Transform(partial(_tiled, 1, 3), second=True),
    "tiled 3 x 1": Transform(partial(_tiled, 3, 1), second=True),
    "tiled 4 x 4": Transform(partial(_tiled, 4, 4), second=True),
    "tiled 5 x 5": Transform(partial(_tiled, 5, 5), second=True),
    "tiled 1 x 4": Transform(partial(_tiled, 1, 4), second=True),
    "tiled 4 x 1": Transform(partial(_tiled, 4, 1), second=True),
    "with its left-right mirror image to the right": Transform(
        lambda s: np.hstack([s.grid, s.grid[:, ::-1]]), second=True
    ),
    "with its left-right mirror image to the left": Transform(
        lambda s: np.hstack([s.grid[:, ::-1], s.grid]), second=True
    ),
    "with its up-down mirror image below": Transform(lambda s: np.vstack([s.grid, s.grid[::-1]]), second=True),
    "with its up-down mirror image above": Transform(lambda s: np.vstack([s.grid[::-1], s.grid]), second=True),
    "mosaic of its four turns": Transform(_four_turns),
}


def _unique_rows(grid: Grid) -> Grid:
    return grid[[i for i in range(len(grid)) if i == 0 or not np.array_equal(grid[i], grid[i - 1])]]


def _without_empty(s: Scene) -> Grid | None:
    g = s.grid[s.front.any(axis=1)][:, s.front.any(axis=0)]
    return g if g.size else None


def _third(i: int, axis: int, s: Scene) -> Grid | None:
    n = s.grid.shape[axis]
    return None if n % 3 else np.split(s.grid, 3, axis=axis)[i]


CUTS: Table = {
    "without repeated rows": Transform(lambda s: _unique_rows(s.grid)),
    "without repeated columns": Transform(lambda s: _unique_rows(s.grid.T).T),
    "without repeated rows and columns": Transform(lambda s: _unique_rows(_unique_rows(s.grid).T).T, second=True),
    "without empty rows and columns": Transform(_without_empty, second=True),
    "the top half": Transform(lambda s: s.grid[: (len(s.grid) + 1) // 2], second=True),
    "the bottom half": Transform(lambda s: s.grid[len(s.grid) // 2 :], second=True),
    "the left half": Transform(lambda s: s.grid[:, : (s.grid.shape[1] + 1) // 2], second=True),
    "the right half": Transform(lambda s: s.grid[:, s.grid.shape[1] // 2 :], second=True),
    "horizontal third 1": Transform(partial(_third, 0, 0)),
    "vertical third 1": Transform(partial(_third, 0, 1)),
    "horizontal third 2": Transform(partial(_third, 1, 0)),
    "vertical third 2": Transform(partial(_third, 1, 1)),
    "horizontal third 3": Transform(partial(_third, 2, 0)),
    "vertical third 3": Transform(partial(_third, 2, 1)),
}


def _colours_by_count(s: Scene) -> list[int]:
    """Return the drawn colours, most frequent first; all colours where none is mere background."""
    ground = s.background if not s.background or s.counts[s.background] > 0.6 * s.grid.size else 0
    return [int(c) for c in np.argsort(-s.counts, kind="stable") if s.counts[c] and c != ground]


def _colours(rarest_first: bool, s: Scene) -> Grid | None:
    order = _colours_by_count(s)
    return np.array(order[::-1] if rarest_first else order, dtype=np.uint8)[:, None] if order else None


def _colour_row(rarest_first: bool, s: Scene) -> Grid | None:
    column = _colours(rarest_first, s)
    return None if column is None else column.T


def _bars(across: bool, s: Scene) -> Grid | None:
    order = _colours_by_count(s)
    if not order or s.counts[order[0]] > 30:
        return None
    out = np.full((len(order), int(s.counts[order[0]])), 0 if s.background in order else s.background, dtype=np.uint8)
    for i, c in enumerate(order):
        out[i, : s.counts[c]] = c
    return out if across else out.T


COLOUR_SUMMARIES: Table = {
    "its colours, most frequent first, as a column": Transform(partial(_colours, False)),
    "its colours, most frequent first, as a row": Transform(partial(_colour_row, False)),
    "its colours, rarest first, as a column": Transform(partial(_colours, True)),
    "its colours, rarest first, as a row": Transform(partial(_colour_row, True)),
    "bars of its colour counts, across": Transform(partial(_bars, True)),
    "bars of its colour counts, down": Transform(partial(_bars, False)),
}

FRAMES: Table = {
    "with a border of background around it": Transform(
        lambda s: np.pad(s.grid, 1, constant_values=s.background), second=True
    ),
    "with its edge repeated outwards": Transform(lambda s: np.pad(s.grid, 1, mode="edge"), second=True),
}
