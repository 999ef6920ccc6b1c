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
        (["trainer.py", "--batches", "3"], "trained on 6 batches of 2 workers"),
        (["camera.py", "--pictures", "10"], "every: 10 pictures"),
        (["restarts.py", "--nights", "2"], "2 answers of 2 services"),
        (["asyncio_server.py", "--requests", "10"], "10 answers; the loop turned while it waited: True"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
@pytest.mark.timeout(240)
def test_example_runs(name: list[str], said: str) -> None:
    """The program ends well and says what it should, with nothing on its standard error."""
    command = [sys.executable, str(EXAMPLES / name[0]), *name[1:]]
    done = subprocess.run(command, capture_output=True, text=True, timeout=230)
    assert done.returncode == 0, done.stderr
    assert said in done.stdout
    assert done.stderr == ""


def test_every_example_is_run() -> None:
    """No program is there that this file does not run."""
    marks: list[pytest.Mark] = getattr(test_example_runs, "pytestmark")  # noqa: B009 - pytest adds it
    (cases,) = [mark.args[1] for mark in marks if mark.name == "parametrize"]
    assert {path.name for path in EXAMPLES.glob("*.py")} == {command[0] for command, _ in cases}
