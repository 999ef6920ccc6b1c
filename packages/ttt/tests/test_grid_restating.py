"""Restating a task: what was done can be undone, and rules appear that were hidden."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from ttt._grid.restating import restated
from ttt._grid.search import search, votes
from ttt._grid.work import Work

GRIDS = arrays(np.uint8, st.tuples(st.integers(1, 6), st.integers(1, 6)), elements=st.integers(0, 9))


@settings(max_examples=60, deadline=None)
@given(st.lists(GRIDS, min_size=3, max_size=4))
def test_every_restatement_can_be_undone(grids: list[np.ndarray]) -> None:
    """If the output of a test were its input, undoing the restated input gives the input."""
    outputs = [g[::-1] for g in grids[:-1]]
    for restatement in restated(grids, outputs):
        assert restatement.undo[0](restatement.inputs[-1]).tolist() == grids[-1].tolist(), restatement.name
        assert len(restatement.outputs) == len(outputs)


def test_a_rule_about_the_commonest_colour_is_found() -> None:
    """Cells below the rarer colour take it; the two colours differ in every pair."""
    rng = np.random.default_rng(4)
    inputs, outputs = [], []
    for a, b in [(1, 2), (3, 4), (5, 6), (7, 8)]:
        g = rng.choice([0, a, b], size=(8, 8), p=[0.45, 0.4, 0.15]).astype(np.uint8)
        near = np.pad(g == b, ((1, 0), (0, 0)))[:-1]
        inputs.append(g)
        outputs.append(np.where(near & (g == a), b, g).astype(np.uint8))
    for found in search(inputs, outputs[:-1], 0, Work(lambda: False)):
        answers = votes(found.programs, 1)[0]
        if outputs[-1].tolist() in [g.tolist() for _, _, g in answers[:2]]:
            break
    else:
        pytest.fail("the search ended without the rule")


def test_a_rule_about_the_longer_side_is_found_by_restating() -> None:
    """The first half along the longer side, whichever that is."""
    rng = np.random.default_rng(5)
    inputs = [rng.integers(0, 5, size=size).astype(np.uint8) for size in ((3, 8), (10, 4), (3, 10), (8, 5))]
    outputs = [g[:, : g.shape[1] // 2] if g.shape[1] > g.shape[0] else g[: g.shape[0] // 2] for g in inputs]
    *_, found = search(inputs, outputs[:-1], 0, Work(lambda: False))
    _, program, grid = votes(found.programs, 1)[0][0]
    assert grid.tolist() == outputs[-1].tolist()
    assert program.why == "with tall grids transposed: cut down to its left half"


def test_transposing_aligns_tall_and_wide_pairs() -> None:
    """Tall and wide pairs of one rule become alike."""
    wide = np.array([[1, 0, 0, 2]], dtype=np.uint8)
    tall = np.array([[3], [0], [4]], dtype=np.uint8)
    restatement = next(x for x in restated([wide, tall, wide], [wide, tall]) if "transposed" in x.name)
    assert [g.shape for g in restatement.inputs] == [(1, 4), (1, 3), (1, 4)]
