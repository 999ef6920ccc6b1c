"""The budget of a task, and the clock on which a backend checks whether to stop."""

from __future__ import annotations

import contextlib
import os
import re
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import psutil

from ttt.errors import InvalidBudgetError

StopReason = Literal["time", "memory", "steps", "interrupt"]

SECONDS = {"": 1.0, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0}
BYTES = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 1 << 10, "MIB": 1 << 20, "GIB": 1 << 30}


@dataclass(frozen=True, slots=True)
class Budget:
    """Limits on what each task may use.

    Soft: at `seconds` of wall time, `memory` x 0.9 bytes of resident memory, or `steps` work units, the backend
    must stop, and its best answers count. Hard: at `seconds + grace`, or above `memory`, the task's process
    is killed; answers that it had reported still count. `None` is no limit.

    Example:
        >>> ttt.Budget(seconds=20, memory=10**9).steps is None
        True
        >>> ttt.Budget.of("500 steps").steps
        500

    Work units do not depend on the machine: with `steps` and no `seconds` the answers are the same everywhere.
    """

    seconds: float | None = 60.0
    memory: int | None = 10 * 10**9
    steps: int | None = None
    grace: float = 1.5

    def __post_init__(self) -> None:
        """Refuse limits that are not positive and finite."""
        for name in ("seconds", "memory", "steps"):
            value = getattr(self, name)
            if value is not None and not 0 < value < float("inf"):
                raise InvalidBudgetError(f"{name}: got {value}, wanted a finite number above 0, or None for no limit")
        if self.grace < 0:
            raise InvalidBudgetError(f"grace: got {self.grace}, wanted 0 or more seconds")

    @classmethod
    def of(cls, value: Budget | str | float | None) -> Budget:
        """Make a budget from a `Budget`, seconds, or text such as `"20s"`, `"2min"`, `"500 steps"`."""
        if isinstance(value, Budget):
            return value
        if value is None:
            return cls()
        if isinstance(value, str) and (found := re.fullmatch(r"(\d+)\s*steps?", value.strip())):
            return cls(seconds=None, steps=int(found[1]))
        return cls(seconds=parse_seconds(value) if isinstance(value, str) else float(value))


def parse_seconds(text: str) -> float:
    """Return the seconds in `"90"`, `"90s"`, `"1.5min"` or `"2h"`."""
    return _quantity(text, SECONDS, "a time such as 90s, 2min or 1h")


def parse_bytes(text: str) -> int:
    """Return the bytes in `"800MB"`, `"1GB"` (powers of 1000) or `"1GiB"` (powers of 1024)."""
    return int(_quantity(text.upper(), {k: float(v) for k, v in BYTES.items()}, "a size such as 800MB or 1GB"))


def _quantity(text: str, units: dict[str, float], wanted: str) -> float:
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", text)
    if found is None or found[2] not in units:
        raise InvalidBudgetError(f"got {text!r}, wanted {wanted}")
    return float(found[1]) * units[found[2]]


def resident_bytes() -> int:
    """Return the resident memory of this process now."""
    if sys.platform == "linux":
        with open("/proc/self/statm", "rb") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return int(psutil.Process().memory_info().rss)


def peak_bytes() -> int:
    """Return the largest resident memory of this process so far, as the kernel counts it.

    On Linux from /proc: getrusage's figure survives exec, so a small child of a large parent would show its parent's.
    """
    if sys.platform == "linux":
        found = re.search(rb"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_bytes())
        return int(found[1]) * 1024 if found else resident_bytes()
    if sys.platform == "win32":
        return int(psutil.Process().memory_info().peak_wset)
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def gpu_peak_bytes() -> int:
    """Return the most memory that PyTorch has reserved on a GPU in this process; 0 where it has used none."""
    torch: Any = sys.modules.get("torch")
    if not hasattr(torch, "cuda") or not torch.cuda.is_initialized():  # another thread may be importing it
        return 0
    return max((int(torch.cuda.max_memory_reserved(i)) for i in range(torch.cuda.device_count())), default=0)


def reset_peaks() -> None:
    """Let `peak_bytes` and `gpu_peak_bytes` count from now on, where the system allows it."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_bytes(b"5")
    torch: Any = sys.modules.get("torch")
    if hasattr(torch, "cuda") and torch.cuda.is_initialized():
        for i in range(torch.cuda.device_count()):
            torch.cuda.reset_peak_memory_stats(i)


class Clock:
    """The budget as it runs down; call `stop()` at every step, it costs microseconds.

    `spend` counts work units; `seed` is the task's own.

    Example:
        >>> clock = ttt.Clock(ttt.Budget(seconds=None, steps=2))
        >>> clock.spend(2)
        >>> clock.stop(), clock.reason
        (True, 'steps')

    Args:
        budget: The limits.
        seed: The task's own seed.
        deadline: Monotonic time of the soft limit; None to count from now.
    """

    def __init__(self, budget: Budget, seed: int = 0, *, deadline: float | None = None) -> None:
        self.budget = budget
        self.seed = seed
        self.steps_done: int = 0
        self.interrupted: threading.Event = threading.Event()
        self._deadline = deadline
        if deadline is None and budget.seconds is not None:
            self._deadline = time.monotonic() + budget.seconds
        self.helper_cpu: float = 0.0
        self.helper_peak: int = 0
        self._helper_now = 0
        self._memory_checked = 0.0
        self._reason: StopReason | None = None

    @property
    def reason(self) -> StopReason | None:
        """Which limit was reached, None while none was."""
        return self._reason

    @property
    def seconds_left(self) -> float:
        """Wall seconds until the soft limit, infinite without one."""
        return float("inf") if self._deadline is None else self._deadline - time.monotonic()

    @property
    def steps_left(self) -> float:
        """Work units until the limit, infinite without one."""
        return float("inf") if self.budget.steps is None else self.budget.steps - self.steps_done

    def count_helper(self, cpu_seconds: float, resident: int, peak: int) -> None:
        """Count what a helper process uses, one such process at a time.

        Args:
            cpu_seconds: CPU seconds that it has used so far.
            resident: Its resident bytes now, 0 once it has exited.
            peak: Its peak bytes; together with those of this process they count as the task's.
        """
        self.helper_cpu, self._helper_now = cpu_seconds, resident
        self.helper_peak = max(self.helper_peak, peak + resident_bytes())

    def spend(self, steps: int = 1) -> None:
        """Count work units done."""
        self.steps_done += steps

    def stop(self) -> bool:
        """Return whether to stop now; once true, always true."""
        if self._reason is None and self.steps_left <= 0:
            self._reason = "steps"
        return self._reason is not None or self.must_end()

    def end_early(self, reason: StopReason) -> None:
        """Record that a backend stopped for this reason before `stop` returned true."""
        self._reason = self._reason or reason

    def must_end(self) -> bool:
        """Return whether time, memory or an interrupt ends the task at once, without time for a last prediction."""
        if self._reason in (None, "steps"):
            self._reason = self._why() or self._reason
        return self._reason not in (None, "steps")

    def _why(self) -> StopReason | None:
        if self.interrupted.is_set():
            return "interrupt"
        now = time.monotonic()
        if self._deadline is not None and now >= self._deadline:
            return "time"
        # Reading the memory takes a system call, so not at every step.
        if self.budget.memory is not None and now - self._memory_checked > 0.02:
            self._memory_checked = now
            if resident_bytes() + self._helper_now > 0.9 * self.budget.memory:
                return "memory"
        return None
