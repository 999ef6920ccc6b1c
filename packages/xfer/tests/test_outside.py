"""One step outside the examples: after close, through pickle, and timeouts that are no numbers."""

from __future__ import annotations

import copy
import pickle
import secrets
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import xfer


def test_a_closed_manager_allocates_no_more() -> None:
    """Nobody would give that memory back; `close` may be called again."""
    with xfer.GpuMemoryManager(xfer.HostAllocator(), budget="1MiB") as manager:
        manager.allocate(100, spillable=True)
    with pytest.raises(xfer.errors.PoolClosedError, match="make a new one"):
        manager.allocate(100)
    manager.close()
    assert manager.leaks() == []


def test_what_cannot_be_pickled_says_what_to_do() -> None:
    """And copies nothing half."""
    topic = xfer.Topic(f"outside-{secrets.token_hex(4)}")
    try:
        with xfer.GpuMemoryManager(xfer.HostAllocator(), budget="1MiB") as manager, topic.subscribe() as reader:
            for value, remedy in (
                (manager, "make one in the other process"),
                (manager.allocate(100), "send its content"),
                (reader, "subscribe in the other process"),
            ):
                for attempt in (pickle.dumps, copy.deepcopy):
                    with pytest.raises(TypeError, match=remedy):
                        attempt(value)
    finally:
        topic.remove()


WAITS: dict[str, Callable[[xfer.Channel, Any], object]] = {
    "recv": lambda channel, timeout: channel.receiver.recv(timeout=timeout),
    "send": lambda channel, timeout: channel.sender.send(np.ones(1), timeout=timeout),
    "wait": lambda channel, timeout: xfer.wait([channel.receiver], timeout=timeout),
    "put": lambda channel, timeout: xfer.put(np.zeros(1 << 20), timeout=timeout),
}


@pytest.mark.parametrize("way", ["recv", "wait"])
@pytest.mark.parametrize("timeout", [float("nan"), "1", b"1", []])
def test_a_timeout_that_is_no_number(way: str, timeout: Any) -> None:
    """It is refused, and the channel goes on."""
    with xfer.Channel(capacity=2) as channel:
        with pytest.raises(ValueError, match="want a number of seconds"):
            WAITS[way](channel, timeout)
        channel.sender.send(np.arange(3), timeout=np.float32(5))  # type: ignore[arg-type]
        assert channel.receiver.recv(timeout=np.int64(5)).sum() == 3  # type: ignore[arg-type]
