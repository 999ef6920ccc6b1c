"""Every public error and every public object that may cross processes does, with all that it holds."""

from __future__ import annotations

import importlib
import multiprocessing
import pickle
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import xfer
from xfer import errors

WORKERS = Path(__file__).parent / "workers"
sys.path.insert(0, str(WORKERS))  # spawned processes get this path as well
workers = importlib.import_module("xfer_workers")


def same(left: Any, right: Any) -> None:
    """Check that an error is what it was."""
    assert type(left) is type(right)
    assert str(left) == str(right)
    assert left.args == right.args
    assert left.__dict__ == right.__dict__


@pytest.mark.parametrize("name", errors.__all__)
@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_errors_survive_pickle(name: str, protocol: int) -> None:
    """Type, message, attributes and notes come back."""
    error = workers.made(name)
    error.add_note("a note")
    same(pickle.loads(pickle.dumps(error, protocol)), error)


def test_errors_cross_an_executor() -> None:
    """A worker's error reaches the caller of ProcessPoolExecutor with its attributes, and the executor goes on."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as executor:
        for name in errors.__all__:
            error = executor.submit(workers.fail, name).exception(timeout=120)
            assert error is not None
            error.__cause__ = None
            same(error, workers.made(name))
            del error  # its traceback holds the executor


def test_errors_cross_a_multiprocessing_pool() -> None:
    """A worker's error reaches the caller of multiprocessing.Pool, and the pool goes on."""
    with multiprocessing.get_context("spawn").Pool(1) as processes:
        for name in errors.__all__:
            with pytest.raises(getattr(errors, name), match="a message") as caught:
                processes.apply_async(workers.fail, (name,)).get(timeout=120)
            same(caught.value, workers.made(name))
        processes.close()
        processes.join()


def test_public_objects_survive_pickle(pool: xfer.Pool) -> None:
    """Handles, ends of channels, stores, statistics and reports come back equal; pools and blocks say why not."""
    handle = pool.put(np.arange(5))
    with (
        xfer.Channel(2, pool=pool) as channel,
        xfer.SharedArrayStore(pool) as store,
        xfer.GpuMemoryManager(xfer.HostAllocator()) as manager,
    ):
        block = manager.allocate(100)
        for value in (handle, pool.stats(), *pool.leaks(), manager.stats(), *manager.leaks()):
            assert pickle.loads(pickle.dumps(value)) == value
        for end in (channel.sender, channel.receiver):
            assert bytes(pickle.loads(pickle.dumps(end))) == bytes(end)
        store.create("a", np.arange(3))
        other = pickle.loads(pickle.dumps(store))
        assert other.get("a").tolist() == [0, 1, 2]
        other.close()
        for value in (pool, pool.loan(3), manager, block, channel):
            with pytest.raises((TypeError, AttributeError), match="pickle"):
                pickle.dumps(value)


def test_a_handle_crosses_both_kinds_of_workers(pool: xfer.Pool) -> None:
    """A handle as an argument is readable in a spawned worker of either pool."""
    handle, context = pool.put(np.arange(5)), multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, context) as executor:
        assert executor.submit(workers.look, handle).result(timeout=120) == 10
    with context.Pool(1) as processes:
        assert processes.apply_async(workers.look, (handle,)).get(timeout=120) == 10
        processes.close()
        processes.join()
