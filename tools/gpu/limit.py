"""A pytest plugin: a test that takes longer than a limit fails, without pytest-timeout."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from typing import Any

import pytest

LIMIT = int(os.environ.get("GPU_TEST_LIMIT", "60"))
DEADLINE = float(os.environ.get("GPU_TEST_DEADLINE", "inf"))
NO_TIME = "no time left"


def _expired(*_: Any) -> None:
    raise TimeoutError(f"the test took longer than {LIMIT} s")


def pytest_runtest_setup() -> None:
    """Skip what is left when the time for the suite is over, so that the rest is reported."""
    if time.time() > DEADLINE:
        pytest.skip(NO_TIME)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call() -> Iterator[Any]:
    """Raise in a test that is too slow."""
    before = signal.signal(signal.SIGALRM, _expired)
    signal.alarm(LIMIT)
    try:
        return (yield)
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
