"""Array operations: values and promotion as NumPy's, several libraries and devices, and with shared memory."""

from __future__ import annotations

import importlib
import operator
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import xfer
from xfer import ops

# cuda: xfer.ops:* by emulator
DEVICES = ["cpu", pytest.param("cuda:0", marks=pytest.mark.cuda)]
ELEMENTWISE = ["add", "subtract", "multiply", "divide", "power"]
REDUCTIONS = ["sum", "mean", "max", "min"]
NUMBERS = st.sampled_from([np.int8, np.int32, np.int64, np.uint8, np.float16, np.float32, np.float64, np.complex64])


def _arrays(shape: Any) -> st.SearchStrategy[np.ndarray[Any, Any]]:
    return NUMBERS.flatmap(
        lambda dtype: hnp.arrays(
            dtype,
            shape,
            elements={"min_value": 0, "max_value": 9} if np.dtype(dtype).kind != "c" else {"max_magnitude": 9},
        )
    )


def _same(got: Any, wanted: Any) -> None:
    got, wanted = np.asarray(xfer.move(got, "numpy")), np.asarray(wanted)
    assert got.dtype == wanted.dtype
    np.testing.assert_allclose(got, wanted, rtol=1e-2 if wanted.dtype == np.float16 else 1e-5)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", ELEMENTWISE)
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_elementwise_as_numpy(name: str, device: str, data: st.DataObject) -> None:
    """Values, broadcasting and promotion are NumPy's for any pair of dtypes."""
    shapes = data.draw(hnp.mutually_broadcastable_shapes(num_shapes=2, max_dims=3, max_side=4))
    a, b = (data.draw(_arrays(shape)) for shape in shapes.input_shapes)
    with np.errstate(all="ignore"):
        wanted = getattr(np, name)(a, b)
        if device != "cpu":  # there a complex number divided by zero is not a number
            assume(np.isrealobj(wanted) or np.isfinite(wanted).all())
        _same(getattr(ops, name)(a, b, device=device), wanted)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", REDUCTIONS)
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_reductions_as_numpy(name: str, device: str, data: st.DataObject) -> None:
    """Over one axis, several, or all, with and without keeping them."""
    array = data.draw(_arrays(hnp.array_shapes(max_dims=3, max_side=4)))
    axes = st.none() | st.integers(0, array.ndim - 1) | st.just(tuple(range(array.ndim)))
    axis, keepdims = data.draw(axes), data.draw(st.booleans())
    wanted = getattr(np, name)(array, axis=axis, keepdims=keepdims)
    _same(getattr(ops, name)(array, axis, keepdims=keepdims, device=device), wanted)


@pytest.mark.parametrize("device", DEVICES)
@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_matmul_as_numpy(device: str, data: st.DataObject) -> None:
    """Matrix products over any leading dimensions."""
    lead, n, k, m = (
        data.draw(hnp.array_shapes(min_dims=0, max_dims=2, max_side=3)),
        *data.draw(st.tuples(*[st.integers(1, 4)] * 3)),
    )
    a, b = data.draw(_arrays((*lead, n, k))), data.draw(_arrays((k, m)))
    _same(ops.matmul(a, b, device=device), np.matmul(a, b))


@pytest.mark.parametrize("number", [2, 2.5, True, 1 + 1j])
@pytest.mark.parametrize("name", ELEMENTWISE)
def test_python_numbers_take_the_arrays_type(name: str, number: Any) -> None:
    """A Python number does not widen an array, as in NumPy 2."""
    array = np.array([1, 2, 3], np.float32)
    wanted = getattr(np, name)(array, number)
    got = getattr(ops, name)(array, number)
    assert got.dtype == wanted.dtype
    assert (got == wanted).all()
    assert getattr(ops, name)(number, array).shape == (3,)


@pytest.mark.parametrize("device", DEVICES)
def test_out_takes_the_result(device: str) -> None:
    """`out` is filled and returned, whatever library it is of; a wrong shape is an error."""
    a, b = np.arange(3.0), np.ones(3)
    out = np.empty(3)
    assert ops.add(a, b, out=out, device=device) is out
    assert out.tolist() == [1, 2, 3]
    tensor = torch.empty(3, dtype=torch.float64)
    assert ops.add(a, b, out=tensor, device=device) is tensor
    assert tensor.tolist() == [1, 2, 3]
    assert ops.sum(np.ones((2, 3)), 0, out=out, device=device).tolist() == [2, 2, 2]
    assert ops.apply(np.negative, a, out=out).tolist() == [0, -1, -2]
    with pytest.raises(ValueError, match="shape"):
        ops.add(a, b, out=torch.empty(4), device=device)
    with pytest.raises((ValueError, TypeError)):
        ops.add(a, b, out=np.empty((2, 2)), device=device)


