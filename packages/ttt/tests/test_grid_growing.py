"""Growing rules: rays, bounces, floods and repeated patterns are learned and repeated until nothing changes."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from ttt._grid.before_net import before_net
from ttt._grid.growing.conditions import POSES, Field, posed
from ttt._grid.growing.programs import growing_programs
from ttt._grid.growing.rules import Learner, grown
from ttt._grid.scene import Scenes
from ttt._grid.where import steps
from ttt._grid.work import Work
from ttt.values import Grid

Pairs = tuple[list[Grid], list[Grid]]


def _seeded(shape: tuple[int, int], *cells: tuple[int, int, int]) -> Grid:
    grid = np.zeros(shape, dtype=np.uint8)
    for r, c, colour in cells:
        grid[r, c] = colour
    return grid


def _bouncing(shape: tuple[int, int], column: int) -> tuple[Grid, Grid]:
    """A ray that goes up and right from the lowest row and turns at both sides."""
    before = _seeded(shape, (shape[0] - 1, column, 3))
    after, step = before.copy(), 1
    for r in range(shape[0] - 2, -1, -1):
        if not 0 <= column + step < shape[1]:
            step = -step
        column += step
        after[r, column] = 3
    return before, after


def _dotted(shape: tuple[int, int], row: int, column: int, colour: int) -> tuple[Grid, Grid]:
    """Every second cell to the right has the seed's colour, those between have colour 5."""
    before = _seeded(shape, (row, column, colour))
    after = before.copy()
    after[row, column::2] = colour
    after[row, column + 1 :: 2] = 5
    return before, after


def _flooded(walls: list[tuple[int, int]], start: tuple[int, int]) -> tuple[Grid, Grid]:
    """Colour 4 spreads sideways and down from where it is, round the walls but not up."""
    before = _seeded((6, 6), *((r, c, 5) for r, c in walls), (*start, 4))
    after = before.copy()
    while True:
        near = np.zeros(after.shape, dtype=bool)
        near[1:] |= after[:-1] == 4
        near[:, 1:] |= after[:, :-1] == 4
        near[:, :-1] |= after[:, 1:] == 4
        new = np.where(near & (after == 0), 4, after).astype(np.uint8)
        if np.array_equal(new, after):
            return before, after
        after = new


def _pairs(made: list[tuple[Grid, Grid]]) -> Pairs:
    return [a for a, _ in made], [b for _, b in made]


TASKS: dict[str, Callable[[], Pairs]] = {
    "bouncing": lambda: _pairs([_bouncing((9, w), 0) for w in (3, 4, 5, 7)]),
    "dotted": lambda: _pairs([_dotted((3, 6), r, c, k) for r, c, k in ((1, 2, 3), (2, 0, 7), (1, 1, 4), (0, 3, 8))]),
    "flooded": lambda: _pairs(
        [
            _flooded([(2, 1), (2, 2), (2, 3), (4, 0)], (0, 2)),
            _flooded([(3, 3), (3, 4), (3, 5), (1, 0)], (1, 4)),
            _flooded([(1, 1), (2, 1), (3, 1), (4, 4)], (2, 3)),
            _flooded([(4, 1), (4, 2), (2, 5), (2, 4)], (2, 2)),
        ]
    ),
}


@pytest.mark.parametrize("name", TASKS)
def test_what_grows_is_learned_from_the_other_pairs(name: str) -> None:
    """The first program answers the last pair."""
    inputs, outputs = TASKS[name]()
    best = growing_programs(inputs, outputs[:-1], Work(lambda: False))[0]
    assert best.grids[-1].tolist() == outputs[-1].tolist()
    assert best.why.startswith("grown: colour ") or best.why.startswith("grown: its colour")


def test_rules_are_found_again_without_each_pair() -> None:
    """Equal pairs say the same without one of them; with one pair nothing is left to learn from."""
    inputs, outputs = TASKS["dotted"]()
    several = growing_programs(inputs, outputs[:-1], Work(lambda: False))[0]
    single = growing_programs([inputs[0], inputs[-1]], outputs[:1], Work(lambda: False))[0]
    assert (several.found_again, single.found_again) == (1.0, 0.0)


def test_the_stage_restated_answers_with_a_program_of_growing_rules() -> None:
    """The solver's second stage tries them, and the answer says in words what grows."""
    inputs, outputs = TASKS["bouncing"]()
    *_, state = before_net(inputs, outputs[:-1], 0, 30, ("restated",))
    best = max(state.pool.best[0].values(), key=lambda c: c.confidence)
    assert (best.stage, best.grid.tolist()) == ("restated", outputs[-1].tolist())
    assert [step.words for step in steps(best.why)] == ["grown"]
    assert steps(best.why)[0].places[0].startswith("_grid/growing/rules.py:")


def test_a_ray_that_stops_before_another_asks_what_is_in_sight() -> None:
    """Colour 3 draws to the right, then colour 4 draws down as far as that lets it, whichever grows first."""
    rng = np.random.default_rng(3)
    inputs, outputs = [], []
    for _ in range(4):
        before = _seeded((6, 6), (0, *rng.permutation(4)[:1], 4), (3, *rng.permutation(3)[:1], 3))
        after = before.copy()
        for colour, down in ((3, False), (4, True)):
            for r, c in zip(*np.nonzero(before == colour), strict=True):
                line = after[r + 1 :, c] if down else after[r, c + 1 :]
                stop = np.flatnonzero(line)
                line[: stop[0] if len(stop) else len(line)] = colour
        inputs.append(before)
        outputs.append(after)
    best = growing_programs(inputs, outputs[:-1], Work(lambda: False))[0]
    assert best.grids[-1].tolist() == outputs[-1].tolist()


@settings(max_examples=25, deadline=None)
@given(
    st.lists(arrays(np.uint8, (3, 4), elements=st.integers(0, 3)), min_size=2, max_size=3),
    st.sampled_from(sorted(POSES)),
    st.integers(0, 2**32 - 1),
)
def test_whatever_rules_are_learned_they_grow_the_training_outputs(grids: list[Grid], words: str, seed: int) -> None:
    """Of random grids, some of whose empty cells are painted at random."""
    rng = np.random.default_rng(seed)
    outputs = [np.where((g == 0) & (rng.random(g.shape) < 0.4), 2, g).astype(np.uint8) for g in grids[:-1]]
    field = Field(grids, outputs, Scenes())
    for rules in Learner(field, POSES[words]).programs():
        state = field.cut(grown(field, field.given, rules, POSES[words]))
        assert [g.tolist() for g in state[:-1]] == [g.tolist() for g in outputs]


@pytest.mark.parametrize("words", POSES)
def test_poses_are_turns_and_reflections_of_different_kinds(words: str) -> None:
    """Steps keep their length, and no two poses are alike."""
    assert all(sorted(map(abs, posed((1, 2), pose))) == [1, 2] for pose in POSES[words])
    assert len({(posed((1, 0), pose), posed((0, 1), pose)) for pose in POSES[words]}) == len(POSES[words])


def test_outputs_of_another_size_do_not_grow() -> None:
    """There are no rules for them."""
    one, two = np.zeros((1, 1), np.uint8), np.ones((2, 2), np.uint8)
    assert growing_programs([one, one], [two], Work(lambda: False)) == []
