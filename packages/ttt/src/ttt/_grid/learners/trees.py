"""Randomised trees over derived inputs and cell features, for tasks without an exact program."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
from sklearn.ensemble import ExtraTreesClassifier

from ttt._grid.derived import DerivedInput, Group
from ttt._grid.features import FEATURES
from ttt._grid.features.columns import entropy, flat
from ttt._grid.scene import Scene
from ttt._grid.work import Work
from ttt.values import MAX_SIDE, Candidate, Grid

Matrix = npt.NDArray[np.int16]
DERIVED_USED = 30
"""How many derived inputs are columns, besides the base."""
EQUALITIES = 12
"""How many of them are also compared with the base, cell by cell."""
TREES = 60
SETTINGS: tuple[tuple[float | str, int], ...] = (("sqrt", 0), (0.3, 1), (0.8, 2))
"""Share of the columns that a split may look at, and a seed's offset."""
HELD_OUT = SETTINGS[1]
"""The setting that predicts held-out pairs; all three together said no more."""


@dataclass(frozen=True, slots=True)
class Forecast:
    """The prediction of the trees.

    Args:
        grids: Per test its predicted grid.
        sureness: Per test the geometric mean of the winning colours' probabilities.
        held_out: Share of the training pairs predicted whole by trees not trained on them, None if not known.
    """

    grids: tuple[Grid, ...]
    sureness: tuple[float, ...]
    held_out: float | None = None


class Table:
    """Turns the cells of an input into rows of numbers, the same way for every input of a task.

    Args:
        group: Derived inputs with the outputs' sizes.
        inputs: All inputs, training first.
        outputs: The training outputs.
    """

    def __init__(self, group: Group, inputs: Sequence[Grid], outputs: Sequence[Grid]) -> None:
        target = flat(outputs).astype(np.uint8)
        members = [m for m in group.members if m.recipe]
        bits = [entropy(flat(m.grids)[: len(target)].astype(np.int64), 10, target) + 0.03 * m.cost for m in members]
        order = sorted(range(len(members)), key=bits.__getitem__)
        same = all(i.shape == s for i, s in zip(inputs, [*(o.shape for o in outputs), *group.sizes], strict=True))
        plain = [k for k in order if len(members[k].recipe) <= 1 and members[k].cost == 0]
        chosen = [members[k] for k in (plain[:1] if same else []) + order]
        self.derived: list[DerivedInput] = chosen[: DERIVED_USED + 1]
        self.reach = 2 if max(o.size for o in outputs) <= 200 else 1

    def rows(self, grid: Grid) -> Matrix | None:
        """Return one row per cell of the output of one input, None where a transformation does not apply."""
        first = Scene(grid)
        made: list[Grid] = []
        for derived in self.derived:
            scene = first
            for transform in derived.recipe:
                result = transform.make(scene)
                if result is None or max(result.shape) > MAX_SIDE:
                    return None
                scene = Scene(np.ascontiguousarray(result, dtype=np.uint8))
            made.append(scene.grid)
        base = made[0]
        if any(m.shape != base.shape for m in made):
            return None
        columns = [m.ravel().astype(np.int16) for m in made]
        columns += [(m == base).ravel().astype(np.int16) for m in made[1 : EQUALITIES + 1]]
        columns += surroundings(base, self.reach)
        scene = Scene(base)
        for feature in FEATURES.values():
            part = feature.measure(scene)
            columns.append(np.full(base.size, -1, np.int16) if part is None else part.ravel().astype(np.int16))
        return np.stack(columns, axis=1)


def surroundings(grid: npt.NDArray[np.generic], reach: int) -> list[npt.NDArray[np.int16]]:
    """Return the neighbours of each cell up to a distance, each as a column; 10 outside the grid."""
    padded = np.pad(grid.astype(np.int16), reach, constant_values=10)
    h, w = grid.shape
    span = range(2 * reach + 1)
    return [padded[r : r + h, c : c + w].ravel() for r in span for c in span if (r, c) != (reach, reach)]


