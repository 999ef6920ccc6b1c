"""A slot lent to be filled in place."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import numpy as np

from xfer._shared.handle import Handle


class Loan:
    """A slot lent for filling; `handle` is available after the `with` block has ended without an exception.

    A loan that is dropped gives its slot back. The slot is not reused while an array over it is alive.

    Args:
        begin: Returns the slot as an array.
        publish: Makes the filled slot readable and returns its handle.
        cancel: Returns the slot unused; does nothing after `publish`. It may run at any moment.

    Example:
        >>> pool = xfer.Pool("1MiB")
        >>> loan = pool.loan(3, np.int64)
        >>> with loan as array:
        ...     array[:] = 7
        >>> xfer.get(loan.handle)
        array([7, 7, 7])
    """

    def __init__(
        self, begin: Callable[[], np.ndarray[Any, Any]], publish: Callable[[], Handle], cancel: Callable[[], None]
    ) -> None:
        self._begin, self._publish, self._cancel = begin, publish, cancel
        self._array: np.ndarray[Any, Any] | None = None
        self._handle: Handle | None = None
        weakref.finalize(self, cancel).atexit = False

    @property
    def handle(self) -> Handle:
        """The handle of the filled array."""
        if self._handle is None:
            raise ValueError("the loan has no handle before its `with` block has ended without an exception")
        return self._handle

    def __enter__(self) -> np.ndarray[Any, Any]:
        if self._handle is not None or self._array is not None:
            raise ValueError("a loan can be filled once: ask the pool for another")
        self._array = self._begin()
        return self._array

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        array = self._array
        if array is not None:
            array.flags.writeable = False  # the slot is no longer this block's to fill
        if kind is not None or array is None:
            self._cancel()
            return
        self._handle = self._publish()
        self._array = None

    def __reduce__(self) -> Any:
        raise TypeError("cannot pickle a Loan: fill it, and pass its `handle` on")
