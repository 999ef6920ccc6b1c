"""What the solver hands out: candidates with their reason, and progress; knows nothing of how answers are found."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Grid = npt.NDArray[np.uint8]
"""A 2-D array of colours 0..9."""
LARGEST = 30
"""Rows and columns of the largest grid."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """One proposed output grid.

    Args:
        grid: 2-D uint8 array of colours 0..9, at most 30 x 30.
        confidence: Estimated chance that the grid is right, in [0, 1].
        stage: The stage that proposed it: "search", "trees", "net" or "fallback".
        why: The program in readable words for the search; train fit and agreement for the others.
    """

    grid: Grid
    confidence: float
    stage: str
    why: str


@dataclass(frozen=True, slots=True)
class Progress:
    """The best answers so far.

    Args:
        answers: Per test input its candidates, best first, two distinct ones.
        stage: The stage that is at work.
        steps_done: Work units spent so far.
        fraction: Share of the work that is done, in [0, 1].
    """

    answers: tuple[tuple[Candidate, ...], ...]
    stage: str
    steps_done: int
    fraction: float