def trees(group: Group, inputs: Sequence[Grid], outputs: Sequence[Grid], seed: int, work: Work) -> Iterator[Forecast]:
    """Fit forests to all training cells and predict the tests.

    Args:
        group: Derived inputs with the outputs' sizes.
        inputs: All inputs, training first.
        outputs: The training outputs.
        seed: Of all randomness.
        work: Counts work and says when to stop.

    Yields:
        After each setting the forecast of all forests so far; then the last one with the share of held-out pairs.
    """
    table = Table(group, inputs, outputs)
    if not table.derived:
        return
    n = len(outputs)
    rows = [table.rows(g) for g in [*inputs[n:], *inputs[:n]]]
    complete = [r for r in rows if r is not None]
    if len(complete) < len(rows):
        return
    xs, ys = complete[len(inputs) - n :], [b.ravel() for b in outputs]
    work.spend(6)
    x, y = np.concatenate(xs), np.concatenate(ys)
    want = np.concatenate(complete[: len(inputs) - n])
    total = np.zeros((len(want), 10))
    for setting in SETTINGS:
        if work.over:
            return
        total += _shares(x, y, want, setting, seed)
        work.spend(6)
        yield _forecast(total, group.sizes)
    held_out = _held_out(xs, ys, seed, work)
    if held_out is not None:
        yield replace(_forecast(total, group.sizes), held_out=held_out)


def _shares(x: Matrix, y: Grid, want: Matrix, setting: tuple[float | str, int], seed: int) -> npt.NDArray[np.float64]:
    """Return per wanted row the share of each of the ten colours in a forest's vote."""
    varied = x.min(axis=0) != x.max(axis=0)
    varied[0] |= not varied.any()  # a forest needs a column, and learns from this one how common each colour is
    share, offset = setting
    forest = ExtraTreesClassifier(TREES, max_features=share, random_state=seed % 2**31 + offset, n_jobs=1)
    forest.fit(x[:, varied].astype(np.float32), y)
    result = np.zeros((len(want), 10))
    result[:, forest.classes_.astype(int)] = forest.predict_proba(want[:, varied].astype(np.float32))
    return result


def _held_out(xs: Sequence[Matrix], ys: Sequence[Grid], seed: int, work: Work) -> float | None:
    """Return the share of pairs predicted whole by a forest fitted to the others; None for one pair or too little time.

    The columns stay those chosen on all pairs.
    """
    if len(ys) < 2:
        return None
    right = 0
    for k in range(len(ys)):
        if work.over:
            return None
        others = [i for i in range(len(ys)) if i != k]
        x, y = np.concatenate([xs[i] for i in others]), np.concatenate([ys[i] for i in others])
        right += np.array_equal(_shares(x, y, xs[k], HELD_OUT, seed).argmax(axis=1), ys[k])
    work.spend(12)
    return right / len(ys)


def _forecast(total: npt.NDArray[np.float64], sizes: Sequence[tuple[int, int]]) -> Forecast:
    share = total / total.sum(axis=1, keepdims=True)
    grids, sure, start = [], [], 0
    for h, w in sizes:
        part = share[start : start + h * w]
        start += h * w
        grids.append(part.argmax(axis=1).astype(np.uint8).reshape(h, w))
        sure.append(float(np.exp(np.log(np.maximum(part.max(axis=1), 1e-9)).mean())))
    return Forecast(tuple(grids), tuple(sure))


def candidates(forecast: Forecast) -> list[list[Candidate]]:
    """Return the trees' answers per test with their confidence."""
    why = "" if forecast.held_out is None else f", {forecast.held_out:.0%} of held-out pairs right"
    return [
        [Candidate(g, round(belief(s, forecast.held_out), 4), "trees", f"trees, mean certainty of a cell {s:.2f}{why}")]
        for g, s in zip(forecast.grids, forecast.sureness, strict=True)
    ]


def belief(sureness: float, held_out: float | None) -> float:
    """Return the confidence of the trees, on a scale with the other stages.

    On 145 tasks, 8 of 9 grids were right where all held-out pairs were, 9 of 18 where some were, 4 of 123 where none
    was. The last figure is claimed higher than it is: where the net fits no pair, the trees' grid is the better second
    answer.
    """
    if not held_out:
        return 0.25 * sureness**4
    return (0.85 if held_out == 1.0 else 0.5) * sureness
