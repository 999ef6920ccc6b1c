"""The solver as a whole: legal at once, deterministic, stoppable, and never one answer twice."""

from __future__ import annotations

import time

import numpy as np
import pytest

import ttt
from ttt import Candidate, Progress
from ttt._grid import solve


def noise_task(same_size: bool = True) -> tuple[list[tuple[np.ndarray, np.ndarray]], list[np.ndarray]]:
    """A task that no program solves."""
    rng = np.random.default_rng(7)
    grids = [rng.integers(0, 4, (3, 3)).astype(np.uint8) for _ in range(4)]
    outs = [rng.integers(0, 4, (3, 3) if same_size else (2, 1)).astype(np.uint8) for _ in range(3)]
    return list(zip(grids, outs, strict=False)), [grids[3], grids[0]]


def flat(progress: Progress) -> list[tuple[list[list[int]], float, str, str]]:
    """All answers as plain values."""
    return [(c.grid.tolist(), c.confidence, c.stage, c.why) for a in progress.answers for c in a]


def legal(progress: Progress, tests: int) -> None:
    """Two distinct legal grids per test, best first, confidences that are chances."""
    assert len(progress.answers) == tests
    for answers in progress.answers:
        assert len(answers) == 2
        first, second = answers
        assert not np.array_equal(first.grid, second.grid)
        assert first.confidence >= second.confidence
        assert first.confidence + second.confidence <= 1.0 + 1e-9
        for c in answers:
            assert isinstance(c, Candidate)
            assert c.grid.dtype == np.uint8
            assert c.grid.ndim == 2
            assert 1 <= min(c.grid.shape) <= max(c.grid.shape) <= 30
            assert c.grid.max() <= 9
            assert 0.0 <= c.confidence <= 1.0


STEPS = 270
"""Work units in which all stages have a turn on the task of noise."""


@pytest.fixture(scope="module")
def whole() -> list[Progress]:
    """All that one run of all stages on a task of noise yields."""
    train, tests = noise_task()
    return list(solve(train, tests, seed=5, stop=lambda: False, steps=STEPS))


def only_grows(seen: list[Progress]) -> None:
    """Every progress is legal, work and share of it grow, and the last says so."""
    done = 0
    for progress in seen:
        legal(progress, 2)
        assert progress.steps_done >= done
        assert 0.0 <= progress.fraction <= 1.0
        done = progress.steps_done
    assert seen[-1].stage == "done"
    assert seen[-1].fraction == 1.0


def test_every_progress_is_legal_and_work_only_grows(whole: list[Progress]) -> None:
    """From the first yield on there are two distinct legal answers per test; every stage has a turn."""
    only_grows(whole)
    assert {"search", "restated", "trees", "net"} <= {p.stage for p in whole}


def test_outputs_of_another_size_get_legal_answers() -> None:
    """Where outputs are smaller than inputs, and no view shows them, the learners still leave legal answers."""
    train, tests = noise_task(same_size=False)
    only_grows(list(solve(train, tests, seed=1, stop=lambda: False, steps=110, stages=("trees", "net"))))


def test_same_seed_and_steps_give_the_same_answers_at_any_speed(whole: list[Progress]) -> None:
    """With a work budget the answers do not depend on the clock; the global generators are not used or moved."""
    import torch

    def slow() -> bool:
        time.sleep(0.001)
        return False

    train, tests = noise_task()
    torch.manual_seed(3)
    before = torch.get_rng_state().clone()
    numpy_before = np.random.get_state()[1].copy()  # type: ignore[index]
    slow_run = [flat(p) for p in solve(train, tests, seed=5, stop=slow, steps=STEPS)]
    assert [flat(p) for p in whole] == slow_run
    assert torch.equal(before, torch.get_rng_state())
    assert np.array_equal(numpy_before, np.random.get_state()[1])  # type: ignore[index]


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_task_of_its_own_process_gets_the_same_answers() -> None:
    """Search and trees in one process and the net in another answer as all of them in one, to the last bit."""
    train, tests = noise_task()
    pairs = [ttt.Pair(ttt.as_grid(a), ttt.as_grid(b)) for a, b in train]
    task = ttt.Task("noise", tuple(pairs), tuple(ttt.Pair(ttt.as_grid(t)) for t in tests))
    here = list(solve(train, tests, seed=task.seed(0), stop=lambda: False, steps=STEPS))[-1]
    run = ttt.run([task], budget=f"{STEPS} steps")
    for _ in run:
        pass
    attempts = [a for p in run.results["noise"].predictions for a in (p.first, p.second)]
    assert [(a.grid.tolist(), a.claimed, a.stage, a.why) for a in attempts] == flat(here)


def test_stop_is_obeyed_and_an_answer_is_there() -> None:
    """A stop signal that is on from the start still leaves a legal answer."""
    train, tests = noise_task()
    seen = list(solve(train, tests, seed=0, stop=lambda: True))
    assert len(seen) == 1
    legal(seen[0], 2)


