"""Guesses output sizes where no transformation implies them, so that rules and learners can still try."""

# mypy: disable-error-code="no-any-return"
from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from fractions import Fraction
from functools import partial

import numpy as np

from ttt._grid.derived import DerivedInput, Group, Shape
from ttt._grid.scene import Scene
from ttt._grid.transforms import Transform
from ttt.values import MAX_SIDE, Grid, grid_bytes

Measure = Callable[[Scene], int]


def _largest(side: Callable[[Scene], list[int]]) -> Measure:
    return lambda s: max(side(s), default=0)


MEASURES: Mapping[str, Measure] = {
    "height": lambda s: s.grid.shape[0],
    "width": lambda s: s.grid.shape[1],
    "longer side": lambda s: max(s.grid.shape),
    "shorter side": lambda s: min(s.grid.shape),
    "number of drawn colours": lambda s: int(np.count_nonzero(s.counts)) - int(s.counts[s.background] > 0),
    "number of objects": lambda s: len(s.things("object")),
    "number of pieces": lambda s: len(s.things("piece")),
    "number of drawn cells": lambda s: int(s.front.sum()),
    "most cells of a drawn colour": lambda s: max((int(t.drawn.max()) for t in s.things("colour")), default=0),
    "rows of panels": lambda s: len(s.panel_layout[0]),
    "columns of panels": lambda s: len(s.panel_layout[1]),
    "height of the highest object": _largest(lambda s: [t.height for t in s.things("object")]),
    "width of the widest object": _largest(lambda s: [t.width for t in s.things("object")]),
    "height of what is drawn": lambda s: int(np.ptp(np.flatnonzero(s.front.any(axis=1)))) + 1 if s.front.any() else 0,
    "width of what is drawn": lambda s: int(np.ptp(np.flatnonzero(s.front.any(axis=0)))) + 1 if s.front.any() else 0,
}
"""Whole numbers of a grid that an output's side may depend on, plain ones first."""


def guess_sizes(inputs: Sequence[Grid], outputs: Sequence[Grid]) -> tuple[Shape, ...]:
    """Guess the size of every test output.

    Each side is a linear function of one measure of the input, if one holds on all training pairs; otherwise the side
    of the training output whose input's size is nearest.
    """
    scenes = [Scene(g) for g in inputs]
    sides = []
    for axis in (0, 1):
        wanted = [o.shape[axis] for o in outputs]
        guess = next(_linear(scenes, wanted), None)
        sides.append(guess or [wanted[_nearest(inputs, len(outputs), g)] for g in inputs[len(outputs) :]])
    return tuple(zip(*sides, strict=True))


def sizes_by_rule(inputs: Sequence[Grid], outputs: Sequence[Grid]) -> tuple[Shape, ...] | None:
    """Return the size of every test output by a rule that all pairs follow, the simplest; None where there is none.

    Outputs are as large as the inputs, or of one size, or each side is a measure of the input times a number, or plus
    one: a rule with two free numbers fits three pairs by chance too often.
    """
    tests = inputs[len(outputs) :]
    if all(a.shape == b.shape for a, b in zip(inputs, outputs, strict=False)):
        return tuple((g.shape[0], g.shape[1]) for g in tests)
    scenes: list[Scene] = []
    sides = []
    for axis in (0, 1):
        wanted = [o.shape[axis] for o in outputs]
        if len(set(wanted)) == 1:
            sides.append([wanted[0]] * len(tests))
            continue
        scenes = scenes or [Scene(g) for g in inputs]
        guess = next(_linear(scenes, wanted, one_number=True), None)
        if guess is None:
            return None
        sides.append(guess)
    return tuple(zip(*sides, strict=True))


