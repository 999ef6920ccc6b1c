"""Tasks whose demonstrations hold an error, and tasks whose output sizes no transformation implies."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ttt import Progress
from ttt._grid import solve
from ttt._grid.one_error import nearly
from ttt._grid.size_guess import guess_sizes, guessed_groups

Rule = Callable[[np.ndarray], np.ndarray]
RULES: list[tuple[str, Rule]] = [
    ("mirrored", lambda g: g[:, ::-1]),
    ("recoloured", lambda g: np.array([0, 3, 1, 4, 2], np.uint8)[g]),
    ("halved", lambda g: g[: len(g) // 2]),
]


def inputs(n: int, seed: int = 0) -> list[np.ndarray]:
    """Random grids of several sizes, of even height."""
    rng = np.random.default_rng(seed)
    return [
        rng.integers(0, 5, (2 * int(rng.integers(2, 5)), int(rng.integers(4, 9)))).astype(np.uint8) for _ in range(n)
    ]


def last(train: list[tuple[np.ndarray, np.ndarray]], test: np.ndarray, steps: int = 250, **how: object) -> Progress:
    """What the solver ends with."""
    *_, progress = solve(train, [test], seed=0, stop=lambda: False, steps=steps, **how)  # type: ignore[arg-type]
    return progress


@pytest.mark.parametrize("rule", [r for _, r in RULES], ids=[n for n, _ in RULES])
@pytest.mark.parametrize("fault", ["a wrong cell", "a row short"])
def test_one_faulty_pair_does_not_hide_the_rule(rule: Rule, fault: str) -> None:
    """Three good pairs and one with an error: the answer is that of the rule, claimed with less confidence."""
    *shown, test = inputs(5)
    train = [(g, np.ascontiguousarray(rule(g))) for g in shown]
    g, out = train[1]
    if fault == "a wrong cell":
        out = out.copy()
        out[0, 0] = (out[0, 0] + 1) % 5
    else:
        out = out[:-1]
    train[1] = (g, out)
    best = last(train, test, stages=("search",)).answers[0][0]
    assert best.grid.tolist() == rule(test).tolist()
    assert "one training pair differs" in best.why or fault == "a wrong cell" or best.confidence < 0.3
    assert 0 < best.confidence < 0.9, "less than what a rule claims that fits every pair"


def test_one_pair_is_not_doubted() -> None:
    """A rule is not made up for a pair that is left out where no other is there."""
    shown, test = inputs(2)
    train = [(shown, np.random.default_rng(1).integers(5, 9, shown.shape).astype(np.uint8))]
    assert "one training pair differs" not in last(train, test, stages=("search",)).answers[0][0].why


@given(st.integers(1, 8), st.integers(1, 8), st.integers(0, 2**31))
def test_nearly_is_a_few_cells_or_a_line_at_the_edge(height: int, width: int, seed: int) -> None:
    """Nearly the same are itself, itself with a wrong cell and itself without a line at its edge; not two lines off."""
    grid = np.random.default_rng(seed).integers(0, 10, (height, width)).astype(np.uint8)
    given = np.zeros((9, 9), np.uint8)
    wrong = grid.copy()
    wrong[0, 0] = (wrong[0, 0] + 1) % 10
    assert nearly(grid, grid, given)
    assert nearly(wrong, grid, given) or grid.size == 1
    if height > 1:
        assert nearly(grid[1:], grid, given)
        assert nearly(grid, grid[:-1], given)
    if height > 2:
        assert not nearly(grid[:-2], grid, given)
    assert not nearly(grid, wrong, grid), "the input itself makes none of what changes"


@settings(max_examples=40)
@given(st.integers(1, 3), st.integers(0, 3), st.integers(0, 1000))
def test_a_linear_size_is_guessed(slope: int, offset: int, seed: int) -> None:
    """Where a side is a linear function of the input's, the guess for the test is that function's value."""
    rng = np.random.default_rng(seed)
    grids = [np.zeros((h, 5), np.uint8) for h in (2, 5, 7, 4)]  # nothing but their height differs
    outputs = [rng.integers(0, 4, (slope * len(g) + offset, 3)).astype(np.uint8) for g in grids[:3]]
    assert guess_sizes(grids, outputs) == ((slope * 4 + offset, 3),)


@pytest.mark.parametrize(
    ("how", "steps"), [({"stages": ("trees", "net")}, 65), pytest.param({}, 400, marks=pytest.mark.slow)]
)
def test_the_learners_try_where_no_transformation_has_the_size(how: dict[str, tuple[str, ...]], steps: int) -> None:
    """As many rows as objects: no transformation has that size, and trees and net still answer with it.

    Rows of seven random cells are too many for a rule to fit by chance.
    """
    rng = np.random.default_rng(0)
    grids, outputs = [], []
    for n in (1, 2, 3, 4):
        g = np.zeros((8, 8), np.uint8)
        g[[2 * i for i in range(n)], 3] = range(1, n + 1)
        grids.append(g)
        outputs.append(rng.integers(1, 5, (n, 7)).astype(np.uint8))
    (group,) = guessed_groups(grids, outputs[:3])
    assert group.sizes == ((4, 7),)
    best = last(list(zip(grids[:3], outputs[:3], strict=True)), grids[3], steps, **how).answers[0][0]
    assert best.stage in ("trees", "net")
    assert best.grid.shape == (4, 7)


def test_equal_inputs_of_two_output_sizes_are_no_trouble() -> None:
    """One input with two outputs of different sizes: nothing can be derived, and the solver still answers."""
    grid, test = np.eye(3, dtype=np.uint8), np.ones((3, 3), np.uint8)
    train = [(grid, np.ones((2, 5), np.uint8)), (grid, np.ones((4, 1), np.uint8))]
    assert len(last(train, test, steps=60).answers[0]) == 2
