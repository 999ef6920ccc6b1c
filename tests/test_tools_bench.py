"""The row contract of the benchmarks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

Tool = Callable[[str], ModuleType]
GOOD: dict[str, Any] = {
    "package": "xfer",
    "metric": "64 MB copy-in and full read",
    "unit": "ms",
    "value": 9.0,
    "peer": "SharedMemory",
    "peer_value": 60.0,
    "ratio": 0.15,
    "target": 0.2,
    "better": "lower",
    "holds": True,
    "samples": [8.9, 9.0, 9.1],
}


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"peer_value": None, "ratio": None, "holds": None},
        {"peer": None, "peer_value": None, "ratio": None, "target": 10, "holds": True},
        {"peer": None, "peer_value": None, "ratio": None, "target": None, "holds": None},
        {"better": "higher", "holds": False},
    ],
)
def test_rows_that_keep_the_contract(tool: Tool, change: dict[str, Any]) -> None:
    """A row with a peer, with an absent peer, with a plain bound, with no bound, and one that misses its target."""
    assert tool("bench").violations({**GOOD, **change}) == []


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"ratio": 0.3}, "value / peer_value is 0.15"),
        ({"holds": False}, "holds is False"),
        ({"better": "faster"}, "wanted 'lower' or 'higher'"),
        ({"value": "9"}, "value is '9'"),
        ({"peer_value": None}, "ratio without a peer_value"),
        ({"extra": 1}, "not in the contract"),
    ],
)
def test_rows_that_break_the_contract(tool: Tool, change: dict[str, Any], words: str) -> None:
    """Each violation is described."""
    found = tool("bench").violations({**GOOD, **change})
    assert any(words in line for line in found), found


def test_a_missing_field_is_named(tool: Tool) -> None:
    """A row that lacks a field is refused, and the message names the field."""
    row = {key: value for key, value in GOOD.items() if key != "samples"}
    assert tool("bench").violations(row) == ["field 'samples' is missing"]


def test_what_breaks_the_contract_is_not_published(
    tool: Tool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A benchmark with an invalid row is reported, and the documents are not changed."""
    bench = tool("bench")
    published: list[object] = []
    monkeypatch.setattr(bench, "publish", lambda results, folder: published.append(results))
    monkeypatch.setattr(bench, "render", lambda: None)
    for row, status in ((GOOD, 0), ({**GOOD, "holds": False}, 1), ({"metric": "nothing"}, 1)):
        monkeypatch.setattr(bench, "run", lambda *_, row=row: {"rows": [row]})
        assert bench.main(["xfer", "--publish"]) == status
    assert len(published) == 1
    assert "bench: xfer: 64 MB copy-in and full read: holds is False" in capsys.readouterr().err


def test_a_peer_that_is_not_measured_fails_a_run_with_peers(
    tool: Tool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is named, and nothing is published; without `--peers` a benchmark may lack peers."""
    bench = tool("bench")
    published: list[object] = []
    monkeypatch.setattr(bench, "publish", lambda results, folder: published.append(results))
    monkeypatch.setattr(bench, "render", lambda: None)
    absent = {**GOOD, "peer": "iceoryx2", "peer_value": None, "ratio": None, "holds": None}
    also = {**absent, "peer": "SharedMemory"}  # has a value in another row
    monkeypatch.setattr(bench, "run", lambda *_: {"rows": [absent, also, GOOD]})
    assert bench.main(["xfer", "--publish"]) == 0
    assert bench.main(["xfer", "--publish", "--peers"]) == 1
    assert len(published) == 1
    assert capsys.readouterr().err == "bench: xfer: iceoryx2 was not measured\n"


def test_page_shows_every_row(tool: Tool) -> None:
    """The rendered page has one table line per row and says if a peer was not measured."""
    absent = {**GOOD, "peer": "iceoryx2", "peer_value": None, "ratio": None, "holds": None}
    text = tool("bench").page({"xfer": {"machine": {"cores": 2}, "versions": {}, "rows": [GOOD, absent]}})
    assert "| 64 MB copy-in and full read | 9 ms | SharedMemory | 60 ms | 0.15 | <= 0.2 | yes |" in text
    assert "\n|  |  | iceoryx2 | not measured" in text


def test_the_documents_show_what_was_published(tool: Tool, root: Path) -> None:
    """The page and the tables of the READMEs equal what the published runs render to."""
    bench = tool("bench")
    results = bench.published()
    assert (root / "packages" / "benchmarks.md").read_text() == bench.page(results)
    (shown,) = bench.HEADLINES.findall((root / "README.md").read_text())
    assert shown == bench.headlines(results)
    (grown,) = bench.GROWTH.findall((root / "README.md").read_text())
    assert grown == bench.growth(results)
    for package, result in results.items():
        tables = bench.MEASURED.findall((root / "packages" / package / "README.md").read_text())
        assert tables in ([], [bench.measured(result)]), package
    assert {row["package"] for result in results.values() for row in result["rows"]} == set(results)


def test_published_runs_keep_the_contract(tool: Tool) -> None:
    """Every published row is valid."""
    bench = tool("bench")
    rows = [row for result in bench.published().values() for row in result["rows"]]
    assert [violation for row in rows for violation in bench.violations(row)] == []
