"""The states of an extension and the legal ways between them; knows nothing of processes."""

from __future__ import annotations

from enum import Enum


class State(Enum):
    """Where an extension is in its life."""

    NEW = "new"
    BUILDING = "building"
    STARTING = "starting"
    READY = "ready"
    DRAINING = "draining"
    CRASHED = "crashed"
    BACKOFF = "backoff"
    FAILED = "failed"
    STOPPED = "stopped"


TRANSITIONS: dict[State, frozenset[State]] = {
    State.NEW: frozenset({State.BUILDING, State.STOPPED}),
    State.BUILDING: frozenset({State.STARTING, State.FAILED, State.STOPPED}),
    State.STARTING: frozenset({State.READY, State.CRASHED, State.FAILED, State.STOPPED}),
    State.READY: frozenset({State.DRAINING, State.CRASHED}),
    State.DRAINING: frozenset({State.STOPPED}),
    State.CRASHED: frozenset({State.BACKOFF, State.FAILED, State.STOPPED}),
    State.BACKOFF: frozenset({State.STARTING, State.STOPPED}),
    State.FAILED: frozenset({State.BUILDING, State.STOPPED}),
    State.STOPPED: frozenset({State.BUILDING}),
}


def check(old: State, new: State) -> State:
    """The new state, if it may follow the old one.

    Raises:
        ValueError: It may not.
    """
    if new not in TRANSITIONS[old]:
        raise ValueError(f"an extension that is {old.value} cannot become {new.value}")
    return new
