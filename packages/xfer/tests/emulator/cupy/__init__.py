"""A stand-in for CuPy without a GPU, as late and as strict as CUDA's documents permit; see `_machine`."""

from __future__ import annotations

import numpy as np

from cupy import cuda
from cupy._array import (
    asarray,
    ascontiguousarray,
    asfortranarray,
    binary,
    empty,
    from_dlpack,
    full,
    ndarray,
    unary,
)

__version__ = "14.2.0+emulated"
array = asarray
bool_, int8, uint8, int16, uint16, int32, int64 = (
    np.bool_, np.int8, np.uint8, np.int16, np.uint16, np.int32, np.int64,
)  # fmt: skip
float16, float32, float64, complex64 = np.float16, np.float32, np.float64, np.complex64
add, subtract, multiply, divide, power, matmul = map(
    binary, ("add", "subtract", "multiply", "divide", "power", "matmul")
)
maximum, minimum, hypot, array_equal = map(binary, ("maximum", "minimum", "hypot", "array_equal"))
sum, mean, max, min, sqrt, exp = map(unary, (np.sum, np.mean, np.max, np.min, np.sqrt, np.exp))


def zeros(shape, dtype=float):
    """Return zeros."""
    return full(shape, 0, dtype)


def ones(shape, dtype=float):
    """Return ones."""
    return full(shape, 1, dtype)


def arange(*args, dtype=None):
    """Return a range."""
    return asarray(np.arange(*args, dtype=dtype))


def asnumpy(value):
    """Copy to the host."""
    return value.get()


__all__ = [
    "arange", "array", "asarray", "ascontiguousarray", "asfortranarray", "cuda", "empty", "from_dlpack", "full",
    "ndarray", "ones", "zeros",
]  # fmt: skip
