"""Finds what an extension provides: the public methods of its entry, with signatures."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import re
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from .calls import Export, kind_of
from .convert import arguments

HOOKS = frozenset({"on_stop"})
_DOC_LIMIT = 4000


def import_entry(directory: str, entry: str, private_name: str | None = None) -> tuple[ModuleType, str]:
    """Return the entry's module and the name after the colon; with `private_name`, `sys.path` stays unchanged."""
    module_name, _, attribute = entry.partition(":")
    if module_name == ".":  # the folder itself is a package
        module_name = ""
        private_name = private_name or re.sub(r"\W", "_", Path(directory).name)
    if private_name is None:
        if directory not in sys.path:
            sys.path.insert(0, directory)
        first = module_name.partition(".")[0]
        if importlib.util.find_spec(first) is None:
            raise _no_entry(first, directory)
        return importlib.import_module(module_name), attribute
    path = Path(directory, *filter(None, module_name.split(".")))
    source = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    if not source.is_file():
        raise _no_entry(module_name, directory)
    locations = [str(path)] if path.is_dir() else None
    spec = importlib.util.spec_from_file_location(private_name, source, submodule_search_locations=locations)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[private_name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        sys.modules.pop(private_name, None)
        raise
    return module, attribute


def _no_entry(module: str, directory: str) -> ModuleNotFoundError:
    return ModuleNotFoundError(
        f"there is no {module}.py in {directory}; write it, or name another module as the manifest's entry"
    )


def make_instance(module: ModuleType, attribute: str, host: object) -> Any:
    """Return the object whose methods are called: of the named class, of a class `Extension`, or the module itself."""
    name = attribute or ("Extension" if inspect.isclass(getattr(module, "Extension", None)) else "")
    if not name:
        return module
    try:
        target = getattr(module, name)
    except AttributeError:
        raise AttributeError(f"the entry names {name!r}, which module {module.__name__!r} does not have") from None
    if not inspect.isclass(target):
        return target
    try:
        takes_host = any(
            parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD, parameter.VAR_POSITIONAL)
            for parameter in inspect.signature(target).parameters.values()
        )
    except ValueError:
        takes_host = False
    construct: Callable[..., Any] = target
    return construct(host) if takes_host else construct()


def public_methods(instance: Any, *, inherited: bool = True) -> dict[str, Callable[..., Any]]:
    """Return the public functions of a module itself, or of an object's class and, if `inherited`, of its bases."""
    if inspect.ismodule(instance):
        return {
            name: value
            for name, value in vars(instance).items()
            if not name.startswith("_")
            and inspect.isfunction(value)
            and value.__module__ == instance.__name__
            and name not in HOOKS
        }
    names = {
        name
        for kind in (type(instance).__mro__[:-1] if inherited else (type(instance),))
        for name, value in vars(kind).items()
        if not name.startswith("_")
        and isinstance(value, (staticmethod, classmethod, *_FUNCTIONS))
        and name not in HOOKS
    }
    return {name: getattr(instance, name) for name in sorted(names)}


_FUNCTIONS = (type(import_entry), type(len))


def exports_of(methods: dict[str, Callable[..., Any]]) -> dict[str, Export]:
    """Return the table that a link serves."""
    return {name: Export(method, kind_of(method), arguments(method)) for name, method in methods.items()}


def annotation_text(annotation: Any) -> str:
    """Return an annotation as its author would write it."""
    if annotation is inspect.Parameter.empty:
        return ""
    if isinstance(annotation, str):
        return annotation
    if isinstance(annotation, type) and not hasattr(annotation, "__args__"):
        return annotation.__qualname__
    return str(annotation).replace("typing.", "").replace("collections.abc.", "")


def describe_methods(methods: dict[str, Callable[..., Any]]) -> dict[str, dict[str, Any]]:
    """Return for each method its kind, parameters (name, kind, has a default, annotation), return annotation, doc."""
    described: dict[str, dict[str, Any]] = {}
    for name, method in methods.items():
        doc = (inspect.getdoc(method) or "")[:_DOC_LIMIT]
        entry: dict[str, Any] = {"kind": kind_of(method), "params": None, "returns": "", "doc": doc}
        try:
            signature = inspect.signature(method)
        except (TypeError, ValueError):
            pass
        else:
            entry["params"] = [
                [
                    parameter.name,
                    parameter.kind.name,
                    parameter.default is not parameter.empty,
                    annotation_text(parameter.annotation),
                ]
                for parameter in signature.parameters.values()
            ]
            entry["returns"] = annotation_text(signature.return_annotation)
        described[name] = entry
    return described
