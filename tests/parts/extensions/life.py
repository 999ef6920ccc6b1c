"""A solver for tasks whose rule is a step of Conway's Game of Life. It needs numpy and no torch."""

from __future__ import annotations

import sys

import numpy


def step(grid):
    """Return the next generation; colour 0 is dead, every other colour is alive."""
    alive = numpy.pad((grid > 0).astype(int), 1)
    windows = numpy.lib.stride_tricks.sliding_window_view(alive, (3, 3))
    around = windows.sum((2, 3)) - alive[1:-1, 1:-1]
    lives = (around == 3) | ((around == 2) & (grid > 0))
    return numpy.where(lives, max(int(grid.max()), 1), 0)


class Extension:
    """Proposes answers for a task."""

    def propose(self, train, tests):
        """Return answers for the tests, or none if the rule does not explain every training pair.

        Args:
            train: pairs of grids, as lists of rows.
            tests: inputs, as lists of rows.
        """
        fits = all(numpy.array_equal(step(numpy.array(given)), wanted) for given, wanted in train)
        return [step(numpy.array(given)).tolist() for given in tests] if fits else []

    def libraries(self):
        """Return the names of the modules that this process has loaded."""
        return {"numpy": numpy.__version__, "torch": "torch" in sys.modules}
