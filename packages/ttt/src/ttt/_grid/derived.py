"""Inputs put through one or two transformations, grouped by the output sizes that they imply."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b

import numpy as np

from ttt._grid.scene import Scene, scenes_of
from ttt._grid.transforms import TRANSFORMS, Transform
from ttt._grid.work import Work
from ttt.values import MAX_SIDE, Grid

SECOND_BASES = 400
"""How many derived inputs of one transformation are transformed again, cheapest first."""

Shape = tuple[int, int]


@dataclass(frozen=True, slots=True)
class DerivedInput:
    """All inputs of a task after the same transformations, training first.

    Args:
        name: The transformations, in words.
        cost: Length of that description.
        grids: The transformed grid of each input.
        recipe: The transformations, in order; empty for a grid that no transformation made.
    """

    name: str
    cost: float
    grids: tuple[Grid, ...]
    recipe: tuple[Transform, ...] = ()

    @property
    def key(self) -> bytes:
        """A digest of the grids: a task has tens of thousands of derived inputs, too many to keep whole."""
        return blake2b(b"".join(bytes(g.shape) + g.tobytes() for g in self.grids), digest_size=16).digest()

    def has_sizes(self, sizes: Sequence[Shape]) -> bool:
        """Return whether the first grids have these sizes."""
        return all(g.shape == s for g, s in zip(self.grids, sizes, strict=False))


@dataclass(slots=True)
class Group:
    """Derived inputs of the training outputs' sizes that agree on the sizes of the tests."""

    sizes: tuple[Shape, ...]
    members: list[DerivedInput] = field(default_factory=list)
    guessed: bool = False
    """Whether the sizes of the tests are a guess, not implied by a transformation."""

    @property
    def cost(self) -> float:
        """Cost of its cheapest member."""
        return min(m.cost for m in self.members)


def apply(transform: Transform, scenes: Sequence[Scene], sizes: Sequence[Shape] = ()) -> tuple[Grid, ...] | None:
    """Transform every scene; None where one does not apply, is too large, or differs from the given size."""
    grids = []
    for i, scene in enumerate(scenes):
        grid = transform.make(scene)
        if grid is None or not grid.size or max(grid.shape) > MAX_SIDE or (i < len(sizes) and grid.shape != sizes[i]):
            return None
        grids.append(np.ascontiguousarray(grid, dtype=np.uint8))
    return tuple(grids)


def groups_of(
    inputs: Sequence[Grid], outputs: Sequence[Grid], work: Work, bases: int = SECOND_BASES
) -> Iterator[list[Group]]:
    """Derive inputs one and two transformations deep, and group those that fit the outputs' sizes.

    Args:
        inputs: All inputs, training first.
        outputs: The training outputs.
        work: Counts work and says when to stop.
        bases: How many derived inputs of one transformation are transformed again, cheapest first.

    Yields:
        The groups so far, cheapest first, after each depth.
    """
    sizes = [o.shape for o in outputs]
    found: set[bytes] = set()
    groups: dict[tuple[Shape, ...], Group] = {}

    def keep(derived: DerivedInput) -> bool:
        key = derived.key
        if key in found:
            return False
        found.add(key)
        if derived.has_sizes(sizes):
            rest = tuple(g.shape for g in derived.grids[len(sizes) :])
            groups.setdefault(rest, Group(rest)).members.append(derived)
        return True

    first = [derived for derived in _one_deep(inputs, work) if keep(derived)]
    yield by_cost(groups)
    for derived in _two_deep(first[1:bases], sizes, work):
        keep(derived)
    if len(set(sizes)) == 1:
        blank = tuple(np.zeros(sizes[0], dtype=np.uint8) for _ in inputs)
        keep(DerivedInput("an empty grid of the usual size", 2.5, blank))
    yield by_cost(groups)


def _one_deep(inputs: Sequence[Grid], work: Work) -> Iterator[DerivedInput]:
    scenes = scenes_of(inputs)
    for n, transform in enumerate(sorted(TRANSFORMS.values(), key=lambda t: t.cost)):
        if n % 60 == 59:
            work.spend()
            if work.over:
                return
        grids = apply(transform, scenes)
        if grids is not None:
            yield DerivedInput(transform.name, transform.cost, grids, (transform,))


def _two_deep(bases: Sequence[DerivedInput], sizes: Sequence[Shape], work: Work) -> Iterator[DerivedInput]:
    seconds = [t for t in TRANSFORMS.values() if t.second]
    for n, base in enumerate(bases):
        if n % 8 == 7:
            work.spend()
            if work.over:
                return
        fits = base.has_sizes(sizes)
        scenes = scenes_of(base.grids)
        for second in seconds:
            if second.keeps_size and not fits:
                continue
            grids = apply(second, scenes, sizes)
            if grids is not None:
                name = f"{base.name}, then {second.name}"
                yield DerivedInput(name, base.cost + second.cost, grids, (*base.recipe, second))


def by_cost(groups: dict[tuple[Shape, ...], Group]) -> list[Group]:
    """Return groups likeliest first: by their cheapest member, and by how many there are."""
    return sorted(groups.values(), key=lambda g: g.cost - 0.05 * min(len(g.members), 20))
