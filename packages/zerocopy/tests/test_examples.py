"""The programs in examples/ run as they stand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"
pytestmark = [
    pytest.mark.timeout(240),
    pytest.mark.skipif(not EXAMPLES.is_dir(), reason="the examples are not beside an installed wheel's tests"),
]


def test_many_workers(fresh_run: Any) -> None:
    """Two spawned workers see both versions, and have nothing of the weights to themselves."""
    printed = fresh_run(str(EXAMPLES / "many_workers.py"), "2").stdout
    assert printed.count("versions seen: [1, 2]") == 2, printed


@pytest.mark.slow
def test_ray_actors(fresh_run: Any) -> None:
    """Two actors and a task give the model's answers, and the actors switch to the second version."""
    pytest.importorskip("ray")
    printed = fresh_run(str(EXAMPLES / "ray_actors.py"), "2").stdout
    assert "answers are the model's: True\nversions: [2, 2]" in printed, printed
