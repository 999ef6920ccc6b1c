"""The state machine of an extension."""

from __future__ import annotations

import itertools

import pytest

from isolate._states import TRANSITIONS, State, check


def test_every_pair_of_states() -> None:
    """A transition is made if the table has it, and refused with both names if not."""
    for old, new in itertools.product(State, State):
        if new in TRANSITIONS[old]:
            assert check(old, new) is new
        else:
            with pytest.raises(ValueError, match=f"{old.value} cannot become {new.value}"):
                check(old, new)


def test_every_state_can_be_left_and_stopped() -> None:
    """From every state there is a way to STOPPED."""
    for state in State:
        seen, waiting = set(), [state]
        while waiting:
            current = waiting.pop()
            seen.add(current)
            waiting += TRANSITIONS[current] - seen
        assert State.STOPPED in seen
