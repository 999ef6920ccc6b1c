"""Array operations whose operands may be on different devices: the work is done where most of the bytes are.

Values and promotion are those of the installed NumPy (on CUDA: of CuPy, which follows it). A result is of the same
library as the first array.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from xfer._convert.interchange import device_of, library_of
from xfer._convert.move import load_cupy, move

__all__ = ["add", "apply", "divide", "matmul", "max", "mean", "min", "multiply", "power", "subtract", "sum"]


def add(a: Any, b: Any, *, out: Any = None, device: str | None = None) -> Any:
    """Return a + b, element by element.

    Args:
        a: An array of NumPy, torch or CuPy, or a number.
        b: Likewise, of a shape that broadcasts with a's.
        out: An array for the result, on any device.
        device: Where to work, "cpu" or "cuda:N"; by default where most of the bytes are.

    Returns:
        The result on that device, or `out`.

    Example:
        >>> xfer.ops.add(np.arange(3), 1)
        array([1, 2, 3])
    """
    return _run("add", (a, b), out, device)


def subtract(a: Any, b: Any, *, out: Any = None, device: str | None = None) -> Any:
    """Return a - b, element by element; arguments as in `add`.

    Example:
        >>> xfer.ops.subtract(np.arange(3), 1)
        array([-1,  0,  1])
    """
    return _run("subtract", (a, b), out, device)


def multiply(a: Any, b: Any, *, out: Any = None, device: str | None = None) -> Any:
    """Return a * b, element by element; arguments as in `add`.

    Example:
        >>> xfer.ops.multiply(np.arange(3), 2)
        array([0, 2, 4])
    """
    return _run("multiply", (a, b), out, device)


def divide(a: Any, b: Any, *, out: Any = None, device: str | None = None) -> Any:
    """Return a / b, element by element; arguments as in `add`.

    A complex number divided by zero is infinite on the CPU and not a number on CUDA, as in NumPy and CuPy.

    Example:
        >>> xfer.ops.divide(np.arange(3), 2)
        array([0. , 0.5, 1. ])
    """
    return _run("divide", (a, b), out, device)


def power(a: Any, b: Any, *, out: Any = None, device: str | None = None) -> Any:
    """Return a ** b, element by element; arguments as in `add`.

    Example:
        >>> xfer.ops.power(np.arange(3), 2)
        array([0, 1, 4])
    """
    return _run("power", (a, b), out, device)


def matmul(a: Any, b: Any, *, out: Any = None, device: str | None = None) -> Any:
    """Return the matrix product, over leading dimensions as in NumPy; other arguments as in `add`.

    Example:
        >>> xfer.ops.matmul(np.eye(2), np.ones(2))
        array([1., 1.])
    """
    return _run("matmul", (a, b), out, device)


def sum(
    a: Any,
    axis: int | tuple[int, ...] | None = None,
    *,
    keepdims: bool = False,
    out: Any = None,
    device: str | None = None,
) -> Any:
    """Return the sum over one axis, several, or all.

    Args:
        a: An array.
        axis: The axis or axes; all by default.
        keepdims: Keep the reduced axes with length 1.
        out: An array for the result.
        device: Where to work; by default where `a` is.

    Example:
        >>> xfer.ops.sum(np.ones((2, 3)), axis=0)
        array([2., 2., 2.])
    """
    return _run("sum", (a,), out, device, axis=axis, keepdims=keepdims)


def mean(
    a: Any,
    axis: int | tuple[int, ...] | None = None,
    *,
    keepdims: bool = False,
    out: Any = None,
    device: str | None = None,
) -> Any:
    """Return the mean over axes; arguments as in `sum`.

    Example:
        >>> xfer.ops.mean(np.ones((2, 3)), axis=0)
        array([1., 1., 1.])
    """
    return _run("mean", (a,), out, device, axis=axis, keepdims=keepdims)


def max(
    a: Any,
    axis: int | tuple[int, ...] | None = None,
    *,
    keepdims: bool = False,
    out: Any = None,
    device: str | None = None,
) -> Any:
    """Return the greatest element over axes; arguments as in `sum`.

    Example:
        >>> xfer.ops.max(np.eye(2), axis=0)
        array([1., 1.])
    """
    return _run("max", (a,), out, device, axis=axis, keepdims=keepdims)


def min(
    a: Any,
    axis: int | tuple[int, ...] | None = None,
    *,
    keepdims: bool = False,
    out: Any = None,
    device: str | None = None,
) -> Any:
    """Return the least element over axes; arguments as in `sum`.

    Example:
        >>> xfer.ops.min(np.eye(2), axis=0)
        array([0., 0.])
    """
    return _run("min", (a,), out, device, axis=axis, keepdims=keepdims)


def apply(function: Callable[..., Any], *arrays: Any, out: Any = None, device: str | None = None) -> Any:
    """Call a function with all arrays on one device and in one library (NumPy, or CuPy on CUDA).

    Args:
        function: Takes the arrays and returns one array.
        *arrays: Arrays of any library and device.
        out: An array for the result.
        device: Where to work; by default where most of the bytes are.

    Example:
        >>> xfer.ops.apply(np.hypot, np.array([3.0]), np.array([4.0]))
        array([5.])
    """
    where = device or _busiest(arrays)
    with _on(where):
        return _deliver(function(*(_bring(array, where) for array in arrays)), out, arrays)


def _run(name: str, operands: Sequence[Any], out: Any, device: str | None, **options: Any) -> Any:
    where = device or _busiest(operands)
    namespace = np if where == "cpu" else load_cupy()
    prepared = [_bring(operand, where) for operand in operands]
    if isinstance(out, np.ndarray) and where == "cpu":
        getattr(namespace, name)(*prepared, out=out, **options)
        return out
    with _on(where):
        return _deliver(getattr(namespace, name)(*prepared, **options), out, operands)


def _on(where: str) -> Any:
    """Make a CUDA device the current one, on which CuPy works."""
    index = where.partition(":")[2]
    return load_cupy().cuda.Device(int(index)) if index.isdigit() else contextlib.nullcontext()


def _busiest(operands: Sequence[Any]) -> str:
    weight: dict[str, int] = {}
    for operand in operands:
        if not _is_number(operand):
            device = device_of(operand)
            weight[device] = weight.get(device, 0) + int(getattr(operand, "nbytes", 1))
    return next((device for device, size in weight.items() if size >= _most(weight)), "cpu")


def _most(weight: dict[str, int]) -> int:
    return sorted(weight.values())[-1]


def _is_number(operand: Any) -> bool:
    return isinstance(operand, bool | int | float | complex) and not isinstance(operand, np.generic)


def _bring(operand: Any, where: str) -> Any:
    if _is_number(operand):
        return operand  # a Python number adapts to the other operand's type, so it is not converted
    if where == "cpu":
        return move(operand, "numpy")
    if library_of(operand) == "torch" and device_of(operand) == where:
        return move(operand, "cupy")
    return move(move(operand, "numpy") if library_of(operand) == "torch" else operand, where)


def _deliver(result: Any, out: Any, operands: Sequence[Any]) -> Any:
    first = next((operand for operand in operands if not _is_number(operand)), None)
    if out is None:
        return move(result, "torch") if library_of(first) == "torch" else result
    if tuple(out.shape) != tuple(result.shape):
        raise ValueError(f"the result has shape {tuple(result.shape)}, out has {tuple(out.shape)}")
    if library_of(out) == "torch":
        out.copy_(move(result, "torch"))
    else:
        out[...] = move(result, "numpy" if library_of(out) == "numpy" else device_of(out))
    return out
