"""Transformations that read a grid as panels between separator lines, or as its halves or thirds."""

# mypy: disable-error-code="no-any-return"
from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np

from ttt._grid.scene import Scene
from ttt._grid.things import Thing
from ttt._grid.transforms.registry import Table, Transform
from ttt.values import Grid


def _panel(i: int, s: Scene) -> Grid | None:
    things = s.things("panel")
    return things[i].patch if -len(things) <= i < len(things) else None


def _of_one_size(s: Scene) -> list[Thing]:
    """Return the panels where all have the same size, else none."""
    things = s.things("panel")
    return things if len({t.patch.shape for t in things}) == 1 else []


def _overlaid(last_on_top: bool, s: Scene) -> Grid | None:
    things = _of_one_size(s)
    if not things:
        return None
    out = np.full_like(things[0].patch, s.background)
    for t in things if last_on_top else things[::-1]:
        out = np.where(t.patch != s.background, t.patch, out)
    return out


def _counted(s: Scene) -> Grid | None:
    things = _of_one_size(s)
    if not things or len(things) > 9:
        return None
    return sum(
        ((t.patch != s.background).astype(np.uint8) for t in things), start=np.zeros(things[0].patch.shape, np.uint8)
    )


def _without_separators(s: Scene) -> Grid | None:
    if s.separators is None:
        return None
    rows, cols, _ = s.separators
    return np.delete(np.delete(s.grid, rows, axis=0), cols, axis=1)


def _one_cell_each(value: Callable[[Thing], int], s: Scene) -> Grid | None:
    """Return one cell per panel, laid out as the panels are."""
    things = s.things("panel")
    if not things:
        return None
    rows, cols = s.panel_layout
    return np.array([value(t) for t in things], dtype=np.uint8).reshape(len(rows), len(cols))


def _one_cell_each_if_extreme(most: bool, s: Scene) -> Grid | None:
    totals = s.measure("panel", "number of cells")
    if not len(totals):
        return None
    rows, cols = s.panel_layout
    target = totals.max() if most else totals.min()
    return (totals == target).astype(np.uint8).reshape(len(rows), len(cols))


PANELS: Table = {
    "panel 1": Transform(partial(_panel, 0)),
    "panel 2": Transform(partial(_panel, 1)),
    "panel 3": Transform(partial(_panel, 2)),
    "panel 4": Transform(partial(_panel, 3)),
    "panel 5": Transform(partial(_panel, 4)),
    "panel 6": Transform(partial(_panel, 5)),
    "panel 7": Transform(partial(_panel, 6)),
    "panel 8": Transform(partial(_panel, 7)),
    "panel 9": Transform(partial(_panel, 8)),
    "the last panel": Transform(partial(_panel, -1)),
    "panels laid over one another, first on top": Transform(partial(_overlaid, False)),
    "panels laid over one another, last on top": Transform(partial(_overlaid, True)),
    "in how many panels each cell is drawn": Transform(_counted),
    "panels without separators": Transform(_without_separators),
    "one cell per panel: its most frequent drawn colour": Transform(
        partial(_one_cell_each, lambda t: int(t.drawn.argmax()) if t.drawn.any() else t.background)
    ),
    "one cell per panel: its number of drawn cells": Transform(
        partial(_one_cell_each, lambda t: min(int(t.drawn.sum()), 9))
    ),
    "one cell per panel: whether it is full": Transform(
        partial(_one_cell_each, lambda t: int(t.drawn.sum() == t.mask.size))
    ),
    "one cell per panel: whether anything is drawn": Transform(partial(_one_cell_each, lambda t: int(t.drawn.any()))),
    "one cell per panel: whether it is the fullest": Transform(partial(_one_cell_each_if_extreme, True)),
    "one cell per panel: whether it is the emptiest": Transform(partial(_one_cell_each_if_extreme, False)),
}
