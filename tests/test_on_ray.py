"""The five on two raylets: the fleet on Ray Serve, nodes that die and join, and thousands of small tasks."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("ray.serve", reason="needs ray[serve]")
pytest.importorskip("uvicorn", reason="needs ternary's extra serve")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(600),
    pytest.mark.skipif(sys.platform != "linux", reason="zerocopy and the fleet need Linux"),
]
TASKS = int(os.environ.get("RAY_TASKS", "2000"))
"""How many small tasks; 10,000 every night."""


def run(root: Path, *command: str) -> str:
    """Run a program with the fleet's modules and return what it printed."""
    environment = os.environ | {"PYTHONPATH": str(root / "examples" / "fleet"), "PYTHONWARNINGS": "ignore"}
    done = subprocess.run([sys.executable, *command], cwd=root, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return done.stdout


def figures(root: Path, *arguments: str) -> dict[str, Any]:
    """Run tests/parts/ray_days.py and return its figures."""
    printed = run(root, str(root / "tests" / "parts" / "ray_days.py"), *arguments)
    line = next(line for line in printed.splitlines() if line.startswith("FIGURES "))
    found: dict[str, Any] = json.loads(line.removeprefix("FIGURES "))
    print(found)
    return found


def test_the_fleet_on_two_nodes(root: Path, prepared: Path) -> None:
    """The command's form on Ray Serve: no request fails, also while a version is rolled out, and pages are shared."""
    printed = run(root, "examples/fleet/show.py", "--ray", "--workers", "2", "--folder", str(prepared), "--json")
    found = json.loads(printed[printed.index("\n{") + 1 :] if not printed.startswith("{") else printed)
    assert found["failed"] == 0
    assert found["of one version"] == found["requests"] > 0
    assert found["sums-1"]["answers"] > 0
    assert found["sums-2"]["answers"] > 0
    assert found["written"] == 0
    assert found["beside"]["copies"] == pytest.approx(1, abs=0.05)  # of a node; both are on this machine
    assert found["adapted"]["errors"] == []
    assert {told["version"] for told in found["adapted"]["tasks"].values()} == {"version 1"}


def test_serving_while_a_node_dies_and_another_joins(root: Path, prepared: Path) -> None:
    """Answers go on after a node's death, and a new version is rolled out after another has joined."""
    found = figures(root, "serving", str(prepared))
    assert found["not whole"] == []
    assert all(error.startswith(("server_error:", "plugin_error:")) for error in found["errors"]), found
    assert found["answers after the death"] > 0
    assert found["last"] == ["sums-2"] * 10
    assert found["replicas"] == 2
    assert found["nodes with a copy"] in (1, 2)  # Ray Serve chooses the nodes
    assert found["written"] == 0


def test_many_small_tasks_in_flat_memory(root: Path, prepared: Path) -> None:
    """Every task is answered right although a node dies; the driver's memory stays the same."""
    found = figures(root, "tasks", str(prepared), "--count", str(TASKS))
    assert found["right"] == TASKS
    assert found["late node's copies"] == 1
    assert found["lost model"] == "SegmentGoneError"
    settled = found["driver MB"][len(found["driver MB"]) // 4 :]
    assert max(settled) - settled[0] < 20, found
