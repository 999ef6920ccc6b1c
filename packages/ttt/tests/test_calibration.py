"""Confidence curves: shipped ones are used, others can be given, and what cannot be one is refused."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ttt_test_backends import ColourTable

import ttt
from ttt._grid.solve import STAGES
from ttt.errors import UnreadableFileError
from ttt.results._calibration import AS_CLAIMED, Calibration, Curve, calibration_json, fit_curve, read_calibration
from ttt.results._selection import choose


def test_shipped_curves_are_for_the_default_backend() -> None:
    """The file in the package has a rising curve for each stage of `grid`, and lowers what the net claims wrongly."""
    shipped = read_calibration()
    assert shipped.backend == "grid"
    assert set(shipped.curves) == set(STAGES)
    for stage in shipped.curves:
        values = [shipped(stage, x / 50) for x in range(51)]
        assert values == sorted(values)
        assert all(0 <= v <= 1 for v in values)
    assert shipped("net", 0.3) < 0.3
    assert shipped("another", 0.3) == 0.3
    assert shipped("another", 7.0) == 1.0


def test_a_default_run_uses_them_and_another_backend_does_not(sample_arc_tasks: list[ttt.Task]) -> None:
    """Curves fitted for one backend say nothing about another, even where stages have the same names."""
    assert ttt.run(sample_arc_tasks).calibration == read_calibration()
    assert ttt.run(sample_arc_tasks, backend=ColourTable()).calibration == AS_CLAIMED


def test_curves_of_ones_own(sample_arc_tasks: list[ttt.Task], integration_test_dir: Path) -> None:
    """A file of curves changes confidences, not answers; resumed records are seen through the curves of the day."""
    path = integration_test_dir / "curves.json"
    path.write_text(calibration_json("colour-table", [("table", 0.9, i < 6) for i in range(8)], "eight answers"))
    runs = []
    for calibration in (None, path):
        run = ttt.run(
            sample_arc_tasks[1:2],
            backend=ColourTable(),
            budget=100,
            folder=integration_test_dir / "run",
            calibration=calibration,
        )
        for _ in run:
            pass
        runs.append(run)
    plain, curved = runs
    assert plain.results["mirror"].confidence == 0.9
    assert curved.results["mirror"].reused
    assert curved.results["mirror"].confidence == pytest.approx(0.75)
    assert plain.submission() == curved.submission()


@pytest.mark.parametrize(
    "text",
    [
        "no JSON",
        "[]",
        '{"curves": {}}',
        '{"backend": "grid", "curves": {"net": {"claimed": [0.1, 0.2], "true": [0.5, 0.4]}}}',
        '{"backend": "grid", "curves": {"net": {"claimed": [0.1], "true": [0.5, 0.6]}}}',
        '{"backend": "grid", "curves": {"net": {"claimed": [], "true": []}}}',
        '{"backend": "grid", "curves": {"net": {"claimed": [0.1], "true": [NaN]}}}',
    ],
)
def test_what_is_no_curve_is_refused(text: str, integration_test_dir: Path) -> None:
    """Files without curves, and curves that fall, differ in length, are empty or leave [0, 1]."""
    path = integration_test_dir / "curves.json"
    path.write_text(text)
    with pytest.raises(UnreadableFileError, match=r"curves\.json"):
        read_calibration(path)


@given(st.lists(st.tuples(st.sampled_from([0.2, 0.5, 0.9]), st.booleans()), min_size=1, max_size=30), st.randoms())
def test_a_curve_does_not_depend_on_the_order_of_answers(answers: list[tuple[float, bool]], order: Random) -> None:
    """Answers of equal claims are one group, whichever of them came first; their order says nothing."""
    shuffled = list(answers)
    order.shuffle(shuffled)
    assert fit_curve(*zip(*answers, strict=True)) == fit_curve(*zip(*shuffled, strict=True))


def test_equal_claims_get_the_share_that_was_right() -> None:
    """Half of forty equal claims are right: the curve says half, in any order."""
    for right in ([False, True] * 20, [False] * 20 + [True] * 20, [True] * 20 + [False] * 20):
        assert fit_curve([0.9] * 40, right)(0.9) == pytest.approx(0.5)


def test_a_missing_file_is_named(integration_test_dir: Path) -> None:
    """The error says which file, and what would do."""
    with pytest.raises(UnreadableFileError, match="use a file that ttt eval --calibrate wrote"):
        read_calibration(integration_test_dir / "none.json")


def test_order_of_attempts_is_the_backends(sample_arc_tasks: list[ttt.Task]) -> None:
    """Curves change what an attempt is believed, never which is first; claims are kept."""
    task = sample_arc_tasks[0]
    options = (ttt.Candidate(ttt.as_grid([[1]]), 0.9, "net"), ttt.Candidate(ttt.as_grid([[2]]), 0.5, "search"))
    curves = Calibration("grid", {"net": Curve((0.0, 1.0), (0.0, 0.1))})
    (prediction,) = choose(task, ttt.Progress((options,)), curves)
    assert (prediction.first.stage, prediction.first.claimed) == ("net", 0.9)
    assert prediction.first.confidence == pytest.approx(0.09)
    assert prediction.second.confidence == 0.5
    assert json.loads(calibration_json("grid", [("net", 0.5, True)], "one"))["backend"] == "grid"
