"""Callables as values: those that this side has sent, by number, and stand-ins for those of the other side."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Protocol

from .errors import OverloadedError, WireError


class Caller(Protocol):
    """What a stand-in needs of its link."""

    name: str

    def call(
        self, target: str | int, args: tuple[Any, ...], kwargs: dict[str, Any], timeout: float | None = None
    ) -> Any:
        """Call and block until the answer comes."""

    async def acall(self, target: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Call from a coroutine."""

    def release_soon(self, number: int) -> None:
        """Tell the other side that a callable is no longer referenced; may run in a finalizer."""


class RemoteCallable:
    """A callable of the other side: calling it blocks, `aio` awaits. Its last reference here releases it there."""

    __slots__ = ("__weakref__", "_link", "number")

    def __init__(self, link: Caller, number: int) -> None:
        self._link = link
        self.number = number

    def belongs_to(self, link: Caller) -> bool:
        """Whether it came over that link."""
        return self._link is link

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call it and block until it answers."""
        return self._link.call(self.number, args, kwargs)

    async def aio(self, *args: Any, **kwargs: Any) -> Any:
        """Call it from a coroutine."""
        return await self._link.acall(self.number, args, kwargs)

    def __del__(self) -> None:
        self._link.release_soon(self.number)

    def __repr__(self) -> str:
        return f"<callable {self.number} of {self._link.name}>"


class SentCallables:
    """The callables that the other side may call by number, until it releases them.

    Args:
        numbers: Source of fresh numbers, shared with the link's calls.
        limit: Most callables that the other side may hold.
    """

    def __init__(self, numbers: Iterator[int], limit: int) -> None:
        self._numbers = numbers
        self._limit = limit
        self._held: dict[int, Callable[..., Any]] = {}

    def __len__(self) -> int:
        return len(self._held)

    def add(self, function: Callable[..., Any], note: Callable[[int], None] = lambda _: None) -> int:
        """Register a callable and return its number; `note` gets the number before that."""
        if len(self._held) >= self._limit:
            raise OverloadedError(f"the other side already holds {self._limit} callables; it must drop some first")
        number = next(self._numbers)
        note(number)
        self._held[number] = function
        return number

    def get(self, number: object) -> Callable[..., Any] | None:
        """Return the callable of that number; None if there is none."""
        return self._held.get(number) if type(number) is int else None

    def returned(self, number: int) -> Callable[..., Any]:
        """Return a callable that the other side passes back to us."""
        function = self._held.get(number)
        if function is None:
            raise WireError(f"callable {number} came back and is not known here")
        return function

    def release(self, number: int) -> None:
        """Forget a callable; no error if it is gone."""
        self._held.pop(number, None)

    def clear(self) -> None:
        """Forget all."""
        self._held.clear()
