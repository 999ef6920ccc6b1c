"""Damaged and forged segments, thousands of them: a typed error or the right answer, quickly, in bounded memory.

The seed and the seconds come from ZEROCOPY_FUZZ_SEED and ZEROCOPY_FUZZ_SECONDS; the slow run takes 20.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = Path(__file__).with_name("fuzz_segments.py")


SECONDS = float(os.environ.get("ZEROCOPY_FUZZ_SECONDS", "20"))


@pytest.mark.slow
@pytest.mark.timeout(SECONDS + 150)
def test_fuzzed_segments(tmp_path: Path) -> None:
    """No signal, no untyped error, no wrong answer, nothing over five seconds, and little memory."""
    seed = int(os.environ.get("ZEROCOPY_FUZZ_SEED", "1"))
    command = [sys.executable, str(PROGRAM), str(tmp_path), str(seed), str(SECONDS)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS + 120, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    count, refused, slowest, grown = done.stdout.split()
    assert int(count) > 10 * SECONDS
    assert int(refused) > int(count) / 2
    assert float(slowest) < 5
    assert int(grown) < 64 << 20
