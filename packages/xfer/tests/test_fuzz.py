"""Damaged bytes for every reader: no signal, no wait, no error without a type, no memory.

The slow run takes 20 seconds for each reader; XFER_FUZZ_SECONDS=600 makes it ten, and XFER_FUZZ_SEED another run.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

FUZZ = Path(__file__).parent / "workers" / "fuzz.py"
LONG = float(os.environ.get("XFER_FUZZ_SECONDS", "20"))
SEED = os.environ.get("XFER_FUZZ_SEED", "1")


@pytest.mark.skipif(sys.platform != "linux", reason="channels and topics need Linux")
@pytest.mark.parametrize("reader", ["handles", "rings", "topics"])
@pytest.mark.parametrize(
    "seconds", [0.7, pytest.param(LONG, marks=[pytest.mark.slow, pytest.mark.timeout(int(LONG) + 250)], id="long")]
)
def test_damaged_bytes_end_in_an_error_of_xfer(reader: str, seconds: float) -> None:
    """What comes from outside is checked before it is used, by each reader."""
    command = [sys.executable, "-W", "error", str(FUZZ), reader, str(seconds), SEED]
    done = subprocess.run(command, capture_output=True, text=True, timeout=seconds + 200, check=False)
    assert done.returncode == 0, f"{done.returncode}: {done.stderr[-4000:]}"
    assert int(done.stdout) > 10
