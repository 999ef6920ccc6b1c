"""The benchmark of the solver: records of an interrupted run count, and confidence is compared with truth."""

from __future__ import annotations

import argparse
import importlib.util
import json
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest


@pytest.fixture(scope="module")
def bench() -> ModuleType:
    """The program, as a module."""
    path = Path(__file__).parent.parent / "benchmarks" / "grid_solver.py"
    spec = importlib.util.spec_from_file_location("grid_solver_under_test", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def asked(records: Path, **other: Any) -> argparse.Namespace:
    """Options of a short run."""
    usual = {"set": "training", "quick": False, "sample": 2, "seed": 1, "stages": "search", "steps": 2}
    return argparse.Namespace(**usual | {"minutes": float("inf"), "records": records} | other)


def test_a_run_goes_on_where_it_was_stopped(
    bench: ModuleType, integration_test_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tasks of the file are not solved again; a line cut off by a kill is; records of other settings are refused."""
    mirrored = SimpleNamespace(train=[([[1, 0]], [[0, 1]]), ([[2, 0, 0]], [[0, 0, 2]])], test=[([[3, 0]], [[0, 3]])])
    monkeypatch.setattr(bench, "tasks_of", lambda *_: [mirrored, mirrored])
    file = integration_test_dir / "records"
    whole = bench.run(asked(file))
    assert len(whole) == len(file.read_text().splitlines()) == 2
    assert [m["pass@1"] for m in whole] == [100.0, 100.0]
    lines = file.read_text().splitlines(keepends=True)
    file.write_text(lines[0] + lines[1][:20])
    again = bench.run(asked(file))
    assert again[0] == json.loads(lines[0])
    assert again[1]["claims"] == whole[1]["claims"]
    assert len(file.read_text().splitlines()) == 2
    with pytest.raises(SystemExit, match="another run"):
        bench.run(asked(file, steps=3))


def test_errors_of_confidence(bench: ModuleType) -> None:
    """Curves fitted to the others undo a claim that is always too high; a fallback claims nothing."""
    answers = [("search", 1.0, True), ("fallback", 0.0, False)]
    wrong = [("search", 1.0, False), ("fallback", 0.0, False)]
    solved = [k // bench.GROUPS % 2 for k in range(40)]
    measured = [{"claims": [answers if s else wrong], "pass@2": 100.0 * s} for s in solved]
    errors = bench.errors_of_confidence(measured)
    assert errors[bench.LEFT_OUT] < 0.1
    assert errors[bench.SHIPPED] > 0.3
