"""Whole outputs looked up by how many of something the input has."""

from __future__ import annotations

import numpy as np
import pytest

from ttt._grid.counted import COUNTED, programs_by_count
from ttt._grid.scene import Scenes

SHOWN = {n: np.eye(3, dtype=np.uint8) * n for n in (1, 2, 3)}


def with_cells(n: int, seed: int) -> np.ndarray:
    """A grid with some single cells of one colour, no two of them neighbours."""
    grid = np.zeros((5, 5), dtype=np.uint8)
    for place in np.random.default_rng(seed).permutation(9)[:n]:
        grid[2 * (place // 3), 2 * (place % 3)] = 4
    return grid


def asked(numbers: tuple[int, ...], test: int):
    """The programs of a task whose outputs follow the number of cells."""
    inputs = [with_cells(n, seed) for seed, n in enumerate((*numbers, test))]
    return programs_by_count(inputs, [SHOWN[n] for n in numbers], Scenes())


@pytest.mark.parametrize("test", [1, 2, 3])
def test_the_output_of_a_pair_with_as_many(test: int) -> None:
    """Every way to count that fits says the same."""
    programs = asked((1, 2, 3, 2, 1), test)
    assert programs
    assert all(np.array_equal(p.grids[0], SHOWN[test]) for p in programs)
    assert {what for what in COUNTED if any(f" {what} " in p.why for p in programs)} >= {"drawn cells", "objects"}


def test_a_number_that_no_pair_shows_has_no_answer() -> None:
    """Nothing is said of it."""
    assert not asked((1, 2, 1, 2), 3)


@pytest.mark.parametrize("numbers", [(1, 2, 3), (1, 2, 3, 3), (2, 2, 2, 2)])
def test_too_little_repetition_is_no_rule(numbers: tuple[int, ...]) -> None:
    """Nor are equal outputs."""
    assert not asked(numbers, 1 if 1 in numbers else 2)


def test_a_count_that_contradicts_itself_is_left_out() -> None:
    """The same number of cells with two outputs."""
    inputs = [with_cells(n, seed) for seed, n in enumerate((1, 1, 2, 2, 1))]
    assert not programs_by_count(inputs, [SHOWN[n] for n in (1, 2, 1, 2)], Scenes())
