"""Whole numbers per cell of a grid, in tables by subject; of equal ones the first in this order is kept."""

from __future__ import annotations

from ttt._grid.features import around, cells, lines, things
from ttt._grid.features.registry import FEATURES, Feature, Table, register

register(
    cells.NEIGHBOURS,
    cells.REGIONS,
    things.OWN_THING,
    things.OF_REGIONS,
    things.COLOURS,
    things.BOXES,
    cells.POSITIONS,
    cells.ROWS_AND_COLUMNS,
    cells.WHOLE_GRID,
    lines.RUNS,
    lines.STEPS_TO,
    lines.FROM_DRAWN,
    around.AROUND,
    around.AROUND_REGIONS,
    around.PANELS,
    around.MIRRORED,
)

__all__ = ["FEATURES", "Feature", "Table", "register"]
