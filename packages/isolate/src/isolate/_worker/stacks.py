"""Where a call is at the moment, as text, for the error of a caller that waits no longer."""

from __future__ import annotations

import asyncio
import sys
import traceback
from typing import Any

from .errors import CallTimeoutError

LIMIT = 20_000
"""Characters of a stack."""
WAIT = 0.1
"""Seconds that a caller waits for it."""
_OWN = __file__.rpartition("/")[0]


def late(name: str, target: str | int, stack: str) -> CallTimeoutError:
    """Return the error of a call whose deadline has passed, with the callee's stack if it is known."""
    error = CallTimeoutError(f"{name}: {target} did not answer before its deadline")
    if stack:
        error.add_note(f"In {name} it was here:\n{stack}")
    return error


def of_thread(thread: int | None) -> str:
    """Return the stack of a thread without the frames of this package; empty if it has ended."""
    frame = sys._current_frames().get(thread or 0)  # noqa: SLF001 - its documented name
    return _text(traceback.extract_stack(frame)) if frame is not None else ""


def of_task(task: asyncio.Task[Any]) -> str:
    """Return the stack of a task, from its coroutine down to what it awaits."""
    frames: list[traceback.FrameSummary] = []
    awaited: Any = task.get_coro()
    while awaited is not None:
        frame = _first(awaited, "cr_frame", "ag_frame", "gi_frame")
        if frame is not None:
            frames += traceback.extract_stack(frame, limit=1)
        awaited = _first(awaited, "cr_await", "ag_await", "gi_yieldfrom")
    return _text(frames)


def _first(value: Any, *names: str) -> Any:
    return next((found for name in names if (found := getattr(value, name, None)) is not None), None)


def _text(frames: Any) -> str:
    lines = traceback.format_list([frame for frame in frames if not frame.filename.startswith(_OWN)])
    own = [line for line in lines if "threading.py" not in line]
    return "".join(own)[-LIMIT:]
