"""Bound methods that are called for as long as their objects live."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from functools import partial
from itertools import count
from typing import Any


class WeakMethods:
    """Bound methods in the order in which they were added; it keeps no object alive, and any thread may use it.

    `weakref.WeakMethod` prints errors when an object dies while the interpreter exits.
    """

    def __init__(self) -> None:
        self._methods: dict[int, tuple[weakref.ref[Any], Callable[[Any], None]]] = {}
        self._numbers = count()

    def add(self, method: Callable[[], None]) -> None:
        """Add a bound method.

        Args:
            method: What to call.
        """
        number = next(self._numbers)
        reference = weakref.ref(method.__self__, partial(_drop, self._methods, number))  # type: ignore[attr-defined]
        self._methods[number] = reference, method.__func__  # type: ignore[attr-defined]  # a bound method has both

    def __call__(self) -> None:
        """Call all methods whose objects live."""
        for reference, function in list(self._methods.values()):
            one = reference()
            if one is not None:
                function(one)


def _drop(methods: dict[int, Any], number: int, reference: Any) -> None:
    del reference
    methods.pop(number, None)
