"""The HTML report is whole, self-contained and escapes what it shows."""

from __future__ import annotations

import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
from ttt_test_backends import ColourTable, Misbehaving

import ttt
from ttt._cli.report import write_report
from ttt._runs.saved import read_run
from ttt.errors import UnreadableFileError
from ttt.results._calibration import Curve, calibration_error, calibration_json, fit_curve, reliability


class Tags(HTMLParser):
    """Collects tags and checks that they are balanced."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note an opened tag."""
        self.seen.append(tag)
        if tag not in {"meta", "img", "br"}:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        """Close the tag that was opened last."""
        assert self.open.pop() == tag


def test_report_shows_everything_and_escapes(sample_arc_tasks: list[ttt.Task], integration_test_dir: Path) -> None:
    """Pairs, attempts, truth and errors are there; ids and messages are text, not markup; no address is used."""
    evil = replace(sample_arc_tasks[0], id='<script>alert("x")</script>')
    tasks = ttt.TaskSet((evil, sample_arc_tasks[1]), (ttt.Rejected("<b>bad</b>", 1, "ragged <i>"),))
    run = ttt.run(tasks, backend=Misbehaving("raises"), budget=100, folder=integration_test_dir)
    for _ in run:
        pass
    out = integration_test_dir / "report.html"
    write_report(integration_test_dir, out)
    text = out.read_text()
    tags = Tags()
    tags.feed(text)
    assert tags.open == []
    assert "script" not in tags.seen
    assert not {"b", "i"} & set(re.findall(r"<(\w+)>(?:what|bad)", text))
    assert "&lt;script&gt;" in text
    assert "no idea &lt;b&gt;what&lt;/b&gt;" in text
    assert tags.seen.count("img") == sum(2 * len(t.train) + 4 * len(t.test) for t in tasks)
    assert not re.search(r'(?:src|href)="(?!data:)', text)


def test_report_of_a_solved_run(sample_arc_tasks: list[ttt.Task], integration_test_dir: Path) -> None:
    """The score and each task's outcome are shown; percentages of confidence only with curves for the backend."""
    curves = integration_test_dir / "curves.json"
    curves.write_text(calibration_json("colour-table", [("table", 0.9, i < 6) for i in range(8)], "eight answers"))
    folder = integration_test_dir / "run"
    for calibration in (None, curves):
        run = ttt.run(sample_arc_tasks, backend=ColourTable(), budget=100, folder=folder, calibration=calibration)
        for _ in run:
            pass
        assert set(read_run(folder).results) == {t.id for t in sample_arc_tasks}
        write_report(folder, integration_test_dir / "r.html")
        text = (integration_test_dir / "r.html").read_text()
        assert "<b>5 of 5</b>" in text
        assert text.count('class="mark solved"') == 5
        assert ("mean confidence of solved" in text) == (calibration is not None)
        assert ("attempt 1: 75%" in text) == (calibration is not None)


def test_no_run_no_report(integration_test_dir: Path) -> None:
    """A folder that is none of a run's is told so."""
    with pytest.raises(UnreadableFileError, match="not the folder of a run"):
        read_run(integration_test_dir)


def test_calibration_curves_are_monotone_and_true() -> None:
    """Claims that are right half the time are mapped near one half; order is kept; the error falls."""
    claims = [0.9] * 20 + [0.1] * 20
    right = [True, False] * 10 + [False] * 20
    curve = fit_curve(claims, right)
    assert curve(0.9) == pytest.approx(0.5, abs=0.05)
    assert curve(0.1) < 0.05
    values = [curve(x / 20) for x in range(21)]
    assert values == sorted(values)
    assert calibration_error([curve(c) for c in claims], right) < calibration_error(claims, right)
    with pytest.raises(ValueError, match="at least one"):
        fit_curve([], [])


def test_reliability_bins() -> None:
    """Means, shares and counts of what falls into each bin."""
    assert reliability([0.1, 0.1, 0.95], [False, True, True], bins=2) == [(0.1, 0.5, 2), (0.95, 1.0, 1)]


def test_curves_are_written_by_stage() -> None:
    """Each stage gets a curve of its own."""
    import json

    made = json.loads(calibration_json("b", [("a", 0.5, True), ("a", 0.7, True), ("b", 0.5, False)], "a test"))
    assert {k: v["answers"] for k, v in made["curves"].items()} == {"a": 2, "b": 1}
    assert Curve(tuple(made["curves"]["b"]["claimed"]), tuple(made["curves"]["b"]["true"]))(0.5) == 0.0
