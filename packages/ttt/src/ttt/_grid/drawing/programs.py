"""The drawings that make every training output, and those that make all of them more alike."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

import numpy as np

from ttt._grid.derived import DerivedInput
from ttt._grid.drawing.cleaning import CLEANINGS
from ttt._grid.drawing.fitting import FITTINGS
from ttt._grid.drawing.inside import cut_down, inside
from ttt._grid.drawing.keys import KEYS
from ttt._grid.drawing.marks import MARKS
from ttt._grid.drawing.mirrors import MIRRORS
from ttt._grid.drawing.panels import PANELS
from ttt._grid.drawing.paths import PATHS
from ttt._grid.drawing.periods import PERIODS
from ttt._grid.drawing.regions import REGIONS
from ttt._grid.drawing.registry import Drawing, Line, drawings
from ttt._grid.drawing.rings import RINGS
from ttt._grid.drawing.stamps import STAMPS
from ttt._grid.drawing.summaries import SUMMARIES
from ttt._grid.drawing.symmetry import SYMMETRIES
from ttt._grid.drawing.walks import WALKS
from ttt._grid.scene import Scene, Scenes, scenes_of
from ttt.values import MAX_SIDE, Grid

DRAWINGS: tuple[Line, ...] = (
    *KEYS,
    *STAMPS,
    *SYMMETRIES,
    *MIRRORS,
    *PERIODS,
    *RINGS,
    *REGIONS,
    *PANELS,
    *SUMMARIES,
    *FITTINGS,
    *MARKS,
    *CLEANINGS,
    *WALKS,
    *PATHS,
)
"""Every drawing; of two that make equal grids at equal cost the first one is kept."""


UPON: tuple[Line, ...] = (*KEYS, *MIRRORS, *PERIODS, *RINGS, *REGIONS, *PANELS)
"""Drawings that are also tried upon others."""
WITHIN: tuple[Line, ...] = (*SYMMETRIES, *MIRRORS, *PERIODS, *RINGS, *REGIONS, *CLEANINGS)
"""Drawings that are also tried in each part of a grid by itself."""
CUT: tuple[Line, ...] = (*KEYS, *STAMPS, *SYMMETRIES, *CLEANINGS)
"""Drawings of which parts may be cut out."""
TWICE = 4
"""How many drawings others are tried upon, the cheapest first."""


def drawn(
    inputs: Sequence[Grid], outputs: Sequence[Grid], known: Scenes, lines: Sequence[Line] = DRAWINGS
) -> list[DerivedInput]:
    """Return the inputs after each drawing that helps with every training pair, cheapest first.

    Of the outputs' sizes, with fewer wrong cells than the input where that has the same size; exactly the output
    elsewhere.

    Args:
        inputs: All inputs, training first.
        outputs: The training outputs.
        known: Scenes that others use too.
        lines: The drawings.
    """
    scenes = known.of(inputs)
    same_size = all(s.grid.shape == o.shape for s, o in zip(scenes, outputs, strict=False))
    once = list(_drawn(scenes, outputs, drawings(lines, scenes, outputs)))
    if same_size:
        parts = list(_drawn(scenes, outputs, inside(drawings(WITHIN, scenes, outputs))))
    else:
        parts = list(_drawn(scenes, outputs, cut_down(drawings(CUT, scenes, outputs))))
    twice = []
    for base in once[:TWICE] if same_size else ():
        after = scenes_of(base.grids)
        twice += [
            replace(made, name=f"{base.name}, then {made.name}", cost=base.cost + made.cost)
            for made in _drawn(after, outputs, drawings(UPON, after, outputs))
        ]
    found: dict[bytes, DerivedInput] = {}
    for made in (*once, *parts, *twice):
        found.setdefault(made.key, made)
    return list(found.values())


def _drawn(scenes: Sequence[Scene], outputs: Sequence[Grid], tried: Iterable[Drawing]) -> Iterator[DerivedInput]:
    for drawing in sorted(tried, key=lambda d: d.cost):
        grids = tuple(_helpful(drawing, scenes, outputs))
        if len(grids) == len(scenes):
            yield DerivedInput(drawing.words, drawing.cost, grids)


def _helpful(drawing: Drawing, scenes: Sequence[Scene], outputs: Sequence[Grid]) -> Iterator[Grid]:
    """Yield the drawing of each input until one does not help."""
    for at, scene in enumerate(scenes):
        grid = drawing.draw(scene)
        if grid is None or max(grid.shape) > MAX_SIDE or (at < len(outputs) and not _helps(grid, scene, outputs[at])):
            return
        yield np.ascontiguousarray(grid, dtype=np.uint8)


def _helps(made: Grid, scene: Scene, wanted: Grid) -> bool:
    if made.shape != wanted.shape:
        return False
    if scene.grid.shape != wanted.shape:
        return bool((made == wanted).all())
    return bool((made != wanted).sum() < (scene.grid != wanted).sum())