def test_stop_in_the_middle_ends_the_work_soon() -> None:
    """Once stop is true only the piece of work at hand is finished."""
    train, tests = noise_task()
    asked = 0

    def after_some() -> bool:
        nonlocal asked
        asked += 1
        return asked > 12

    last = list(solve(train, tests, seed=0, stop=after_some))[-1]
    legal(last, 2)
    assert asked < 40


def test_work_budget_is_kept() -> None:
    """Hardly more than the given units are spent."""
    train, tests = noise_task()
    for steps in (1, 30):
        last = list(solve(train, tests, seed=0, stop=lambda: False, steps=steps))[-1]
        assert last.steps_done <= steps + 20


def test_net_learns_what_it_is_shown() -> None:
    """The net fits a local rule that the other stages were not asked about."""
    rng = np.random.default_rng(0)
    grids = [(rng.random((4, 5)) < 0.3).astype(np.uint8) for _ in range(6)]

    def rule(g: np.ndarray) -> np.ndarray:
        p = np.pad(g, 1)
        beside = p[:-2, 1:-1] | p[2:, 1:-1] | p[1:-1, :-2] | p[1:-1, 2:]
        return np.where((g == 0) & (beside == 1), 2, g).astype(np.uint8)

    train = [(g, rule(g)) for g in grids[:5]]
    last = list(solve(train, [grids[5]], seed=0, stop=lambda: False, steps=220, stages=("net",)))[-1]
    best = last.answers[0][0]
    assert best.stage == "net"
    assert rule(grids[5]).tolist() in [c.grid.tolist() for c in last.answers[0]]
    assert "pairs" in best.why


@pytest.mark.parametrize(
    ("bad", "text"),
    [
        (np.zeros((0, 3)), "shape"),
        (np.zeros(3), "2-D"),
        (np.full((2, 2), 17), "0..9"),
        (np.zeros((31, 2)), "30"),
    ],
)
def test_bad_grids_are_refused(bad: np.ndarray, text: str) -> None:
    """A grid that is no ARC grid is refused with what was wanted."""
    good = np.zeros((2, 2), dtype=np.uint8)
    with pytest.raises(ValueError, match=text):
        next(iter(solve([(good, good)], [bad], seed=0, stop=lambda: False)))


def test_bad_arguments_are_refused() -> None:
    """Unknown stages and empty training sets are refused."""
    good = np.zeros((2, 2), dtype=np.uint8)
    with pytest.raises(ValueError, match="guess"):
        next(iter(solve([(good, good)], [good], seed=0, stop=lambda: False, stages=("guess",))))
    with pytest.raises(ValueError, match="training"):
        next(iter(solve([], [good], seed=0, stop=lambda: False)))


def test_net_is_shown_views_where_the_input_has_another_size() -> None:
    """Where outputs are smaller the net sees the views of their size, and its answers have it."""
    rng = np.random.default_rng(0)
    grids = []
    for _ in range(4):
        g = (rng.random((4, 9)) < 0.5).astype(np.uint8)
        g[:, 4] = 5
        grids.append(g)
    train = [(g, (3 * (g[:, :4] ^ g[:, 5:])).astype(np.uint8)) for g in grids[:3]]
    last = list(solve(train, [grids[3]], seed=0, stop=lambda: False, steps=110, stages=("net",)))[-1]
    assert last.answers[0][0].stage == "net"
    assert last.answers[0][0].grid.shape == (4, 4)


def test_trees_say_how_held_out_pairs_fared() -> None:
    """A rule of single cells is right on held-out pairs too, noise is not; the last forecast says so."""
    from ttt._grid.derived import groups_of
    from ttt._grid.learners.trees import candidates, trees
    from ttt._grid.work import Work

    rng = np.random.default_rng(3)
    inputs = [rng.integers(0, 3, (6, 6)).astype(np.uint8) for _ in range(4)]
    ruled = [np.where(g == 2, 5, g).astype(np.uint8) for g in inputs]
    noise = [rng.integers(0, 3, (6, 6)).astype(np.uint8) for _ in range(4)]
    claims = []
    for outputs, held_out in ((ruled, 1.0), (noise, 0.0)):
        work = Work(lambda: False)
        groups = list(groups_of(inputs, outputs[:3], work))[-1]
        forecasts = list(trees(groups[0], inputs, outputs[:3], 1, work))
        assert [f.held_out for f in forecasts] == [None, None, None, held_out]
        claims.append(candidates(forecasts[-1])[0][0].confidence)
    assert claims[0] > 0.7
    assert claims[1] < 0.25


def test_trees_that_see_one_kind_of_cell_predict_the_commonest_colour() -> None:
    """Two pairs of one cell: without one of them no column tells anything apart."""
    from ttt._grid.derived import groups_of
    from ttt._grid.learners.trees import trees
    from ttt._grid.work import Work

    inputs = [np.full((1, 1), c, np.uint8) for c in (1, 2, 1)]
    work = Work(lambda: False)
    groups = list(groups_of(inputs, inputs[:2], work))[-1]
    forecasts = list(trees(groups[0], inputs, inputs[:2], 1, work))
    assert forecasts[-1].held_out == 0.0
