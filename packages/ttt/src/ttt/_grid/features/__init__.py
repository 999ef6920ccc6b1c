"""Whole numbers per cell of a grid, in tables by subject; of equal ones the first in this order is kept."""

from __future__ import annotations

from ttt._grid.features import cells, things
from ttt._grid.features.registry import FEATURES, Feature, Table, register

register(
    cells.NEIGHBOURS,
    cells.REGIONS,
    things.OWN_THING,
    things.COLOURS,
    things.BOXES,
    cells.POSITIONS,
    cells.ROWS_AND_COLUMNS,
    cells.WHOLE_GRID,
)

__all__ = ["FEATURES", "Feature", "Table", "register"]
