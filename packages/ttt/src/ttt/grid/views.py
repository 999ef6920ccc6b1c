"""The registry of transformations, a grid from a grid each; knows nothing of tasks, tables or programs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ttt.grid.answers import Grid
from ttt.grid.scene import Scene

Make = Callable[[Scene], Grid | None]


@dataclass(frozen=True, slots=True)
class View:
    """A named transformation of one grid.

    Args:
        name: Words that a person understands, read as "... then NAME".
        make: Takes a scene, returns a grid, or None where it does not apply.
        keeps_size: Whether the result always has the input's size.
        second: Whether it is worth trying on the result of another view.
        cost: Length of its description; 1 is a plain operation.
    """

    name: str
    make: Make
    keeps_size: bool = False
    second: bool = False
    cost: float = 1.0


VIEWS: dict[str, View] = {}
"""Every transformation that the search knows, by name."""


def view(name: str, *, keeps_size: bool = False, second: bool = False, cost: float = 1.0) -> Callable[[Make], Make]:
    """Register a transformation; the decorator's arguments are those of `View`."""

    def register(make: Make) -> Make:
        add(name, make, keeps_size=keeps_size, second=second, cost=cost)
        return make

    return register


def add(name: str, make: Make, *, keeps_size: bool = False, second: bool = False, cost: float = 1.0) -> None:
    """Register one member of a family of transformations, as `view` does for a function."""
    if name in VIEWS:
        raise ValueError(f"two transformations are called {name!r}")
    VIEWS[name] = View(name, make, keeps_size, second, cost)
