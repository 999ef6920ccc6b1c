"""The list of cell features: each is a whole number per cell of a grid, under the name that answers show."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from ttt._grid.geometry import Numbers
from ttt._grid.scene import Scene

Measure = Callable[[Scene], Numbers | None]
"""Returns int64 of the grid's shape, or None where the feature does not apply."""


@dataclass(frozen=True, slots=True)
class Feature:
    """A named whole number per cell.

    Args:
        measure: Takes a scene, returns int64 of the grid's shape, or None where it does not apply.
        is_colour: Whether the number is a colour, which a rule can then paint.
        cost: Length of its description; 1 is a plain feature.
        name: Its name in answers. Set by `register`.
    """

    measure: Measure
    is_colour: bool = False
    cost: float = 1.0
    name: str = ""


Table = Mapping[str, Feature]
"""Cell features by name."""

FEATURES: dict[str, Feature] = {}
"""Every cell feature of the search and the learners. Of two that are equal on a task the first one is kept."""


def register(*tables: Table) -> None:
    """Add tables of features, in order.

    Raises:
        ValueError: A name is taken.
    """
    for table in tables:
        for name, feature in table.items():
            if name in FEATURES:
                raise ValueError(f"two features are called {name!r}; rename one")
            FEATURES[name] = replace(feature, name=name)
