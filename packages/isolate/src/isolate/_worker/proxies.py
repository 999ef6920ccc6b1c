"""The objects whose methods users call. They look up the link at each call, since a restart changes it."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from .convert import Convert
from .converters import converter
from .errors import UnknownMethodError
from .link import Link
from .outgoing import share
from .spelling import suggest
from .streams import astream, stream

Lookup = Callable[[str], "tuple[Link, str]"]


class Methods:
    """Methods as attributes. Calling the object sets options: `methods(timeout=0.5).name(...)`."""

    def __init__(
        self,
        lookup: Lookup,
        prefix: str = "",
        timeout: float | None = None,
        returns: Mapping[str, Convert] = MappingProxyType({}),
        described: Callable[[], Mapping[str, dict[str, Any]]] = dict,
    ) -> None:
        self._lookup = lookup
        self._prefix = prefix
        self._timeout = timeout
        self._returns = returns
        self._described = described

    def __call__(self, *, timeout: float | None) -> Any:
        """The same methods with another timeout in seconds."""
        return type(self)(self._lookup, self._prefix, timeout, self._returns, self._described)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        method = self._method(self._prefix + name)
        about = self._described().get(name)
        if about is not None:
            method.__name__ = method.__qualname__ = name
            method.__doc__ = about["doc"] or None
            if about["params"] is not None:
                method.__signature__ = signature_of(about)  # type: ignore[attr-defined]
            self.__dict__[name] = method
        return method

    def __dir__(self) -> list[str]:
        return sorted(self._described())

    def _method(self, target: str) -> Callable[..., Any]:
        raise NotImplementedError


class _Default:
    """Stands for a default that the other side has and did not send."""

    def __repr__(self) -> str:
        return "..."


_DEFAULT = _Default()


def signature_of(method: dict[str, Any]) -> inspect.Signature:
    """Return the signature of a described method; defaults are shown as `...`."""
    kinds = {kind.name: kind for kind in inspect._ParameterKind}  # noqa: SLF001 - no public name for the enum
    empty = inspect.Parameter.empty
    parameters = [
        inspect.Parameter(name, kinds[kind], default=_DEFAULT if default else empty, annotation=note or empty)
        for name, kind, default, note in method["params"]
    ]
    return inspect.Signature(parameters, return_annotation=method["returns"] or inspect.Signature.empty)


class BlockingMethods(Methods):
    """Methods that block until the answer comes, and streams as iterators."""

    def _method(self, target: str) -> Callable[..., Any]:
        lookup, timeout, returns = self._lookup, self._timeout, self._returns.get(target)

        def call(*args: Any, **kwargs: Any) -> Any:
            link, kind = lookup(target)
            if kind in ("stream", "astream"):
                return stream(link, target, args, kwargs, timeout, returns)
            return link.call(target, args, kwargs, timeout, returns)

        return call


class AwaitableMethods(Methods):
    """Methods that return awaitables, and streams as async iterators."""

    def _method(self, target: str) -> Callable[..., Any]:
        lookup, timeout, returns = self._lookup, self._timeout, self._returns.get(target)

        def call(*args: Any, **kwargs: Any) -> Any:
            link, kind = lookup(target)
            if kind in ("stream", "astream"):
                return astream(link, target, args, kwargs, timeout, returns)
            return link.acall(target, args, kwargs, timeout, returns)

        return call


class _Apis:
    def __init__(self, lookup: Lookup, methods: type[Methods], names: list[str]) -> None:
        self._lookup = lookup
        self._methods = methods
        self._names = names

    def __getattr__(self, name: str) -> Methods:
        if name.startswith("__"):
            raise AttributeError(name)
        if name not in self._names:
            raise UnknownMethodError(f"the host exports no API {name!r}{suggest(name, self._names)}")
        api = self.__dict__[name] = self._methods(self._lookup, f"{name}.")
        return api


class HostProxy:
    """An extension's view of its host: `host.call.API.method(...)`, or `await host.aio.API.method(...)`.

    `host.share(array)` returns a copy of an array that travels without another copy.
    `host.converter(Type, to=…, back=…)` lets values of a type of its own travel.

    Attributes:
        name: The extension's own name.
        apis: For each exported API, its methods and how each is run.
    """

    share = staticmethod(share)
    converter = staticmethod(converter)

    def __init__(self, link: Link, name: str, apis: dict[str, dict[str, str]]) -> None:
        self.name = name
        self.apis = apis

        def lookup(target: str) -> tuple[Link, str]:
            api, _, method = target.partition(".")
            kind = apis[api].get(method)
            if kind is None:
                raise UnknownMethodError(
                    f"the host's API {api!r} declares no method {method!r}{suggest(method, list(apis[api]))}"
                )
            return link, kind

        self.call = _Apis(lookup, BlockingMethods, list(apis))
        self.aio = _Apis(lookup, AwaitableMethods, list(apis))
