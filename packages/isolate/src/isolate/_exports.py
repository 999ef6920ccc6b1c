"""The APIs that a host exports to extensions: declared methods only."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

from isolate._arguments import texts
from isolate._worker.calls import Export
from isolate._worker.loading import exports_of, public_methods


class ProxiedSingleton:
    """Base of host classes of which each host has one instance, shared by all its extensions.

    The public methods that the class itself defines are its API. Inherited methods, attributes, properties and names
    with an underscore are not; `Host.export(api, methods=[...])` lists others.

    Example:
        >>> class CounterSingleton(ProxiedSingleton):
        ...     def __init__(self):
        ...         self.count = 0
        ...     def add(self, n):
        ...         self.count += n
        >>> with Host(store) as host:
        ...     counter = host.export(CounterSingleton)
        ...     counter.add(2)
        >>> counter.count
        2
    """


def api_name(api: object) -> str:
    """Return the default name of an API: its class in lower case, without `Singleton`."""
    kind = api if inspect.isclass(api) else type(api)
    name: str = kind.__name__
    return (name.removesuffix("Singleton") or name).lower()


def api_methods(api: object, declared: Iterable[str] | type | None) -> dict[str, Callable[..., Any]]:
    """Return the methods that extensions may call.

    Args:
        api: The object.
        declared: Method names, or a Protocol with these methods; optional for a `ProxiedSingleton` only.

    Raises:
        TypeError: Nothing is declared.
        AttributeError: A declared method does not exist or is not callable.
    """
    if declared is None:
        if not isinstance(api, ProxiedSingleton):
            raise TypeError(
                f"{type(api).__name__} is no ProxiedSingleton: declare the methods that extensions may call, "
                "as methods=[...] or a Protocol"
            )
        methods = public_methods(api, inherited=False)
    else:
        names = (
            [name for name in vars(declared) if not name.startswith("_")]
            if isinstance(declared, type)
            else list(texts(declared, "methods"))
        )
        methods = {}
        for name in names:
            if name.startswith("_"):
                raise AttributeError(f"{name!r} begins with an underscore and cannot be exported")
            method = getattr(api, name, None)
            if not callable(method):
                raise AttributeError(f"{type(api).__name__} has no method {name!r} to export")
            methods[name] = method
    return methods


class Exports:
    """The APIs of one host, by name."""

    def __init__(self) -> None:
        self._apis: dict[str, dict[str, Export]] = {}
        self._instances: dict[type, object] = {}

    def add(self, api: object, name: str | None, declared: Iterable[str] | type | None) -> Any:
        """Export an object, or the one instance of a `ProxiedSingleton` class; return the object."""
        if inspect.isclass(api):
            if not issubclass(api, ProxiedSingleton):
                raise TypeError(
                    f"{api.__name__} is a class; export an instance of it, or derive it from ProxiedSingleton"
                )
            if api not in self._instances:
                self._instances[api] = api()
            instance = self._instances[api]
        else:
            instance = api
        name = name or api_name(instance)
        if not name.isidentifier():
            raise ValueError(f"{name!r} is not a name for an API; wanted a Python identifier")
        if name in self._apis:
            raise ValueError(f"an API {name!r} is already exported; pass another name=")
        self._apis[name] = exports_of(api_methods(instance, declared))
        return instance

    @property
    def names(self) -> dict[str, dict[str, str]]:
        """For each API its methods, and the kind of each."""
        return {api: {method: export.kind for method, export in table.items()} for api, table in self._apis.items()}

    def offered(self, needs: Mapping[str, Collection[str]] | None) -> dict[str, dict[str, Export]]:
        """Return what an extension may call: the methods that it needs, by API; all of them if it declares no needs."""
        return {
            api: {method: export for method, export in table.items() if needs is None or method in needs[api]}
            for api, table in self._apis.items()
            if needs is None or api in needs
        }
