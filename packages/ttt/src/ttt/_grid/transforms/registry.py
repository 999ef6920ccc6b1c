"""The list of transformations: each makes a grid from a grid, under the name that answers show."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace

from ttt._grid.scene import Scene
from ttt.values import Grid

Make = Callable[[Scene], Grid | None]
"""Makes a grid from a scene, or returns None where the transformation does not apply."""


@dataclass(frozen=True, slots=True)
class Transform:
    """A named transformation of one grid.

    Args:
        make: Takes a scene, returns a grid, or None where it does not apply.
        keeps_size: Whether the result always has the input's size.
        second: Whether it is also tried on the result of another transformation.
        cost: Length of its description; 1 is a plain operation.
        name: Its name in answers, read as "..., then NAME". Set by `register`.
    """

    make: Make
    keeps_size: bool = False
    second: bool = False
    cost: float = 1.0
    name: str = ""


Table = Mapping[str, Transform]
"""Transformations by name."""

TRANSFORMS: dict[str, Transform] = {}
"""Every transformation that the search tries. Of two that make equal grids at equal cost the first one is kept."""


def register(*tables: Table) -> None:
    """Add tables of transformations, in order.

    Raises:
        ValueError: A name is taken.
    """
    for table in tables:
        for name, transform in table.items():
            if name in TRANSFORMS:
                raise ValueError(f"two transformations are called {name!r}; rename one")
            TRANSFORMS[name] = replace(transform, name=name)


def per_colour(rows: Mapping[str, Callable[[int], Transform]], colours: Iterable[int] = range(10)) -> Table:
    """Return every row for every colour, colour by colour; `{}` in a row's text stands for the colour."""
    return {row.format(c): made(c) for c in colours for row, made in rows.items()}
