"""Randomised trees over views and features of cells, for tasks without an exact program; knows nothing of the net."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
from sklearn.ensemble import ExtraTreesClassifier

from ttt.grid.answers import LARGEST, Candidate, Grid
from ttt.grid.columns import entropy, flat
from ttt.grid.features import FEATURES
from ttt.grid.images import Group, Image
from ttt.grid.scene import Scene, poses
from ttt.grid.work import Work

Matrix = npt.NDArray[np.int16]
VIEWS_USED = 30
EQUALITIES = 12
MOST_ROWS = 9000
"""Rows of the training table, original and turned copies together."""
TREES = 60
SETTINGS: tuple[tuple[float | str, int], ...] = (("sqrt", 0), (0.3, 1), (0.8, 2))
"""Share of the columns that a split may look at, and a seed's offset."""
HELD_OUT = SETTINGS[1]
"""The setting that predicts held-out pairs; all three told no more."""


@dataclass(frozen=True, slots=True)
class Forecast:
    """What the trees say.

    Args:
        grids: Per test its predicted grid.
        sureness: Per test the geometric mean of the winning colours' probabilities.
        held_out: Share of the training pairs that trees which had not seen them predict whole, None if not known.
    """

    grids: tuple[Grid, ...]
    sureness: tuple[float, ...]
    held_out: float | None = None


class Table:
    """How a group's cells become rows of numbers, the same way for every pose of a task."""

    def __init__(self, group: Group, inputs: Sequence[Grid], outputs: Sequence[Grid]) -> None:
        target = flat(outputs).astype(np.uint8)
        images = [i for i in group.images if i.recipe]
        bits = [entropy(flat(i.grids)[: len(target)].astype(np.int64), 10, target) + 0.03 * i.cost for i in images]
        order = sorted(range(len(images)), key=bits.__getitem__)
        same = all(i.shape == s for i, s in zip(inputs, [*(o.shape for o in outputs), *group.sizes], strict=True))
        plain = [k for k in order if not len(images[k].recipe) > 1 and images[k].cost == 0]
        self.same_size = same
        self.images: list[Image] = [images[k] for k in (plain[:1] if same else []) + order][: VIEWS_USED + 1]
        self.reach = 2 if max(o.size for o in outputs) <= 200 else 1

    def rows(self, grid: Grid) -> Matrix | None:
        """One row per cell of the output of one input, None where a view fails."""
        first = Scene(grid)
        made: list[Grid] = []
        for image in self.images:
            scene, result = first, None
            for view in image.recipe:
                try:
                    result = view.make(scene)
                except (IndexError, ValueError):
                    return None
                if result is None or max(result.shape) > LARGEST:
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
        for f in FEATURES.values():
            part = f.measure(scene)
            columns.append(np.full(base.size, -1, np.int16) if part is None else part.ravel().astype(np.int16))
        return np.stack(columns, axis=1)


def surroundings(grid: npt.NDArray[np.generic], reach: int) -> list[npt.NDArray[np.int16]]:
    """The neighbours of each cell up to a distance, each as a column; 10 outside the grid."""
    padded = np.pad(grid.astype(np.int16), reach, constant_values=10)
    h, w = grid.shape
    span = range(2 * reach + 1)
    return [padded[r : r + h, c : c + w].ravel() for r in span for c in span if (r, c) != (reach, reach)]


