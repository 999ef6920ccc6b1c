"""The values of the domain: grid, pair, task, candidate, attempt, prediction."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from ttt.errors import InvalidTaskError

__all__ = [
    "COLOURS",
    "MAX_SIDE",
    "Attempt",
    "Candidate",
    "Grid",
    "Pair",
    "Prediction",
    "Progress",
    "Task",
    "as_grid",
    "grid_bytes",
    "same",
]

Grid: TypeAlias = npt.NDArray[np.uint8]
"""A 2-D array of colours 0..9, at most 30 x 30, read-only."""

COLOURS = 10
"""The number of colours."""

MAX_SIDE = 30
"""The most rows or columns of a grid."""


def as_grid(cells: Any, where: str = "grid") -> Grid:
    """Check an array or nested sequence and return it as a read-only grid.

    Args:
        cells: 2-D integers 0..9 with 1 to 30 rows and columns: a list of lists of int, or an integer array.
        where: The grid's name in error messages, such as `task 007bbfb7, train pair 0, input`.

    Example:
        >>> ttt.as_grid([[0, 1], [2, 3]]).shape
        (2, 2)

    Raises:
        InvalidTaskError: The cells break the format; the message gives row and column.
    """
    if isinstance(cells, np.ndarray):
        if cells.dtype.kind not in "iu":
            raise InvalidTaskError(f"{where}: got an array of {cells.dtype}, wanted integers")
        if cells.ndim != 2:
            raise InvalidTaskError(f"{where}: got {cells.ndim} dimensions, wanted 2")
        rows: Sequence[Any] = cells.tolist()
    elif isinstance(cells, list | tuple):
        rows = cells
    else:
        raise InvalidTaskError(f"{where}: got {_named(cells)}, wanted a list of rows")
    if not rows:
        raise InvalidTaskError(f"{where}: has no rows, wanted 1 to {MAX_SIDE}")
    if len(rows) > MAX_SIDE:
        raise InvalidTaskError(f"{where}: has {len(rows)} rows, wanted at most {MAX_SIDE}")
    width = None
    for r, row in enumerate(rows):
        if not isinstance(row, list | tuple):
            raise InvalidTaskError(f"{where}, row {r}: got {_named(row)}, wanted a list of colours")
        if width is None:
            width = len(row)
            if not 1 <= width <= MAX_SIDE:
                raise InvalidTaskError(f"{where}, row {r}: has {width} columns, wanted 1 to {MAX_SIDE}")
        elif len(row) != width:
            raise InvalidTaskError(f"{where}, row {r}: has {len(row)} columns, row 0 has {width}")
        for c, colour in enumerate(row):
            # bool is an int to Python, and 1.0 == 1: only a true int is a colour.
            if type(colour) is not int:
                raise InvalidTaskError(f"{where}, row {r}, column {c}: got {_named(colour)}, wanted a colour 0 to 9")
            if not 0 <= colour < COLOURS:
                raise InvalidTaskError(f"{where}, row {r}, column {c}: got colour {colour}, wanted 0 to 9")
    grid = np.array(rows, dtype=np.uint8)
    grid.flags.writeable = False
    return grid


def _named(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{type(value).__name__} {text[:36]}…"


def same(a: Grid, b: Grid) -> bool:
    """Return whether two grids are equal in size and in every cell.

    Example:
        >>> ttt.values.same(one, two)
        False
    """
    return a.shape == b.shape and bool((a == b).all())


def grid_bytes(grid: Grid) -> bytes:
    r"""Return bytes that identify a grid: rows, columns, then the cells in row order.

    Example:
        >>> ttt.values.grid_bytes(one)
        b'\x01\x02\x01\x00'
    """
    return bytes(grid.shape) + np.ascontiguousarray(grid, dtype=np.uint8).tobytes()


@dataclass(frozen=True, eq=False, slots=True)
class Pair:
    """One input and, where known, its output.

    Example:
        >>> ttt.Pair(ttt.as_grid([[1]]), ttt.as_grid([[2]])).output.tolist()
        [[2]]

    Attributes:
        input: The input grid.
        output: The output grid; None if unknown.
    """

    input: Grid
    output: Grid | None = None

    @property
    def digest(self) -> str:
        """SHA-256 of input and output."""
        out = b"?" if self.output is None else grid_bytes(self.output)
        return hashlib.sha256(grid_bytes(self.input) + out).hexdigest()


@dataclass(frozen=True, eq=False)
class Task:
    """One ARC task: training pairs with outputs, and one or more test inputs whose outputs may be known.

    Example:
        >>> task = ttt.Task("mine", train=(ttt.Pair(one, two),), test=(ttt.Pair(one),))
        >>> task.has_solutions
        False

    Attributes:
        id: The task's id.
        train: The training pairs.
        test: The test inputs, with outputs where known.
    """

    id: str
    train: tuple[Pair, ...]
    test: tuple[Pair, ...]

    @cached_property
    def content(self) -> str:
        """SHA-256 of the training pairs and test inputs; the id and the test outputs do not count."""
        h = hashlib.sha256()
        for pair in self.train:
            h.update(b"train" + bytes.fromhex(pair.digest))
        for pair in self.test:
            h.update(b"test" + grid_bytes(pair.input))
        return h.hexdigest()

    @property
    def has_solutions(self) -> bool:
        """Whether every test output is known."""
        return all(pair.output is not None for pair in self.test)

    def without_solutions(self) -> Task:
        """Return the task without its test outputs, as backends get it."""
        return Task(self.id, self.train, tuple(Pair(pair.input) for pair in self.test))

    def __eq__(self, other: object) -> bool:
        """Return whether ids and all pairs, test outputs included, are equal."""
        if not isinstance(other, Task):
            return NotImplemented
        return self.id == other.id and self._digests() == other._digests()

    def __hash__(self) -> int:
        return hash((self.id, self.content))

    def _digests(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        return tuple(p.digest for p in self.train), tuple(p.digest for p in self.test)

    def seed(self, run_seed: int) -> int:
        """Return a 63-bit seed from the task's content and the run's seed; the order of tasks does not matter."""
        digest = hashlib.sha256(f"{run_seed}:{self.content}".encode()).digest()
        return int.from_bytes(digest[:8], "big") >> 1


@dataclass(frozen=True, eq=False, slots=True)
class Candidate:
    """One possible output for one test input, from a backend.

    Example:
        >>> ttt.Candidate(one, confidence=0.9, stage="search", why="as it is").confidence
        0.9

    `confidence` is the backend's own claim in [0, 1]. `stage` names the part of the backend that found it, and `why`
    explains it in words.

    Attributes:
        grid: The answer.
    """

    grid: Grid
    confidence: float
    stage: str = ""
    why: str = ""


@dataclass(frozen=True, eq=False, slots=True)
class Progress:
    """A backend's best answers so far: per test input its candidates, best first.

    Example:
        >>> progress = ttt.Progress(((ttt.Candidate(one, 0.9),),), stage="search", steps_done=3)
        >>> len(progress.answers[0])
        1

    `fraction` in [0, 1] is for the progress bar; `steps_done` counts work units.

    Attributes:
        answers: For each test input its candidates, best first.
        stage: Which part of the backend is at work.
    """

    answers: tuple[tuple[Candidate, ...], ...]
    stage: str = ""
    steps_done: int = 0
    fraction: float = 0.0


@dataclass(frozen=True, eq=False, slots=True)
class Attempt:
    """One of the two submitted answers for a test input.

    Example:
        >>> ttt.Attempt(one, confidence=0.8, stage="search", claimed=0.9).claimed
        0.9

    `confidence` is the calibrated probability that it is right, `claimed` the backend's own figure.

    Attributes:
        grid: The answer.
        stage: Which part of the backend found it.
        why: The rule behind it, in words.
    """

    grid: Grid
    confidence: float
    stage: str = ""
    why: str = ""
    claimed: float = 0.0


@dataclass(frozen=True, eq=False, slots=True)
class Prediction:
    """The two attempts for one test input.

    Example:
        >>> guess = ttt.Prediction(ttt.Attempt(one, 0.8), ttt.Attempt(two, 0.1))
        >>> guess.solves(two), guess.solves(two, attempts=1)
        (True, False)

    Attributes:
        first: The likelier attempt.
        second: The other attempt.
    """

    first: Attempt
    second: Attempt

    def solves(self, truth: Grid, attempts: int = 2) -> bool:
        """Return whether one of the first one or two attempts equals the truth in every cell."""
        return same(self.first.grid, truth) or (attempts > 1 and same(self.second.grid, truth))
