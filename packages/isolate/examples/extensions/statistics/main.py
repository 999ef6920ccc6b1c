"""Module-level functions are methods too."""

import numpy as np


def version() -> str:
    """The numpy of this extension's own environment."""
    return np.__version__


def summary(values: list[int]) -> dict[str, float]:
    """A few figures."""
    return {"mean": float(np.mean(values)), "max": float(np.max(values))}
