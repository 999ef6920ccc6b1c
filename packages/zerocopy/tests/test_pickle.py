"""Every public error and value crosses processes: type, message and attributes arrive as they left."""

from __future__ import annotations

import multiprocessing
import pickle
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import pytest
import torch
from torch import nn

import zerocopy
from zerocopy import errors

# Python 3.12 and later warn of forking beside threads; torch and pytest-timeout have some that a child does not need.
pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")


def an_error(name: str) -> zerocopy.ZerocopyError:
    """One instance, made as the package makes it."""
    kind = getattr(errors, name)
    made = (
        kind(28, "no room: free some") if issubclass(kind, OSError) and name == "NoSpaceError" else kind("what and how")
    )
    assert isinstance(made, zerocopy.ZerocopyError)
    return made


def fail(name: str) -> None:
    """Raise in another process."""
    raise an_error(name)


@pytest.fixture(scope="module")
def pools() -> Any:
    """The two kinds of pools that users run."""
    context = multiprocessing.get_context("fork")
    with ProcessPoolExecutor(1, mp_context=context) as executor, context.Pool(1) as pool:
        executor.submit(int).result()
        yield executor, pool


@pytest.mark.parametrize("name", errors.__all__)
def test_errors_cross_processes(name: str, pools: Any) -> None:
    """Through pickle, ProcessPoolExecutor and multiprocessing.Pool."""
    made = an_error(name)
    executor, pool = pools
    arrived = [pickle.loads(pickle.dumps(made))]
    with pytest.raises(type(made)) as by_executor:
        executor.submit(fail, name).result()
    with pytest.raises(type(made)) as by_pool:
        pool.apply(fail, (name,))
    for error in (*arrived, by_executor.value, by_pool.value):
        assert type(error) is type(made)
        assert str(error) == str(made)
        assert error.args == made.args
        assert getattr(error, "errno", None) == getattr(made, "errno", None)


def test_values_cross_processes(simple_model: nn.Module, publish: Any) -> None:
    """References, written entries, reports, followers, stand-ins and split models."""
    ref = publish(simple_model, name="crossing")
    live = zerocopy.follow("crossing")
    again = pickle.loads(pickle.dumps(live))
    assert again.ref == ref
    proxy = pickle.loads(pickle.dumps(zerocopy.ModelProxy(ref, ["__call__"])))
    assert torch.equal(proxy(torch.ones(2, 8)), simple_model(torch.ones(2, 8)))
    zerocopy.forget(ref)
    for value in (ref, zerocopy.Written("0.bias", 3), zerocopy.report()):
        assert pickle.loads(pickle.dumps(value)) == value
