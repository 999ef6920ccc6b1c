"""Restating a task: what was done can be undone, and rules appear that were hidden."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from ttt._grid.before_net import BESIDE_SURE, before_net
from ttt._grid.restated_search import search_restated
from ttt._grid.restating import FURTHER, RESTATEMENTS, Restate, restated
from ttt._grid.search import compositions_in_full, search, votes
from ttt._grid.work import Work

GRIDS = arrays(np.uint8, st.tuples(st.integers(1, 6), st.integers(1, 6)), elements=st.integers(0, 9))


@pytest.mark.parametrize("table", [RESTATEMENTS, FURTHER], ids=["of the search", "further"])
@settings(max_examples=60, deadline=None)
@given(st.lists(GRIDS, min_size=3, max_size=4), st.booleans())
def test_every_restatement_can_be_undone(table: dict[str, Restate], grids: list[np.ndarray], unchanged: bool) -> None:
    """If the output of a test were its input, undoing the restated input gives the input."""
    outputs = [g if unchanged else g[::-1] for g in grids[:-1]]
    for restatement in restated(grids, outputs, table):
        undone, (h, w) = restatement.undo[0](restatement.inputs[-1]), grids[-1].shape
        if "into the top left" in restatement.name:
            undone = undone[:h, :w]  # only the inputs were restated
        elif "into the bottom left" in restatement.name:
            undone = undone[-h:, :w]
        assert undone.tolist() == grids[-1].tolist(), restatement.name
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


@pytest.mark.parametrize(
    ("factor", "sides"),
    [(lambda g: 2, ((3, 3), (2, 3), (4, 3))), (lambda g: len(set(g[g > 0].tolist())), ((3, 3), (3, 3), (3, 3)))],
    ids=["twice as large", "as many times as large as it has colours"],
)
def test_lines_beyond_the_input_are_found(factor, sides) -> None:
    """Lines down to the right of every drawn cell leave the input and run on in a larger output."""
    rng = np.random.default_rng(6)
    inputs, outputs = [], []
    for n, (h, w) in enumerate(sides):
        g = np.zeros((h, w), dtype=np.uint8)
        g[0, : n % 2 + 2] = rng.permutation(9)[: n % 2 + 2] + 1
        out = np.zeros((h * factor(g), w * factor(g)), dtype=np.uint8)
        for r, c in np.argwhere(g):
            for k in range(min(out.shape[0] - r, out.shape[1] - c)):
                out[r + k, c + k] = g[r, c]
        inputs.append(g)
        outputs.append(out)
    placed = "each input put into the top left of an empty grid of its output's size"
    (restatement,) = restated(inputs, outputs[:-1], {placed: FURTHER[placed]})
    for found in search(restatement.inputs, restatement.outputs, 0, Work(lambda: False)):
        answers = votes(found.programs, 1)[0]
        if answers:
            break
    assert restatement.undo[0](answers[0][2]).tolist() == outputs[-1].tolist()


def test_compositions_in_full_are_exact_and_no_layers() -> None:
    """What the stage adds first makes every training output, and answers the test: a quarter of what is drawn."""
    rng = np.random.default_rng(7)
    inputs, outputs = [], []
    for n in range(4):
        g = np.zeros((9, 10), dtype=np.uint8)
        g[n : n + 4, 2:8] = rng.integers(1, 9, size=(4, 6))
        inputs.append(g)
        outputs.append(g[n : n + 2, 2:5])
    found = compositions_in_full(inputs, outputs[:-1], Work(lambda: False))
    assert found
    assert {p.kind for p in found} == {"composed"}
    assert outputs[-1].tolist() in [p.grids[0].tolist() for p in found if p.grids[0] is not None]


def test_transposing_aligns_tall_and_wide_pairs() -> None:
    """Tall and wide pairs of one rule become alike."""
    wide = np.array([[1, 0, 0, 2]], dtype=np.uint8)
    tall = np.array([[3], [0], [4]], dtype=np.uint8)
    restatement = next(x for x in restated([wide, tall, wide], [wide, tall]) if "transposed" in x.name)
    assert [g.shape for g in restatement.inputs] == [(1, 4), (1, 3), (1, 4)]


def drawn_in_a_frame(rng: np.random.Generator, size: tuple[int, int], shown: np.ndarray) -> np.ndarray:
    """Return an empty grid with a picture somewhere inside."""
    grid = np.zeros(size, dtype=np.uint8)
    top, left = (int(rng.integers(1, size[i] - shown.shape[i])) for i in (0, 1))
    grid[top : top + shown.shape[0], left : left + shown.shape[1]] = shown
    return grid


def test_a_box_is_cut_out_and_put_back() -> None:
    """What is drawn is a task of its own where nothing changes around it, and none where something does."""
    rng = np.random.default_rng(6)
    inputs = [drawn_in_a_frame(rng, (9, 11), rng.integers(1, 9, size=(4, 3)).astype(np.uint8)) for _ in range(3)]
    name = "grids cut down to what is drawn"
    restatement = {r.name: r for r in restated(inputs, inputs[:2], FURTHER)}[name]
    assert [g.shape for g in restatement.inputs] == [(4, 3)] * 3
    assert restatement.undo[0](np.zeros((4, 3), np.uint8)).tolist() == np.zeros((9, 11)).tolist()
    assert restatement.undo[0](np.zeros((3, 4), np.uint8)) is None
    outside = [inputs[0].copy(), inputs[1]]
    outside[0][0, 0] = 9
    assert name not in {r.name for r in restated(inputs, outside, FURTHER)}


def latticed(cells: np.ndarray, side: int) -> np.ndarray:
    """Return a grid with a panel of some side for each cell, between separators."""
    grid = np.full([n * (side + 1) - 1 for n in cells.shape], 5, dtype=np.uint8)
    for (r, c), colour in np.ndenumerate(cells):
        grid[r * (side + 1) : r * (side + 1) + side, c * (side + 1) : c * (side + 1) + side] = colour
    return grid


def test_panels_of_one_colour_are_taken_for_cells() -> None:
    """Panels of two sides become cells; a panel of two colours is none."""
    rng = np.random.default_rng(7)
    small = [rng.choice([0, 0, 1, 2], size=(3, 4)).astype(np.uint8) for _ in range(3)]
    inputs = [latticed(g, side) for g, side in zip(small, (2, 3, 4), strict=True)]
    name = "grids of panels taken for grids of cells"
    restatement = {r.name: r for r in restated(inputs, inputs[:2], FURTHER)}[name]
    assert [g.tolist() for g in restatement.inputs] == [g.tolist() for g in small]
    assert restatement.undo[0](small[2][:, ::-1]).tolist() == latticed(small[2][:, ::-1], 4).tolist()
    assert restatement.undo[0](small[2].T) is None
    inputs[0][0, 0] = 7
    assert name not in {
        r.name for r in restated(inputs, [latticed(g, s) for g, s in zip(small[:2], (2, 3), strict=True)], FURTHER)
    }


def test_the_rarest_colour_comes_to_the_top_left() -> None:
    """Whatever corner it is in."""
    grid = np.zeros((5, 7), dtype=np.uint8)
    grid[3, 1:5] = 2
    grid[4, 6] = 4
    posed = [grid, grid[::-1], grid[:, ::-1], grid[::-1, ::-1], grid.T, grid]
    name = "every grid posed so that the rarest colour is nearest to the top left"
    restatement = {r.name: r for r in restated(posed, posed[:5], FURTHER)}[name]
    assert {int(g[0, 0]) for g in restatement.inputs} == {4}


def test_a_rule_of_panels_of_any_side_is_found() -> None:
    """All panels move one place to the right, the last to the first; the way back draws panels again."""
    rng = np.random.default_rng(9)
    small = [rng.integers(0, 5, size=(3, 4)).astype(np.uint8) for _ in range(4)]
    sides = 2, 3, 4, 5
    inputs = [latticed(g, side) for g, side in zip(small, sides, strict=True)]
    outputs = [latticed(np.roll(g, 1, axis=1), side) for g, side in zip(small, sides, strict=True)]
    programs = next(search_restated(inputs, outputs[:-1], 0, Work(lambda: False)))
    _, program, grid = votes(programs, 1)[0][0]
    assert grid.tolist() == outputs[-1].tolist()
    assert program.why == "with grids of panels taken for grids of cells: rolled one cell to the right"


def test_the_stage_of_restatements_keeps_its_budget_and_stops() -> None:
    """It spends units as the others do, and does nothing once work is over."""
    inputs = [np.array([[1, 0], [2, 2]], np.uint8), np.array([[3, 0, 3], [0, 4, 0]], np.uint8)]
    work = Work(lambda: False, 12)
    list(search_restated(inputs, [inputs[0][:1]], 0, work))
    assert work.over
    assert work.done == 12
    assert not list(search_restated(inputs, [inputs[0][:1]], 0, Work(lambda: True)))


def two_readings() -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Mirrored, what is drawn takes colour 2, or what is of colour 1 does: a cell of colour 3 in the test tells."""
    rng = np.random.default_rng(2)
    inputs = [(rng.random((3, 4)) < 0.4).astype(np.uint8) for _ in range(3)]
    inputs[2][1, 1] = 3
    return inputs, [2 * g[:, ::-1] for g in inputs[:2]]


def test_beside_a_sure_answer_there_is_the_other_reading() -> None:
    """The sure one stays the first and keeps its confidence; the other takes the second place, with little of it."""
    inputs, outputs = two_readings()
    answers = {}
    for stages in (("search",), ("search", "restated")):
        *_, state = before_net(inputs, outputs, 0, None, stages)
        answers[stages] = state.pool.answers(state.spare)[0]
    (alone, spare), (first, second) = answers.values()
    mirrored = inputs[2][:, ::-1]
    assert first.grid.tolist() == alone.grid.tolist() == np.where(mirrored, 2, 0).tolist()
    assert first.confidence >= alone.confidence
    assert spare.stage == "fallback"
    assert second.stage == "restated"
    assert np.argwhere(second.grid != first.grid).tolist() == np.argwhere(mirrored == 3).tolist()
    assert 0 < second.confidence <= BESIDE_SURE


def test_beside_a_plain_answer_nothing_is_searched() -> None:
    """Easy tasks stay quick."""
    inputs, _ = two_readings()
    *_, state = before_net(inputs, [2 * g for g in inputs[:2]], 0, None, ("search", "restated"))
    assert state.pool.sure(0.8)
    assert state.stage == "search"
