"""Submissions and scores: two attempts for every test input, cell for cell."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import ttt
from ttt.errors import InvalidAnswerError, InvalidSubmissionError
from ttt.results._scoring import wilson
from ttt.results._selection import choose
from ttt.results._submission import submission_text
from ttt.values import Attempt, Prediction, same


def result(task: ttt.Task, *attempts: tuple[ttt.Grid, ttt.Grid]) -> ttt.TaskResult:
    """A result with these attempts."""
    return ttt.TaskResult(task.id, tuple(Prediction(Attempt(a, 0.5), Attempt(b, 0.1)) for a, b in attempts), "done")


def test_scores_first_and_second_attempts(sample_arc_tasks: list[ttt.Task]) -> None:
    """pass@1 counts first attempts, pass@2 both; a task with two tests counts by halves, solved only as a whole."""
    mirror, two = sample_arc_tasks[1], sample_arc_tasks[4]
    wrong = ttt.as_grid([[0]])
    truth, first, second = (p.output for p in (*mirror.test, *two.test))
    assert truth is not None
    assert first is not None
    assert second is not None
    scored = ttt.score([result(mirror, (wrong, truth)), result(two, (first, wrong), (wrong, wrong))], [mirror, two])
    assert (scored.pass1, scored.pass2) == (0.5, 1.5)
    assert scored.solved == ("mirror",)
    assert scored.missed == ("two-tests",)
    assert "solved 1 of 2 tasks; pass@2 75.0 %" in str(scored)


def test_a_submission_survives_its_file(sample_arc_tasks: list[ttt.Task], integration_test_dir: Path) -> None:
    """What is written can be read, scored and is ordered by id; refused tasks are present."""
    tasks = sample_arc_tasks[:2]
    results = [result(t, *((p.output, p.input) for p in t.test if p.output is not None)) for t in tasks]
    path = integration_test_dir / "s.json"
    ttt.write_submission(path, reversed(results), [ttt.Rejected("../bad", 2, "ragged")])
    assert list(json.loads(path.read_text())) == ["../bad", "identity", "mirror"]
    assert len(ttt.read_submission(path)["../bad"]) == 2
    assert ttt.score(path, tasks).solved == ("identity", "mirror")
    assert path.read_text() == submission_text(results, [ttt.Rejected("../bad", 2, "ragged")])


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([], "got list, wanted an object"),
        ({"a": []}, "task a: wanted a list with one object per test input"),
        ({"a": [{"attempt_1": [[1]]}]}, "task a, test input 0, attempt_2: is missing"),
        ({"a": [{"attempt_1": [[1]], "attempt_2": [[11]]}]}, "attempt_2, row 0, column 0: got colour 11"),
    ],
)
def test_malformed_submissions_are_refused(value: object, message: str, integration_test_dir: Path) -> None:
    """The message names task, test input and attempt."""
    path = integration_test_dir / "s.json"
    path.write_text(json.dumps(value))
    with pytest.raises(InvalidSubmissionError, match=message):
        ttt.read_submission(path)


def test_what_cannot_be_scored_is_refused(sample_arc_tasks: list[ttt.Task]) -> None:
    """A missing answer, a wrong number of them and unknown truths are told apart."""
    task = sample_arc_tasks[1]
    grid = task.test[0].input
    with pytest.raises(InvalidSubmissionError, match="has no answer for it"):
        ttt.score([], [task])
    with pytest.raises(InvalidSubmissionError, match="2 answers for 1 test inputs"):
        ttt.score([result(task, (grid, grid), (grid, grid))], [task])
    with pytest.raises(InvalidSubmissionError, match="nothing to score"):
        ttt.score([result(task, (grid, grid))], [task.without_solutions()])


def test_two_distinct_attempts_whatever_was_found(sample_arc_tasks: list[ttt.Task]) -> None:
    """Repeated candidates count once, and what is missing is filled with fallbacks of confidence 0."""
    task = sample_arc_tasks[1]
    grid = task.test[0].input
    many = ttt.Progress(((ttt.Candidate(grid, 0.6), ttt.Candidate(grid, 0.9), ttt.Candidate(ttt.as_grid([[1]]), 0.2)),))
    for progress, confidences in ((None, (0.0, 0.0)), (ttt.Progress(((),)), (0.0, 0.0)), (many, (0.6, 0.2))):
        (prediction,) = choose(task, progress)
        assert not same(prediction.first.grid, prediction.second.grid)
        assert (prediction.first.confidence, prediction.second.confidence) == confidences
    with pytest.raises(InvalidAnswerError, match="answered 1 test inputs, it has 2"):
        choose(sample_arc_tasks[4], many)


def test_wilson_interval_of_known_cases() -> None:
    """Against figures computed by hand: 10 of 20, none of 10, none tried."""
    assert wilson(10, 20) == pytest.approx((0.2993, 0.7007), abs=1e-4)
    assert wilson(0, 10) == pytest.approx((0.0, 0.2775), abs=1e-4)
    assert wilson(0, 0) == (0.0, 1.0)


def test_what_is_known_is_scored(sample_arc_tasks: list[ttt.Task]) -> None:
    """A task without outputs does not keep the others from being scored, and is named."""
    known, unknown = sample_arc_tasks[1], sample_arc_tasks[2].without_solutions()
    truth = known.test[0].output
    assert truth is not None
    answers = [result(known, (truth, truth)), result(unknown, (truth, truth))]
    scored = ttt.score(answers, [known, unknown])
    assert (scored.solved, scored.missed, scored.unknown, scored.total) == (("mirror",), (), ("turn",), 1)
    assert "not scored, as their outputs are not known: 1" in str(scored)
