"""Every view of a task's inputs, one and two deep, grouped by the output sizes they imply; knows nothing of tables."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b

import numpy as np

from ttt.grid import painting as _painting
from ttt.grid import shaping as _shaping
from ttt.grid.answers import LARGEST, Grid
from ttt.grid.scene import Scene
from ttt.grid.views import VIEWS, View
from ttt.grid.work import Work

_REGISTERED = (_shaping, _painting)
SECOND_BASES = 400

Shape = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Image:
    """One view of all inputs of a task, training first.

    Args:
        name: How it is made, in words.
        cost: Length of that description.
        grids: The view of each input.
        recipe: The transformations, in order; empty for a grid that no transformation made.
    """

    name: str
    cost: float
    grids: tuple[Grid, ...]
    recipe: tuple[View, ...] = ()

    @property
    def key(self) -> bytes:
        """Equal for images that show the same; a digest, as a task has tens of thousands."""
        return blake2b(b"".join(bytes(g.shape) + g.tobytes() for g in self.grids), digest_size=16).digest()


@dataclass(slots=True)
class Group:
    """Images with the training outputs' sizes that agree on the sizes of the tests."""

    sizes: tuple[Shape, ...]
    images: list[Image] = field(default_factory=list)

    @property
    def cost(self) -> float:
        """Cost of its cheapest image."""
        return min(i.cost for i in self.images)


def apply(view: View, scenes: Sequence[Scene], sizes: Sequence[Shape] = ()) -> tuple[Grid, ...] | None:
    """The view of every scene, or None where one fails, is too large, or has not the wanted size."""
    grids = []
    for i, scene in enumerate(scenes):
        try:
            grid = view.make(scene)
        except (IndexError, ValueError):
            return None
        if grid is None or not grid.size or max(grid.shape) > LARGEST or (i < len(sizes) and grid.shape != sizes[i]):
            return None
        grids.append(np.ascontiguousarray(grid, dtype=np.uint8))
    return tuple(grids)


def groups_of(
    inputs: Sequence[Grid], outputs: Sequence[Grid], work: Work, bases: int = SECOND_BASES
) -> Iterator[list[Group]]:
    """The groups of images that could be turned into the outputs, cheapest first, better ones as they are found.

    Args:
        inputs: All inputs, training first.
        outputs: The training outputs.
        work: Counts work and says when to stop.
        bases: How many views of depth one are looked at again, cheapest first.

    Yields:
        After each depth the groups found so far.
    """
    sizes = [o.shape for o in outputs]
    scenes = [Scene(g) for g in inputs]
    found: set[bytes] = set()
    groups: dict[tuple[Shape, ...], Group] = {}

    def keep(image: Image) -> bool:
        key = image.key
        if key in found:
            return False
        found.add(key)
        if all(g.shape == s for g, s in zip(image.grids, sizes, strict=False)):
            rest = tuple(g.shape for g in image.grids[len(sizes) :])
            groups.setdefault(rest, Group(rest)).images.append(image)
        return True

    first: list[Image] = []
    for n, one in enumerate(sorted(VIEWS.values(), key=lambda v: v.cost)):
        if n % 60 == 59:
            work.spend()
            if work.over:
                break
        grids = apply(one, scenes)
        if grids is not None:
            image = Image(one.name, one.cost, grids, (one,))
            if keep(image):
                first.append(image)
    yield _sorted(groups)
    seconds = [v for v in VIEWS.values() if v.second]
    for n, image in enumerate(first[1:bases]):
        if n % 8 == 7:
            work.spend()
            if work.over:
                break
        fits = all(g.shape == s for g, s in zip(image.grids, sizes, strict=False))
        again = [Scene(g) for g in image.grids]
        for two in seconds:
            if two.keeps_size and not fits:
                continue
            grids = apply(two, again, sizes)
            if grids is not None:
                keep(Image(f"{image.name}, then {two.name}", image.cost + two.cost, grids, (*image.recipe, two)))
    if len(set(sizes)) == 1:
        blank = tuple(np.zeros(sizes[0], dtype=np.uint8) for _ in inputs)
        keep(Image("an empty grid of the usual size", 2.5, blank))
    yield _sorted(groups)


def _sorted(groups: dict[tuple[Shape, ...], Group]) -> list[Group]:
    return sorted(groups.values(), key=lambda g: g.cost - 0.05 * min(len(g.images), 20))
