"""Array operations whose operands may be on different devices: the work happens where most of the bytes are already.

Values and promotion are those of the installed NumPy (on CUDA: of CuPy, which follows it). A result is of the same
library as the first array.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from xfer.interchange import device_of, library_of
from xfer.move import _cupy, move

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
    """
    return _run("add", (a, b), out, device)


def subtract(a: Any, b: Any, *, out: Any = None, device: str | None = None) -> Any:
    """Return a - b, element by element; arguments as in `add`."""
    return _run("subtract", (a, b), out, device)


def multiply(a: Any, b: Any, *, out: Any = None, device: str | None = None) -> Any:
    """Return a * b, element by element; arguments as in `add`."""
    return _run("multiply", (a, b), out, device)


def divide(a: Any, b: Any, *, out: Any = None, device: str | None = None) -> Any:
    """Return a / b, element by element; arguments as in `add`."""
    return _run("divide", (a, b), out, device)


def power(a: Any, b: Any, *, out: Any = None, device: str | None = None) -> Any:
    """Return a ** b, element by element; arguments as in `add`."""
    return _run("power", (a, b), out, device)


def matmul(a: Any, b: Any, *, out: Any = None, device: str | None = None) -> Any:
    """Return the matrix product, over leading dimensions as in NumPy; other arguments as in `add`."""
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
    """Return the mean over axes; arguments as in `sum`."""
    return _run("mean", (a,), out, device, axis=axis, keepdims=keepdims)


def max(
    a: Any,
    axis: int | tuple[int, ...] | None = None,
    *,
    keepdims: bool = False,
    out: Any = None,
    device: str | None = None,
) -> Any:
    """Return the greatest element over axes; arguments as in `sum`."""
    return _run("max", (a,), out, device, axis=axis, keepdims=keepdims)


def min(
    a: Any,
    axis: int | tuple[int, ...] | None = None,
    *,
    keepdims: bool = False,
    out: Any = None,
    device: str | None = None,
) -> Any:
    """Return the least element over axes; arguments as in `sum`."""
    return _run("min", (a,), out, device, axis=axis, keepdims=keepdims)


def apply(function: Callable[..., Any], *arrays: Any, out: Any = None, device: str | None = None) -> Any:
    """Call a function with all arrays on one device and in one library (NumPy, or CuPy on CUDA).

    Args:
        function: Takes the arrays and returns one array.
        *arrays: Arrays of any library and device.
        out: An array for the result.
        device: Where to work; by default where most of the bytes are.
    """
    where = device or _busiest(arrays)
    return _deliver(function(*(_bring(array, where) for array in arrays)), out, arrays)


def _run(name: str, operands: Sequence[Any], out: Any, device: str | None, **options: Any) -> Any:
    where = device or _busiest(operands)
    namespace = np if where == "cpu" else _cupy()
    prepared = [_bring(operand, where) for operand in operands]
    if isinstance(out, np.ndarray) and where == "cpu":
        getattr(namespace, name)(*prepared, out=out, **options)
        return out
    return _deliver(getattr(namespace, name)(*prepared, **options), out, operands)


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
        return operand  # a Python number adapts to the other operand's type, so it must stay one
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
