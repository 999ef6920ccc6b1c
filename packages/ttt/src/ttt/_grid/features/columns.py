"""A group of derived inputs laid out over cells: columns of codes to look up by, and colours to paint with."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ttt._grid.compose.core import library
from ttt._grid.derived import DerivedInput, Group
from ttt._grid.features import FEATURES
from ttt._grid.features.cells import GRID_COLOURS, POSITIONS
from ttt._grid.features.registry import Feature
from ttt._grid.geometry import Numbers
from ttt._grid.scene import Scene, Scenes
from ttt.values import Grid

MOST_DERIVED = 320
"""Derived inputs of one group that become columns."""
MOST_CODES = 64
"""Columns with more codes than this are left out."""
FEATURE_BASES = 2
"""On how many derived inputs cell features are measured where the input has not the outputs' size."""


@dataclass(frozen=True, slots=True)
class Column:
    """One number for every cell of all outputs: training cells first, then those of the tests.

    Args:
        name: What it is, in words.
        cost: Length of that description.
        codes: Int64, dense from 0.
        keys: Number of different codes.
    """

    name: str
    cost: float
    codes: Numbers
    keys: int


@dataclass(frozen=True, slots=True)
class Paint:
    """A colour for every cell of all outputs, in the order of `Column`."""

    name: str
    cost: float
    colours: npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Cells:
    """A group as columns.

    Args:
        sizes: Shapes of all outputs, training first; those of the tests as the group implies them.
        target: Colours of all training cells.
        columns: What rules look up by; the base first.
        paints: What rules paint with.
    """

    sizes: tuple[tuple[int, int], ...]
    target: npt.NDArray[np.uint8]
    columns: list[Column]
    paints: list[Paint]

    @property
    def known(self) -> int:
        """Number of training cells."""
        return len(self.target)

    def cut(self, colours: npt.NDArray[np.integer]) -> list[npt.NDArray[np.integer]]:
        """Turn the colours of all cells back into grids."""
        ends = np.cumsum([h * w for h, w in self.sizes])
        parts = np.split(colours, ends[:-1])
        return [p.reshape(s) for p, s in zip(parts, self.sizes, strict=True)]


def flat(grids: Sequence[npt.NDArray[np.generic]]) -> npt.NDArray[np.generic]:
    """Return all cells of some grids in one row."""
    return np.concatenate([g.ravel() for g in grids])


def dense(values: Numbers, compiled: bool = True) -> tuple[Numbers, int]:
    """Renumber values from 0 in order of first occurrence, so that equal partitions get equal codes."""
    core = library() if compiled else None
    if core is not None:
        codes = np.empty(values.size, dtype=np.int64)
        values = np.ascontiguousarray(values, dtype=np.int64)
        count = core.columns_dense(values.ctypes.data, values.size, codes.ctypes.data)
        if count:
            return codes, count
    _, first, inverse = np.unique(values, return_index=True, return_inverse=True)
    rank = np.empty(len(first), dtype=np.int64)
    rank[np.argsort(first)] = np.arange(len(first))
    return rank[inverse.ravel()], len(first)


def entropy(codes: Numbers, keys: int, target: npt.NDArray[np.uint8]) -> float:
    """Return the bits per cell that remain about the target once the code is known."""
    table = np.bincount(codes * 10 + target, minlength=keys * 10).reshape(keys, 10).astype(float)
    rows = table.sum(axis=1, keepdims=True)
    share = np.divide(table, rows, out=np.zeros_like(table), where=rows > 0)
    logs = np.log2(share, out=np.zeros_like(share), where=share > 0)
    return float(-(table * logs).sum() / max(1, len(target)))


def most_informative(group: Group, outputs: Sequence[Grid], most: int) -> list[DerivedInput]:
    """Return the members of a group that leave the fewest bits about the outputs."""
    target = flat(outputs).astype(np.uint8)
    bits = [entropy(flat(m.grids)[: len(target)].astype(np.int64), 10, target) + 0.05 * m.cost for m in group.members]
    return [group.members[i] for i in sorted(range(len(bits)), key=lambda i: bits[i])[:most]]


class _Columns:
    """Collects columns, leaving out constant ones, ones of too many codes, and repetitions."""

    def __init__(self) -> None:
        self.kept: list[Column] = []
        self._seen: set[bytes] = set()

    def add(self, name: str, cost: float, values: Numbers) -> None:
        codes, keys = dense(values)
        mark = codes.astype(np.uint16).tobytes()
        if 1 < keys <= MOST_CODES and mark not in self._seen:
            self._seen.add(mark)
            self.kept.append(Column(name, cost, codes, keys))


