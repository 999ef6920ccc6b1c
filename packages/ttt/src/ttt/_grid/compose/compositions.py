"""The compositional search of a task: what it found, as images of the outputs' sizes and as programs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from ttt._grid.compose import core, engine
from ttt._grid.compose.layers import DRAWN, OWN, Layered, Stack
from ttt._grid.compose.rows import COST, EXACT, FLAGS, LONGEST_ROW, PARENT, PRIMITIVE, SIZES_FIT, Limits, Start
from ttt._grid.compose.table import Primitive, primitives
from ttt.values import Grid

Shape = tuple[int, int]

GROUPS = 2
"""Size groups that layers are looked for in, the largest first."""
MOST_IMAGES = 6000
"""Images of a group that layers are made of, cheapest first."""
SLICE = 20_000_000
"""Work units between two looks at whether to stop."""


@dataclass(frozen=True, slots=True)
class Composition:
    """A composition of primitives that gives the training outputs' sizes, or the outputs themselves.

    Args:
        words: What it does.
        cost: Length of that description, in plain operations.
        grids: Its grid for each input, training first.
    """

    words: str
    cost: float
    grids: tuple[Grid, ...]


@dataclass(slots=True)
class Compositions:
    """What was found for a task.

    Args:
        exact: Compositions that make every training output, cheapest first.
        layered: Layers of compositions that make every training output, cheapest first.
        groups: Compositions of the outputs' sizes by the sizes that they imply for the tests, cheapest first.
    """

    exact: list[Composition] = field(default_factory=list)
    layered: list[Composition] = field(default_factory=list)
    groups: dict[tuple[Shape, ...], list[Composition]] = field(default_factory=dict)


def compositions(
    inputs: Sequence[Grid],
    outputs: Sequence[Grid],
    limits: Limits,
    stop: Callable[[], bool] = lambda: False,
    images: int = 400,
    compiled: bool = True,
    sizes: Sequence[Shape] | None = None,
) -> Compositions:
    """Search a task.

    Args:
        inputs: All inputs, training first.
        outputs: The training outputs.
        limits: Where the search ends.
        stop: Asked between pieces of work; true ends it, with what was found until then.
        images: How many compositions of a group are returned.
        compiled: Whether to use the compiled core where there is one; the answers are the same.
        sizes: Of the tests' outputs, None where they are not known.
    """
    found = Compositions()
    start = Start.of(inputs, outputs, limits, sizes)
    if len(start.row) >= LONGEST_ROW:
        return found
    table = primitives(inputs, outputs, sizes is not None)
    run = (core.Compiled if compiled and core.library() else engine.Enumeration)(start, table)
    while not run.run(SLICE) and not stop():
        pass
    values = run.nodes()
    fitting = np.flatnonzero(values[:, FLAGS] & SIZES_FIT).astype(np.int32)
    implied = run.test_sizes(fitting).reshape(len(fitting), 2 * (len(inputs) - len(outputs)))
    target = np.concatenate([o.ravel() for o in outputs])
    pair = np.repeat(np.arange(len(outputs)), [o.size for o in outputs]).astype(np.int32)
    shapes_of_train = [o.shape for o in outputs]
    names = _Words(values, table)
    keys, which, count = np.unique(implied, axis=0, return_inverse=True, return_counts=True)
    order = sorted(range(len(keys)), key=lambda g: (-int(count[g]), g))
    solved = (values[:, FLAGS] & EXACT).any()
    for rank, g in enumerate(order):
        mine = fitting[which.ravel() == g]
        tests = [(int(h), int(w)) for h, w in keys[g].reshape(-1, 2)]
        shapes = [*shapes_of_train, *tests]
        cells = run.cells(mine, sum(h * w for h, w in shapes))
        first = _first_of_each(cells)[:MOST_IMAGES]
        mine, cells = mine[first], cells[first]
        flags = values[mine, FLAGS]
        shown = {
            k: Composition(names.of(int(mine[k])), values[mine[k], COST] / 10, _cut(cells[k], shapes))
            for k in np.union1d(np.arange(min(images, len(mine))), np.flatnonzero(flags & EXACT)).tolist()
        }
        found.groups[tuple(tests)] = [c for k, c in shown.items() if k < images]
        found.exact += [c for k, c in shown.items() if flags[k] & EXACT]
        if not solved and rank < GROUPS:
            stack = Stack(cells, values[mine, COST], target, pair, compiled)
            for made in stack.merged([*stack.layered(), *stack.layered_by_cover()]):
                layers = Composition(_layers_in_words(made, mine, names), made.cost / 10, _cut(made.colours, shapes))
                found.layered.append(layers)
    found.exact.sort(key=lambda c: c.cost)
    found.layered.sort(key=lambda c: c.cost)
    return found


def _first_of_each(cells: Grid) -> npt.NDArray[np.int64]:
    """The first of equal rows, in order."""
    seen: dict[bytes, int] = {}
    for i in range(len(cells)):
        seen.setdefault(cells[i].tobytes(), i)
    return np.fromiter(seen.values(), dtype=np.int64, count=len(seen))


def _cut(row: Grid, shapes: Sequence[Shape]) -> tuple[Grid, ...]:
    grids, at = [], 0
    for h, w in shapes:
        grids.append(row[at : at + h * w].reshape(h, w).copy())
        at += h * w
    return tuple(grids)


class _Words:
    """The descriptions of values."""

    def __init__(self, values: npt.NDArray[np.int32], table: Sequence[Primitive]) -> None:
        self._values, self._table = values, table

    def of(self, at: int) -> str:
        """How a value is made."""
        steps = []
        while at > 0:
            steps.append(self._table[self._values[at, PRIMITIVE]].words)
            at = int(self._values[at, PARENT])
        return ", then ".join(reversed(steps)) or "as it is"


def _layers_in_words(made: Layered, values: npt.NDArray[np.int32], words: _Words) -> str:
    said = []
    for n, (image, use, colour) in enumerate(made.layers):
        what = words.of(int(values[image]))
        if use != OWN:
            what = f"colour {colour} where {'drawn' if use == DRAWN else 'empty'}: {what}"
        last = made.whole and n == len(made.layers) - 1
        said.append(f"{'at the bottom ' if last else ''}({what})")
    return "layers: " + " over ".join(said)
