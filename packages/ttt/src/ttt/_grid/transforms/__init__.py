"""Transformations of a grid, in tables by subject; of equal ones the first in this order is kept."""

from __future__ import annotations

from ttt._grid.transforms import painting, panels, repair, sizes, things
from ttt._grid.transforms.registry import TRANSFORMS, Table, Transform, register

register(
    sizes.POSES,
    sizes.CROPS,
    things.CROPS,
    things.CROPS_BY_COLOUR,
    panels.PANELS,
    sizes.OUTLINES,
    sizes.SCALES,
    sizes.TILINGS,
    sizes.CUTS,
    sizes.COLOUR_SUMMARIES,
    things.COUNTS,
    sizes.FRAMES,
    things.JOINED,
    painting.GRAVITY,
    painting.MOVES,
    painting.LINES,
    painting.FILLS,
    things.REPAINTED,
    painting.SMOOTHING,
    things.MOVED,
    repair.REPAIRS,
    repair.COMPLETIONS,
    painting.GROWTH,
)

__all__ = ["TRANSFORMS", "Table", "Transform", "register"]
