"""The contest's notebook runs as it stands, cell by cell, on a contest of a few seconds."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import ttt
from ttt._tasks.loader import task_json

NOTEBOOK = Path(__file__).parent.parent / "examples" / "contest.ipynb"


@pytest.mark.skipif(not NOTEBOOK.is_file(), reason="the notebook is not beside the tests")
@pytest.mark.slow
@pytest.mark.timeout(300)
def test_the_contest_runs_and_goes_on(sample_arc_tasks: list[ttt.Task], integration_test_dir: Path) -> None:
    """All code cells in order, twice: the second time everything is known and the time is used up or not needed."""
    notebook = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    assert all(not cell["outputs"] for cell in notebook["cells"] if cell["cell_type"] == "code"), "kept without outputs"
    program = "\n".join("".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code")
    challenges = integration_test_dir / "challenges.json"
    chosen = sample_arc_tasks[:2]
    challenges.write_text(json.dumps({t.id: task_json(t.without_solutions()) for t in chosen}))
    settings = {"CHALLENGES": str(challenges), "TOTAL": "15s", "WORKERS": "2"}
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p), **settings}
    for _ in range(2):
        command = [sys.executable, "-c", program]
        done = subprocess.run(command, cwd=integration_test_dir, env=env, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert "2 tasks in submission.json" in done.stdout
        assert len(ttt.score(integration_test_dir / "submission.json", chosen).solved) == 2
