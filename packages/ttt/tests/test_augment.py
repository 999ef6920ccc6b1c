"""Every view can be undone."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

import ttt
from ttt._tasks.augment import SYMMETRIES
from ttt.values import same

grids = arrays(np.uint8, st.tuples(st.integers(1, 30), st.integers(1, 30)), elements=st.integers(0, 9))
views = st.builds(
    ttt.View,
    st.integers(0, 3),
    st.booleans(),
    st.permutations(range(10)).map(tuple),
    st.permutations(range(3)).map(tuple),
)


@given(grid=grids, view=views)
def test_undo_undoes(grid: ttt.Grid, view: ttt.View) -> None:
    """Apply then undo, and undo then apply, give the same grid back."""
    assert same(view.undo(view.apply(grid)), grid)
    assert same(view.apply(view.undo(grid)), grid)


@given(view=views)
def test_views_survive_json(view: ttt.View) -> None:
    """A view is what its description says."""
    import json

    assert ttt.View.from_json(json.loads(json.dumps(view.to_json()))) == view


def test_the_eight_symmetries_are_distinct() -> None:
    """On a grid without symmetry all eight differ, and the first is the identity."""
    grid = ttt.as_grid([[1, 2], [3, 4], [5, 6]])
    seen = {(v.apply(grid).shape, v.apply(grid).tobytes()) for v in SYMMETRIES}
    assert len(seen) == 8
    assert same(SYMMETRIES[0].apply(grid), grid)


def test_a_view_of_a_task_keeps_its_rule(sample_arc_tasks: list[ttt.Task]) -> None:
    """Pairs stay pairs: undoing each gives the original pairs, in the view's order."""
    task = sample_arc_tasks[1]
    for view in ttt.random_views(task, 20, seed=1):
        seen = view.apply_task(task)
        for i, pair in zip(view.order or range(len(task.train)), seen.train, strict=True):
            original = task.train[i]
            assert pair.output is not None
            assert original.output is not None
            assert same(view.undo(pair.input), original.input)
            assert same(view.undo(pair.output), original.output)


def test_random_views_are_repeatable(sample_arc_tasks: list[ttt.Task]) -> None:
    """Same seed, same views, identity first; kept colours stay."""
    a, b = (ttt.random_views(sample_arc_tasks[0], 9, seed=4) for _ in range(2))
    assert a == b
    assert a != ttt.random_views(sample_arc_tasks[0], 9, seed=5)
    assert a[0] == ttt.View()
    assert all(v.colours[0] == 0 for v in a)


def test_leave_one_out(sample_arc_tasks: list[ttt.Task]) -> None:
    """Each pair is held out once; a task of one pair gives nothing."""
    task = sample_arc_tasks[1]
    held = list(ttt.leave_one_out(task))
    assert [t.test[0] for t in held] == list(task.train)
    assert all(len(t.train) == len(task.train) - 1 for t in held)
    assert list(ttt.leave_one_out(ttt.Task("one", task.train[:1], task.test))) == []


@pytest.mark.parametrize(
    "wrong", [{"turns": 4}, {"colours": (0,) * 10}, {"colours": tuple(range(9))}, {"order": (0, 2)}]
)
def test_what_cannot_be_undone_is_refused(wrong: dict[str, Any]) -> None:
    """Bad descriptors do not come to be."""
    with pytest.raises(ValueError, match="wanted"):
        ttt.View(**wrong)


def test_an_order_for_another_number_of_pairs_is_refused(sample_arc_tasks: list[ttt.Task]) -> None:
    """A view with an order fits only tasks with that many pairs."""
    with pytest.raises(ValueError, match="order of 7 pairs"):
        ttt.View(order=tuple(range(7))).apply_task(sample_arc_tasks[0])