def test_libraries_mix() -> None:
    """Operands of torch and NumPy work together; the result is of the first one's library."""
    tensor, array = torch.arange(3.0), np.ones(3, np.float32)
    assert isinstance(ops.add(tensor, array), torch.Tensor)
    assert isinstance(ops.add(array, tensor), np.ndarray)
    assert ops.mean(tensor).item() == 1.0
    assert isinstance(ops.power(2, tensor), torch.Tensor)


def test_apply_calls_the_function_on_one_device() -> None:
    """A function of one's own gets all arrays as NumPy's and its result comes back in the caller's library."""
    result = ops.apply(lambda a, b: np.hypot(a, b), torch.tensor([3.0]), np.array([4.0], np.float32))
    assert isinstance(result, torch.Tensor)
    assert result.tolist() == [5.0]
    assert ops.apply(lambda a: a.T, np.ones((2, 3))).shape == (3, 2)


@pytest.mark.parametrize("device", ["tpu", "cuda:77"])
def test_devices_that_are_not_there(device: str) -> None:
    """An unknown or absent device is a typed error."""
    with pytest.raises((ValueError, xfer.errors.DeviceUnavailableError)):
        ops.add(np.ones(1), np.zeros(1), device=device)


@pytest.mark.cuda
def test_operands_on_different_devices(on_gpu: bool) -> None:
    """The work is done where most bytes are, or where it is told to be."""
    import cupy

    ones = torch.ones(9, device="cuda") if on_gpu else importlib.import_module("torch_standin").tensor([1.0] * 9)

    big, small = cupy.ones((100, 100)), np.ones(100)
    assert isinstance(ops.add(big, small), cupy.ndarray)
    assert isinstance(ops.add(big, small, device="cpu"), np.ndarray)
    assert isinstance(ops.add(np.ones((100, 100)), cupy.ones(100)), np.ndarray)
    assert ops.add(ones, np.ones(1)).is_cuda


def test_operations_on_shared_memory(pool: xfer.Pool, helper: Callable[..., Any]) -> None:
    """Read-only shared arrays are operands, a loan is an output, and another process reads the result."""
    a, b = (xfer.get(pool.put(np.full((4, 4), value, np.float32))) for value in (2, 3))
    loan = pool.loan((4, 4), np.float32)
    with loan as out:
        ops.matmul(a, b, out=out)
    other = helper("say(xfer.ops.sum(xfer.get(bytes.fromhex(arg[0]))).item())", bytes(loan.handle).hex())
    assert other.line() == "384.0"


def test_operations_on_managed_memory() -> None:
    """Arrays over blocks of a memory manager are operands and outputs like any other."""
    with xfer.GpuMemoryManager(xfer.HostAllocator()) as manager:
        x, y = (manager.allocate(32) for _ in range(2))
        left, right = x.array(4, np.float64), y.array(4, np.float64)
        left[:], right[:] = 3, 4
        assert ops.multiply(left, right, out=left).tolist() == [12] * 4
        del left, right
        x.release()
        y.release()


def test_a_pipeline_across_workloads(pool: xfer.Pool, helper: Callable[..., Any]) -> None:
    """An array goes to another process, is worked on there, and comes back into managed memory."""
    code = """
rx, tx = xfer.Receiver.from_bytes(bytes.fromhex(arg[0])), xfer.Sender.from_bytes(bytes.fromhex(arg[1]))
with tx:
    for array in rx: tx.send(xfer.ops.multiply(array, 2))
"""
    manager = xfer.GpuMemoryManager(xfer.HostAllocator())
    with xfer.Channel(pool=pool) as there, xfer.Channel() as back, manager:
        helper(code, bytes(there.receiver).hex(), bytes(back.sender).hex())
        there.sender.send(np.arange(5.0))
        with manager.allocate(40) as block:
            target = block.array(5, np.float64)
            target[:] = back.receiver.recv(timeout=30)
            assert target.tolist() == [0, 2, 4, 6, 8]
            del target
        there.sender.close()


def test_names_are_the_operators() -> None:
    """Each operation agrees with Python's operator on plain arrays."""
    a, b = np.array([4.0, 9.0]), np.array([2.0, 3.0])
    pairs = {"add": operator.add, "subtract": operator.sub, "multiply": operator.mul, "divide": operator.truediv}
    for name, function in pairs.items():
        assert (getattr(ops, name)(a, b) == function(a, b)).all()
