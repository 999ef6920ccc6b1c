"""A group of images as columns over cells: codes to look up by, colours to paint with; knows nothing of programs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ttt.grid.answers import Grid
from ttt.grid.features import FEATURES, POSITIONS, Numbers, global_colours
from ttt.grid.images import Group, Image
from ttt.grid.scene import Scene

MOST_IMAGES = 260
MOST_KEYS = 64


@dataclass(frozen=True, slots=True)
class Column:
    """One number for every cell of all outputs: training cells first, then those of the tests.

    Args:
        name: What it is, in words.
        cost: Length of that description.
        codes: int64, dense from 0.
        keys: Number of different codes.
    """

    name: str
    cost: float
    codes: Numbers
    keys: int


@dataclass(frozen=True, slots=True)
class Paint:
    """A colour for every cell of all outputs, as `Column`."""

    name: str
    cost: float
    colours: npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Cells:
    """A group as columns.

    Args:
        sizes: Shapes of all outputs, training first, as the group predicts them for the tests.
        target: Colours of all training cells.
        columns: What rules can look at; the base image first.
        paints: What rules can paint with.
        base: The image that the features were measured on.
    """

    sizes: tuple[tuple[int, int], ...]
    target: npt.NDArray[np.uint8]
    columns: list[Column]
    paints: list[Paint]
    base: Image

    @property
    def known(self) -> int:
        """Number of training cells."""
        return len(self.target)

    def cut(self, colours: npt.NDArray[np.uint8]) -> list[Grid]:
        """Turn the colours of all cells back into grids."""
        ends = np.cumsum([h * w for h, w in self.sizes])
        parts = np.split(colours, ends[:-1])
        return [p.reshape(s) for p, s in zip(parts, self.sizes, strict=True)]


def flat(grids: Sequence[npt.NDArray[np.generic]]) -> npt.NDArray[np.generic]:
    """All cells of some grids in one row."""
    return np.concatenate([g.ravel() for g in grids])


def dense(values: Numbers) -> tuple[Numbers, int]:
    """Renumber values from 0 in order of first occurrence, so that equal partitions get equal codes."""
    _, first, inverse = np.unique(values, return_index=True, return_inverse=True)
    rank = np.empty(len(first), dtype=np.int64)
    rank[np.argsort(first)] = np.arange(len(first))
    return rank[inverse.ravel()], len(first)


def entropy(codes: Numbers, keys: int, target: npt.NDArray[np.uint8]) -> float:
    """Bits per cell that remain about the target once the code is known."""
    table = np.bincount(codes * 10 + target, minlength=keys * 10).reshape(keys, 10).astype(float)
    rows = table.sum(axis=1, keepdims=True)
    share = np.divide(table, rows, out=np.zeros_like(table), where=rows > 0)
    logs = np.log2(share, out=np.zeros_like(share), where=share > 0)
    return float(-(table * logs).sum() / max(1, len(target)))


def telling(group: Group, outputs: Sequence[Grid], most: int) -> list[Image]:
    """The images of a group that leave the fewest bits about the outputs, each unlike the ones before."""
    target = flat(outputs).astype(np.uint8)
    bits = [
        entropy(flat(image.grids)[: len(target)].astype(np.int64), 10, target) + 0.05 * image.cost
        for image in group.images
    ]
    return [group.images[i] for i in sorted(range(len(bits)), key=lambda i: bits[i])[:most]]


def cells_of(group: Group, inputs: Sequence[Grid], outputs: Sequence[Grid], bases: int = 2) -> Cells:
    """Lay a group out as columns and paints.

    Args:
        group: Images with the outputs' sizes.
        inputs: All inputs, training first.
        outputs: The training outputs.
        bases: On how many of the group's images the cell features are measured.
    """
    target = flat(outputs).astype(np.uint8)
    n = len(target)
    sizes = tuple(g.shape for g in group.images[0].grids)
    images = sorted(group.images, key=lambda i: i.cost)[: 3 * MOST_IMAGES]
    pixels = [flat(i.grids).astype(np.uint8) for i in images]
    bits = [entropy(p[:n].astype(np.int64), 10, target) for p in pixels]
    order = sorted(range(len(images)), key=lambda i: bits[i] + 0.03 * images[i].cost)[:MOST_IMAGES]
    same_size = all(g.shape == i.shape for g, i in zip(images[0].grids, inputs, strict=True))
    if same_size:
        order = [0, *(i for i in order if i != 0)]
    columns: list[Column] = []
    seen: set[bytes] = set()

    def keep(name: str, cost: float, values: Numbers, most: int = MOST_KEYS) -> None:
        codes, keys = dense(values)
        mark = codes.astype(np.uint16).tobytes()
        if 1 < keys <= most and mark not in seen:
            seen.add(mark)
            columns.append(Column(name, cost, codes, keys))

    paints = []
    for i in order:
        keep(images[i].name, images[i].cost, pixels[i].astype(np.int64))
        paints.append(Paint(images[i].name, images[i].cost, pixels[i]))
    for rank, i in enumerate(order[: 1 if same_size else bases]):
        scenes = [Scene(g) for g in images[i].grids]
        of = "" if images[i].cost == 0 else f" in the view {images[i].name!r}"
        extra = 0.6 * images[i].cost + 0.3 * rank
        for f in FEATURES.values():
            parts = [f.measure(s) for s in scenes]
            if any(p is None for p in parts) or (rank and f.name in POSITIONS):
                continue
            values = flat([p for p in parts if p is not None]).astype(np.int64)
            keep(f.name + of, f.cost + (0.0 if f.name in POSITIONS else extra), values)
            if f.is_colour:
                paints.append(Paint(f.name + of, f.cost + extra, values.astype(np.uint8)))
    if not same_size:
        for name, values in _blocks(sizes, inputs).items():
            keep(name, 1.0, values)
    for name in global_colours(Scene(inputs[0])):
        per_grid = [global_colours(Scene(g))[name] for g in inputs]
        paints.append(Paint(name, 0.7, np.repeat(per_grid, [h * w for h, w in sizes]).astype(np.uint8)))
    paints += [Paint(f"colour {c}", 0.3, np.full(len(pixels[0]), c, dtype=np.uint8)) for c in np.unique(target)]
    return Cells(sizes, target, columns, paints, images[order[0]])


def _blocks(sizes: Sequence[tuple[int, int]], inputs: Sequence[Grid]) -> dict[str, Numbers]:
    """Where a cell lies if the output is cut into blocks of the input's size."""
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
