"""What the host offers to extensions: declared methods of named APIs and nothing else."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

from isolate.worker.calls import Export
from isolate.worker.loading import exports_of, public_methods


class ProxiedSingleton:
    """Base of host classes of which each host has one instance, shared by all its extensions.

    The public methods that a subclass defines are its API; attributes, properties and underscored names are not.
    """


def api_name(api: object) -> str:
    """The name under which an API is exported: its class, with `Singleton` dropped, in lower case."""
    kind = api if inspect.isclass(api) else type(api)
    name: str = kind.__name__
    return (name.removesuffix("Singleton") or name).lower()


def api_methods(api: object, declared: Iterable[str] | type | None) -> dict[str, Callable[..., Any]]:
    """The methods that extensions may call.

    Args:
        api: The object.
        declared: Method names, or a Protocol whose methods they are; may be left out for a `ProxiedSingleton` only.

    Raises:
        TypeError: Nothing is declared.
        AttributeError: A declared method does not exist or is not callable.
    """
    if declared is None:
        if not isinstance(api, ProxiedSingleton):
            raise TypeError(
                f"{type(api).__name__} is no ProxiedSingleton: say which methods extensions may call, "
                "as methods=[...] or a Protocol"
            )
        methods = public_methods(api)
    else:
        names = (
            [name for name in vars(declared) if not name.startswith("_")]
            if isinstance(declared, type)
            else list(declared)
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
        """Export an object, or the one instance of a `ProxiedSingleton` class; gives the object."""
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
            raise ValueError(f"{name!r} is no name for an API; wanted a Python name")
        if name in self._apis:
            raise ValueError(f"an API {name!r} is exported already; give another name=")
        self._apis[name] = exports_of(api_methods(instance, declared))
        return instance

    @property
    def names(self) -> dict[str, dict[str, str]]:
        """For each API its methods and how each is run."""
        return {api: {method: export.kind for method, export in table.items()} for api, table in self._apis.items()}

    def offered(self, needs: Mapping[str, Collection[str]] | None) -> dict[str, dict[str, Export]]:
        """What an extension may call: the methods that it needs, by API; all of them if it does not say."""
        return {
            api: {method: export for method, export in table.items() if needs is None or method in needs[api]}
            for api, table in self._apis.items()
            if needs is None or api in needs
        }
