"""Every program in examples/ runs as a newcomer would run it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parent.parent / "examples"


@pytest.mark.skipif(sys.platform != "linux", reason="channels and nameless memory need Linux")
@pytest.mark.parametrize(
    ("name", "said"),
    [
        (["pipeline.py", "--batches", "5"], "5 batches"),
        (["one_to_many.py", "--readers", "2"], "2 readers agree: True"),
        (["device_budget.py"], "back, unharmed: True"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_example_runs(name: list[str], said: str) -> None:
    """The program ends well and says what it should, with nothing on its standard error."""
    command = [sys.executable, str(EXAMPLES / name[0]), *name[1:]]
    done = subprocess.run(command, capture_output=True, text=True, timeout=55)
    assert done.returncode == 0, done.stderr
    assert said in done.stdout
    assert done.stderr == ""


def test_every_example_is_run() -> None:
    """No program is there that this file does not run."""
    assert {path.name for path in EXAMPLES.glob("*.py")} == {"pipeline.py", "one_to_many.py", "device_budget.py"}