def cells_of(group: Group, inputs: Sequence[Grid], outputs: Sequence[Grid], known: Scenes | None = None) -> Cells:
    """Lay a group out as columns and paints.

    Args:
        group: Derived inputs with the outputs' sizes.
        inputs: All inputs, training first.
        outputs: The training outputs.
        known: Scenes that others use too; features are measured once on each.
    """
    known = known or Scenes()
    target = flat(outputs).astype(np.uint8)
    n = len(target)
    sizes = tuple(g.shape for g in group.members[0].grids)
    members = sorted(group.members, key=lambda m: m.cost)[: 3 * MOST_DERIVED]
    pixels = [flat(m.grids).astype(np.uint8) for m in members]
    bits = [entropy(p[:n].astype(np.int64), 10, target) for p in pixels]
    order = sorted(range(len(members)), key=lambda i: bits[i] + 0.03 * members[i].cost)[:MOST_DERIVED]
    same_size = all(g.shape == i.shape for g, i in zip(members[0].grids, inputs, strict=True))
    if same_size:
        order = [0, *(i for i in order if i != 0)]
    columns, paints = _Columns(), []
    for i in order:
        columns.add(members[i].name, members[i].cost, pixels[i].astype(np.int64))
        paints.append(Paint(members[i].name, members[i].cost, pixels[i]))
    for rank, i in enumerate(order[: 1 if same_size else FEATURE_BASES]):
        for name, cost, values, is_colour in _measured(members[i], rank, known):
            columns.add(name, cost[0], values)
            if is_colour:
                paints.append(Paint(name, cost[1], values.astype(np.uint8)))
    if not same_size:
        for name, values in _blocks(sizes, inputs).items():
            columns.add(name, 1.0, values)
    scenes = known.of(inputs)
    for name, colour in GRID_COLOURS.items():
        per_grid = [colour(s) for s in scenes]
        paints.append(Paint(name, 0.7, np.repeat(per_grid, [h * w for h, w in sizes]).astype(np.uint8)))
    paints += [Paint(f"colour {c}", 0.3, np.full(len(pixels[0]), c, dtype=np.uint8)) for c in np.unique(target)]
    return Cells(sizes, target, columns.kept, paints)


def _measured(base: DerivedInput, rank: int, known: Scenes) -> Iterator[tuple[str, tuple[float, float], Numbers, bool]]:
    """Yield every cell feature of a derived input: name, costs as a column and as a paint, values, is it a colour."""
    scenes = known.of(base.grids)
    of = "" if base.cost == 0 else f" in the input {base.name}"
    extra = 0.6 * base.cost + 0.3 * rank
    for feature in FEATURES.values():
        position = feature.name in POSITIONS
        parts = [_once(feature, s) for s in scenes]
        if any(p is None for p in parts) or (rank and position):
            continue
        values = flat([p for p in parts if p is not None]).astype(np.int64)
        costs = feature.cost + (0.0 if position else extra), feature.cost + extra
        yield feature.name + of, costs, values, feature.is_colour


def _once(feature: Feature, scene: Scene) -> npt.NDArray[np.int32] | None:
    """Measure a feature on a scene, unless that was done before."""
    key = ("feature", feature.name)
    if key not in scene.memo:
        values = feature.measure(scene)
        scene.memo[key] = None if values is None else values.astype(np.int32)
    found: npt.NDArray[np.int32] | None = scene.memo[key]
    return found


def _blocks(sizes: Sequence[tuple[int, int]], inputs: Sequence[Grid]) -> dict[str, Numbers]:
    """Return where a cell lies if the output is cut into blocks of the input's size."""
    pairs = [(s, g.shape) for s, g in zip(sizes, inputs, strict=True)]
    if any(s[0] % g[0] or s[1] % g[1] for s, g in pairs):
        return {}
    which, row, col = [], [], []
    for (h, w), (gh, gw) in pairs:
        r, c = np.indices((h, w))
        row.append(r // gh)
        col.append(c // gw)
        which.append((r // gh) * 32 + c // gw)
    return {
        "which block of the input's size": flat(which).astype(np.int64),
        "row of blocks of the input's size": flat(row).astype(np.int64),
        "column of blocks of the input's size": flat(col).astype(np.int64),
    }
