"""What was worked out before and may be asked for again, as long as it is small together."""

from __future__ import annotations

from typing import Generic, TypeVar

P = TypeVar("P")


class Plans(Generic[P]):
    """Plans by their keys; all are forgotten where one more would be too many, or too large together.

    Args:
        count: The most plans to keep.
        nbytes: The most bytes of their texts; the last plan is kept whatever its size.
    """

    def __init__(self, count: int, nbytes: int) -> None:
        self._count, self._room = count, nbytes
        self._nbytes = 0
        self._kept: dict[object, P] = {}

    def get(self, key: object) -> P | None:
        """Return the plan of a key, or None."""
        return self._kept.get(key)

    def keep(self, key: object, plan: P, nbytes: int) -> None:
        """Keep a plan whose text has so many bytes."""
        if len(self._kept) >= self._count or self._nbytes + nbytes > self._room:
            self._kept.clear()
            self._nbytes = 0
        self._kept[key] = plan
        self._nbytes += nbytes