def trees(
    group: Group,
    inputs: Sequence[Grid],
    outputs: Sequence[Grid],
    seed: int,
    work: Work,
    turned: bool = True,
    permuted: int = 0,
) -> Iterator[Forecast]:
    """Fit forests to all training cells and predict the tests.

    Args:
        group: Views with the outputs' sizes.
        inputs: All inputs, training first.
        outputs: The training outputs.
        seed: Of all randomness.
        work: Counts work and says when to stop.
        turned: Whether turned and mirrored copies of the pairs are learned too.
        permuted: How many copies with permuted colours are learned too.

    Yields:
        After each setting the forecast of all forests so far; then the last one with what holding pairs out showed.
    """
    table = Table(group, inputs, outputs)
    if not table.images:
        return
    rng = np.random.default_rng(seed)
    n = len(outputs)
    tests = [table.rows(g) for g in inputs[n:]]
    if any(t is None for t in tests):
        return
    xs, ys = [], []
    for a, b in zip(inputs, outputs, strict=False):
        rows = table.rows(a)
        if rows is None:
            return
        xs.append(rows)
        ys.append(b.ravel())
    work.spend(6)
    room = MOST_ROWS - sum(map(len, ys))
    extra = _copies(inputs[:n], outputs, turned, permuted, rng)
    for a, b in extra:
        if work.over or room < b.size:
            break
        rows = table.rows(a)
        if rows is not None and len(rows) == b.size:
            xs.append(rows)
            ys.append(b.ravel())
            room -= b.size
        work.spend(1)
    x, y = np.concatenate(xs), np.concatenate(ys)
    want = np.concatenate([t for t in tests if t is not None])
    total = np.zeros((len(want), 10))
    for setting in SETTINGS:
        if work.over:
            return
        total += _shares(x, y, want, setting, seed)
        work.spend(6)
        yield _forecast(total, group.sizes)
    held_out = _held_out(xs[:n], ys[:n], seed, work)
    if held_out is not None:
        yield replace(_forecast(total, group.sizes), held_out=held_out)


def _shares(x: Matrix, y: Grid, want: Matrix, setting: tuple[float | str, int], seed: int) -> npt.NDArray[np.float64]:
    """Per wanted row the share of each of the ten colours in a forest's vote."""
    varied = x.min(axis=0) != x.max(axis=0)
    varied[0] |= not varied.any()  # a forest needs a column, and learns from this one how common each colour is
    share, offset = setting
    forest = ExtraTreesClassifier(TREES, max_features=share, random_state=seed % 2**31 + offset, n_jobs=1)
    forest.fit(x[:, varied].astype(np.float32), y)
    result = np.zeros((len(want), 10))
    result[:, forest.classes_.astype(int)] = forest.predict_proba(want[:, varied].astype(np.float32))
    return result


def _held_out(xs: Sequence[Matrix], ys: Sequence[Grid], seed: int, work: Work) -> float | None:
    """Share of the pairs that a forest fitted to the other pairs predicts whole; None for one pair or too little time.

    The columns stay those that all pairs chose.
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


def _copies(
    inputs: Sequence[Grid], outputs: Sequence[Grid], turned: bool, permuted: int, rng: np.random.Generator
) -> list[tuple[Grid, Grid]]:
    """Turned and recoloured copies of the pairs in random order; colours of all pairs stay."""
    pairs = list(zip(inputs, outputs, strict=True))
    fixed = set(range(10))
    for a, b in pairs:
        fixed &= set(np.unique(a).tolist()) | set(np.unique(b).tolist())
    fixed.add(0)
    free = [c for c in range(10) if c not in fixed]
    result = []
    for k in range(1, 8) if turned else ():
        for a, b in pairs:
            result.append((poses(a)[k], poses(b)[k]))
    for _ in range(permuted):
        for a, b in pairs:
            to = np.arange(10, dtype=np.uint8)
            to[free] = rng.permutation(free)
            k = int(rng.integers(8)) if turned else 0
            result.append((poses(to[a])[k], poses(to[b])[k]))
    return [
        (np.ascontiguousarray(result[i][0]), np.ascontiguousarray(result[i][1])) for i in rng.permutation(len(result))
    ]


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
    """The trees' answers per test with how sure they are."""
    why = "" if forecast.held_out is None else f", {forecast.held_out:.0%} of held-out pairs right"
    return [
        [Candidate(g, round(belief(s, forecast.held_out), 4), "trees", f"trees, mean certainty of a cell {s:.2f}{why}")]
        for g, s in zip(forecast.grids, forecast.sureness, strict=True)
    ]


def belief(sureness: float, held_out: float | None) -> float:
    """How the trees rank among the other stages.

    Right were 8 of 9 grids where all pairs were right when held out, 9 of 18 where some were, 4 of 123 where none was:
    claimed above that, because where the net does not fit either even such a grid is a better second answer than its.
    """
    if not held_out:
        return 0.25 * sureness**4
    return (0.85 if held_out == 1.0 else 0.5) * sureness
