"""The states of an extension and the legal transitions between them."""

from __future__ import annotations

from enum import Enum


class State(Enum):
    """The state of an extension.

    Example:
        >>> with Host(store) as host:
        ...     stats = host.load(extensions / "stats")
        ...     print(stats.state)
        State.READY
        >>> stats.state is State.STOPPED
        True
    """

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
    """Return the new state if it may follow the old one.

    Raises:
        ValueError: The transition is not legal.
    """
    if new not in TRANSITIONS[old]:
        raise ValueError(f"an extension that is {old.value} cannot become {new.value}")
    return new
