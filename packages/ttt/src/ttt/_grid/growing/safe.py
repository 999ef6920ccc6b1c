"""Sets of conditions that hold in no wrong cell."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ttt._grid.geometry import Mask, Numbers

MOST = 150
"""How many sets of one size are kept, those that hold in most right cells first; of two conditions twice as many."""
NEARLY = 200
"""How many unsafe sets of two conditions get a third."""

Counts = npt.NDArray[np.float32]
"""Whole numbers below 2 ** 24: sums of them are exact in any order."""


def safe_sets(
    marks: Mask, right: Mask, wrong: Mask, size: int, images: Numbers | None = None, most: int = MOST
) -> list[tuple[int, ...]]:
    """Return sets of conditions that hold together in some right cell and in no wrong one.

    Args:
        marks: Per cell and condition whether it holds.
        right: The right cells.
        wrong: The wrong cells.
        size: Most conditions of a set, 2 or 3.
        images: For each pose and condition the condition that it is in that pose: of the images of one or of two
            conditions one set is returned.
        most: How many sets of one size.
    """
    rows, times = _distinct(marks[right])
    if not len(rows):
        return []
    a, b = rows.astype(np.float32), _distinct(marks[wrong])[0].astype(np.float32)
    count, mistakes = times @ a, b.sum(axis=0)
    safe = (mistakes == 0) & (count > 0)
    if images is not None:
        safe &= (images >= np.arange(len(count))).all(axis=0)
    found = _most(np.flatnonzero(safe)[:, None], count[safe], most)
    free = np.flatnonzero((mistakes > 0) & (count > 0))
    if len(free) < 2:
        return found
    a, b = a[:, free], b[:, free]
    weighted = a * times[:, None]
    together, mistaken = weighted.T @ a, b.T @ b
    upper = np.triu(together > 0, 1)
    if images is not None:
        upper &= _first_of_images(images[:, free], len(marks[0]), free)
    i, j = np.nonzero(upper & (mistaken == 0))
    found += _most(np.stack([free[i], free[j]], axis=1), together[i, j], 2 * most)
    if size > 2:
        i, j = np.nonzero(upper & (mistaken > 0))
        # Sets that hold in as many right and as many wrong cells are mostly alike: the first one stands for them.
        alike = together[i, j].astype(np.int64) * 2**24 + mistaken[i, j].astype(np.int64)
        one = np.sort(np.unique(alike, return_index=True)[1])
        i, j = i[one], j[one]
        nearly = np.argsort(-together[i, j] / (1 + mistaken[i, j]), kind="stable")[:NEARLY]
        i, j = i[nearly], j[nearly]
        together = (weighted[:, i] * a[:, j]).T @ a
        k, third = np.nonzero((together > 0) & ((b[:, i] * b[:, j]).T @ b == 0))
        sets = np.sort(np.stack([free[i[k]], free[j[k]], free[third]], axis=1), axis=1)
        found += _most(sets, together[k, third], most)
    return list(dict.fromkeys(found))


def _first_of_images(images: Numbers, count: int, free: Numbers) -> Mask:
    """Return which pairs of conditions come before all of their images."""
    own = free[:, None] * count + free[None, :]
    first = np.ones(own.shape, dtype=bool)
    for image in images:
        low, high = np.minimum.outer(image, image), np.maximum.outer(image, image)
        first &= np.triu(own) <= low * count + high
    return first


def _most(sets: Numbers, count: npt.NDArray[np.floating], most: int) -> list[tuple[int, ...]]:
    return [tuple(s) for s in sets[np.argsort(-count, kind="stable")[:most]].tolist()]


def _distinct(rows: Mask) -> tuple[Mask, Counts]:
    """Return the different rows and how often each occurs."""
    packed = np.ascontiguousarray(np.packbits(rows, axis=1))
    if not packed.size:
        return rows[:0], np.zeros(0, np.float32)
    keys = packed.view(np.dtype((np.void, packed.shape[1]))).ravel()
    _, first, times = np.unique(keys, return_index=True, return_counts=True)
    return rows[first], times.astype(np.float32)
