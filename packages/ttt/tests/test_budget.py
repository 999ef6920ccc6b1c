"""Budgets are read, refused and obeyed."""

from __future__ import annotations

import time

import pytest

from ttt._budget import Budget, Clock, parse_bytes, parse_seconds, peak_bytes, resident_bytes
from ttt.errors import InvalidBudgetError


def test_budgets_from_text() -> None:
    """Seconds, minutes, hours and work units."""
    assert Budget.of("90s").seconds == 90
    assert Budget.of("1.5min").seconds == 90
    assert Budget.of(7).seconds == 7
    assert Budget.of("500 steps") == Budget(seconds=None, steps=500)
    assert Budget.of(None) == Budget()
    assert parse_seconds("2h") == 7200
    assert (parse_bytes("1GB"), parse_bytes("1GiB"), parse_bytes("800mb")) == (10**9, 1 << 30, 800 * 10**6)


@pytest.mark.parametrize("wrong", ["", "fast", "10 parsecs", "-3s", "0s"])
def test_nonsense_is_refused(wrong: str) -> None:
    """With what would have been right."""
    with pytest.raises(InvalidBudgetError, match="wanted"):
        Budget.of(wrong)


def test_an_infinite_limit_is_none() -> None:
    """Infinity is no JSON, in which records keep the budget: no limit is written None."""
    with pytest.raises(InvalidBudgetError, match="None for no limit"):
        Budget(seconds=float("inf"))


def test_negative_grace_is_refused() -> None:
    """A hard limit before the soft one makes no sense."""
    with pytest.raises(InvalidBudgetError, match="grace"):
        Budget(grace=-1)


def test_the_clock_stops_by_steps() -> None:
    """After as many work units as there are, and then for good."""
    clock = Clock(Budget(seconds=None, steps=3))
    done = 0
    while not clock.stop():
        clock.spend()
        done += 1
    assert (done, clock.reason, clock.steps_left) == (3, "steps", 0)


def test_the_clock_stops_by_time_memory_and_interrupt() -> None:
    """Each reason is named."""
    late = Clock(Budget(seconds=10), deadline=time.monotonic() - 1)
    fat = Clock(Budget(seconds=None, memory=1000))
    told = Clock(Budget())
    told.interrupted.set()
    assert [c.stop() for c in (late, fat, told)] == [True] * 3
    assert [c.reason for c in (late, fat, told)] == ["time", "memory", "interrupt"]
    free = Clock(Budget(seconds=None, memory=None))
    assert not free.stop()
    assert free.seconds_left == free.steps_left == float("inf")


def test_memory_figures_are_of_this_process() -> None:
    """Resident memory is positive and no larger than its peak."""
    assert 0 < resident_bytes() <= peak_bytes() * 1.01
