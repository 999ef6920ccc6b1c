"""The methods of an extension as its host calls them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Generic, TypeVar

from isolate._worker.convert import Convert
from isolate._worker.link import Link
from isolate._worker.proxies import AwaitableMethods, BlockingMethods

Contract = TypeVar("Contract")


class MethodTable(Generic[Contract]):
    """What is known of an extension's methods, and the objects through which they are called.

    Args:
        lookup: Returns the link to call a method over, and its kind.
        timeout: Seconds for a call without a timeout of its own.
        returns: What rebuilds the results of methods.
    """

    def __init__(
        self, lookup: Callable[[str], tuple[Link, str]], timeout: float | None, returns: Mapping[str, Convert]
    ) -> None:
        self.call: Contract
        self.aio: Any
        self._lookup_method, self._timeout = lookup, timeout
        self._methods: dict[str, dict[str, Any]] = {}
        self.expect(returns)

    @property
    def methods(self) -> dict[str, dict[str, Any]]:
        """For each method its kind, parameters, return annotation and document."""
        return dict(self._methods)

    def expect(self, returns: Mapping[str, Convert]) -> None:
        """Set what rebuilds the results of methods, see `convert.converter`."""
        described = lambda: self._methods  # noqa: E731 - they change with each load
        methods: Any = BlockingMethods(self._lookup_method, timeout=self._timeout, returns=returns, described=described)
        self.call = methods
        self.aio = AwaitableMethods(self._lookup_method, timeout=self._timeout, returns=returns, described=described)

    def within(self, timeout: float | None) -> Contract:
        """Return `call` with another timeout in seconds, and the same type for a type checker."""
        methods: Any = self.call
        limited: Contract = methods(timeout=timeout)
        return limited