def _linear(scenes: Sequence[Scene], wanted: Sequence[int], one_number: bool = False) -> Iterator[list[int]]:
    """Yield the sides of the tests by each linear rule that holds on the training pairs, simple slopes first.

    With `one_number` rules have a slope of 1 or no offset.
    """
    found: list[tuple[Fraction, list[int]]] = []
    for measure in MEASURES.values():
        values = [measure(s) for s in scenes]
        known = values[: len(wanted)]
        low, high = int(np.argmin(known)), int(np.argmax(known))
        if known[low] == known[high]:
            continue
        slope = Fraction(wanted[high] - wanted[low], known[high] - known[low])
        offset = wanted[low] - slope * known[low]
        if one_number and slope != 1 and offset:
            continue
        if all(slope * x + offset == y for x, y in zip(known, wanted, strict=True)):
            sides = [slope * x + offset for x in values[len(wanted) :]]
            if all(s.denominator == 1 and 1 <= s <= MAX_SIDE for s in sides):
                found.append((abs(slope - 1) + abs(offset), [int(s) for s in sides]))
    yield from (sides for _, sides in sorted(found, key=lambda f: f[0]))


def _nearest(inputs: Sequence[Grid], pairs: int, grid: Grid) -> int:
    """Return the index of the training input whose size is nearest."""
    return min(
        range(pairs),
        key=lambda i: abs(inputs[i].shape[0] - grid.shape[0]) + abs(inputs[i].shape[1] - grid.shape[1]),
    )


Fit = Callable[[Grid, Shape, int], Grid]
"""Makes a grid of a size from a grid and its background colour."""


def _blank(_grid: Grid, size: Shape, background: int) -> Grid:
    return np.full(size, background, dtype=np.uint8)


def _cornered(grid: Grid, size: Shape, background: int) -> Grid:
    out = _blank(grid, size, background)
    h, w = min(size[0], grid.shape[0]), min(size[1], grid.shape[1])
    out[:h, :w] = grid[:h, :w]
    return out


def _resized(grid: Grid, size: Shape, _background: int) -> Grid:
    rows = np.arange(size[0]) * grid.shape[0] // size[0]
    columns = np.arange(size[1]) * grid.shape[1] // size[1]
    return grid[rows][:, columns]


def _tiled(grid: Grid, size: Shape, _background: int) -> Grid:
    rows, columns = np.arange(size[0]) % grid.shape[0], np.arange(size[1]) % grid.shape[1]
    return grid[rows][:, columns]


def _drawing(grid: Grid, size: Shape, background: int) -> Grid:
    front = grid != background
    if not front.any():
        return _blank(grid, size, background)
    r, c = np.flatnonzero(front.any(axis=1)), np.flatnonzero(front.any(axis=0))
    return _cornered(grid[r[0] : r[-1] + 1, c[0] : c[-1] + 1], size, background)


FITS: Mapping[str, Fit] = {
    "put into the corner of a grid of the guessed size": _cornered,
    "resized to the guessed size": _resized,
    "tiled over the guessed size": _tiled,
    "what is drawn put into the corner of a grid of the guessed size": _drawing,
    "a blank grid of the guessed size": _blank,
}


def guessed_groups(inputs: Sequence[Grid], outputs: Sequence[Grid]) -> list[Group]:
    """Return one group of derived inputs: each input fitted in several ways to its output's known or guessed size."""
    sizes = guess_sizes(inputs, outputs)
    by_input = {grid_bytes(g): s for g, s in zip(inputs, [*(o.shape for o in outputs), *sizes], strict=True)}
    group = Group(sizes, guessed=True)
    for name, fit in FITS.items():
        transform = Transform(partial(_fitted, fit, by_input), cost=2.0, name=name)
        grids = [transform.make(Scene(g)) for g in inputs]
        if all(g is not None for g in grids):
            made = tuple(np.ascontiguousarray(g, dtype=np.uint8) for g in grids if g is not None)
            group.members.append(DerivedInput(name, transform.cost, made, (transform,)))
    # An input that occurs twice with outputs of two sizes cannot be fitted to both.
    group.members = [m for m in group.members if m.has_sizes([o.shape for o in outputs])]
    return [group] if group.members else []


def _fitted(fit: Fit, sizes: Mapping[bytes, Shape], s: Scene) -> Grid | None:
    size = sizes.get(grid_bytes(s.grid))
    return None if size is None else fit(s.grid, size, s.background)
