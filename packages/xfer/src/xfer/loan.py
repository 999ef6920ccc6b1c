"""A slot lent to be filled in place; knows what a pool does with it by two calls."""

from typing import TYPE_CHECKING, Any

import numpy as np

from xfer.descriptor import Handle, Signature
from xfer.segment import Segment

if TYPE_CHECKING:
    from xfer.pool import Pool


class Loan:
    """A slot lent for filling; `handle` is there after the `with` block has ended without an exception."""

    def __init__(self, pool: "Pool", segment: Segment, slot: int, sig: Signature) -> None:
        self._pool, self._segment, self._slot, self._signature = pool, segment, slot, sig
        self._array: np.ndarray[Any, Any] | None = None
        self._handle: Handle | None = None

    @property
    def handle(self) -> Handle:
        """The handle of the filled array."""
        if self._handle is None:
            raise ValueError("the loan has no handle before its `with` block has ended well")
        return self._handle

    def __enter__(self) -> np.ndarray[Any, Any]:
        if self._handle is not None or self._array is not None:
            raise ValueError("a loan can be filled once: ask the pool for another")
        self._pool._check_open()
        sig, segment = self._signature, self._segment
        offset = segment.start + self._slot * segment.stride
        self._array = np.ndarray(sig.shape, sig.dtype, segment.map, offset)
        return self._array

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        if kind is not None or self._array is None:
            self._pool._untake(self._segment, self._slot)
            return
        self._array.flags.writeable = False
        sig = self._signature
        self._handle = self._pool._publish(self._segment, self._slot, sig, sig.flags, sig.nbytes, None)
        self._array = None
