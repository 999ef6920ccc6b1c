"""Rebuilds dataclasses and enums according to the receiver's own annotations."""

from __future__ import annotations

import collections.abc
import enum
import inspect
import sys
import types
import typing
from collections.abc import Callable
from typing import Any

from .declared import LIVE, Declared, refuse

Convert = Callable[[Any, str], Any]
_STRICT = (bool, int, float, str, bytes)
_SEQUENCES = (collections.abc.Sequence, collections.abc.Iterable, collections.abc.Collection)


def _wrong(path: str, value: object, wanted: str) -> TypeError:
    name = f"{value.form} {value.name:.80}" if type(value) is Declared else type(value).__name__
    return TypeError(f"{path} is a {name}, wanted {wanted}")


def converter(annotation: Any) -> Convert | None:
    """Return what turns a wire value into the annotated type; None where nothing is to be done."""
    if isinstance(annotation, type) and issubclass(annotation, enum.Enum):
        return _enum(annotation)
    if isinstance(annotation, type) and hasattr(annotation, "__dataclass_fields__"):
        return _dataclass(annotation)
    if isinstance(annotation, type) and issubclass(annotation, tuple) and hasattr(annotation, "_fields"):
        return _named_tuple(annotation)
    origin, args = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        return converter(args[0])
    if origin in (typing.Union, types.UnionType):
        return _union(args)
    if origin in (list, set, frozenset) and args:
        return _collection((origin,), converter(args[0]))
    if origin in _SEQUENCES and args:
        return _collection((list, tuple), converter(args[0]))
    if origin is tuple and args:
        return _tuple(args)
    if origin in (dict, collections.abc.Mapping, collections.abc.MutableMapping) and len(args) == 2:
        return _mapping(converter(args[0]), converter(args[1]))
    return None


def _enum(kind: type[enum.Enum]) -> Convert:
    def convert(value: Any, path: str) -> Any:
        if isinstance(value, kind):
            return value
        if type(value) is Declared:
            if value.form != "enum":
                raise _wrong(path, value, f"a {kind.__name__}")
            value = value.content
        try:
            return kind(value)
        except ValueError:
            members = ", ".join(repr(member.value) for member in kind)
            raise ValueError(f"{path} is {value!r:.80}, wanted a {kind.__name__}: {members}") from None

    return convert


def _field(annotation: Any) -> Convert | None:
    if annotation in _STRICT:

        def check(value: Any, path: str) -> Any:
            if type(value) is annotation or (annotation is float and type(value) is int):
                return value
            raise _wrong(path, value, annotation.__name__)

        return check
    return converter(annotation)


def _dataclass(kind: type) -> Convert:
    fields: dict[str, Convert | None] | None = None

    def convert(value: Any, path: str) -> Any:
        nonlocal fields
        if isinstance(value, kind):
            return value
        if type(value) is Declared and value.form == "dataclass":
            value = value.content
        if type(value) is not dict:
            raise _wrong(path, value, f"the fields of {kind.__name__}")
        declared: dict[str, Any] = kind.__dataclass_fields__  # type: ignore[attr-defined]
        if fields is None:  # late, so that a dataclass may contain itself
            hints = typing.get_type_hints(kind)
            fields = {name: _field(hints.get(name)) for name in declared}
        extra = value.keys() - fields.keys()
        if extra:
            raise TypeError(f"{path} has the fields {sorted(extra)}, which {kind.__name__} does not have")
        built = {}
        for name, item in value.items():
            change = fields[name]
            built[name] = item if change is None else change(item, f"{path}.{name}")
            if LIVE:
                refuse(built[name], f"{path}.{name}")
        late = {name: built.pop(name) for name in list(built) if not declared[name].init}
        try:
            made = kind(**built)
        except TypeError as failure:
            raise TypeError(f"{path} is no {kind.__name__}: {failure}") from None
        for name, item in late.items():
            object.__setattr__(made, name, item)
        return made

    return convert


def _named_tuple(kind: Any) -> Convert:
    changes: list[Convert | None] | None = None

    def convert(value: Any, path: str) -> Any:
        nonlocal changes
        if isinstance(value, kind):
            return value
        if type(value) is Declared and value.form == "namedtuple" and tuple(value.content) == kind._fields:
            value = tuple(value.content.values())
        if type(value) is not tuple or len(value) != len(kind._fields):
            raise _wrong(path, value, f"a {kind.__name__} of {len(kind._fields)} fields")
        if changes is None:  # late, so that it may contain itself
            hints = hints_of(kind)
            changes = [_field(hints.get(name)) for name in kind._fields]
        each = zip(value, changes, kind._fields, strict=True)
        return kind(*(item if change is None else change(item, f"{path}.{name}") for item, change, name in each))

    return convert


def _union(args: tuple[Any, ...]) -> Convert | None:
    changes = [converter(arg) for arg in args if arg is not type(None)]
    made = [change for change in changes if change is not None]
    if not made:
        return None

    def convert(value: Any, path: str) -> Any:
        if value is None and type(None) in args:
            return None
        failure: Exception | None = None
        for change in made:
            try:
                return change(value, path)
            except (TypeError, ValueError) as wrong:
                failure = wrong
        if len(made) < len(changes):
            return value
        raise failure or _wrong(path, value, "a member of the union")

    return convert


def _collection(kinds: tuple[Any, ...], change: Convert | None) -> Convert | None:
    if change is None:
        return None

    def convert(value: Any, path: str) -> Any:
        if type(value) not in kinds:
            raise _wrong(path, value, " or ".join(kind.__name__ for kind in kinds))
        return type(value)([change(item, f"{path}[{index}]") for index, item in enumerate(value)])

    return convert


def _tuple(args: tuple[Any, ...]) -> Convert | None:
    endless = len(args) == 2 and args[1] is Ellipsis
    changes = [converter(args[0])] if endless else [converter(arg) for arg in args]
    if not any(changes):
        return None

    def convert(value: Any, path: str) -> Any:
        if type(value) is not tuple or (not endless and len(value) != len(changes)):
            raise _wrong(path, value, "a tuple" if endless else f"a tuple of {len(changes)}")
        each = changes * len(value) if endless else changes
        return tuple(
            item if change is None else change(item, f"{path}[{index}]")
            for index, (item, change) in enumerate(zip(value, each, strict=True))
        )

    return convert


def _mapping(keys: Convert | None, values: Convert | None) -> Convert | None:
    if keys is None and values is None:
        return None

    def convert(value: Any, path: str) -> Any:
        if type(value) is not dict:
            raise _wrong(path, value, "dict")
        return {
            (key if keys is None else keys(key, f"{path} key {key!r}")): item
            if values is None
            else values(item, f"{path}[{key!r}]")
            for key, item in value.items()
        }

    return convert


def hints_of(function: Callable[..., Any]) -> dict[str, Any]:
    """Return the function's annotations, evaluated where that is possible."""
    try:
        return typing.get_type_hints(function)
    except Exception:  # a name that exists only for type checkers
        return {}


def arguments(function: Callable[..., Any]) -> Callable[[list[Any], dict[str, Any]], Any] | None:
    """Return what rebuilds the arguments of a call to this function; None where nothing is to be rebuilt."""
    if "typing" not in sys.modules:
        return None
    if not getattr(function, "__annotations__", None):
        return None
    changes = {
        name: change for name, hint in hints_of(function).items() if (change := converter(hint)) and name != "return"
    }
    if not changes:
        return None
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):
        return None
    by_kind: dict[Any, list[str]] = {}
    for name, parameter in signature.parameters.items():
        by_kind.setdefault(parameter.kind, []).append(name)
    kind = inspect.Parameter
    positional = by_kind.get(kind.POSITIONAL_ONLY, []) + by_kind.get(kind.POSITIONAL_OR_KEYWORD, [])
    (rest,) = by_kind.get(kind.VAR_POSITIONAL, [""])
    (others,) = by_kind.get(kind.VAR_KEYWORD, [""])

    def one(name: str, value: Any, path: str) -> Any:
        return changes[name](value, path) if name in changes else value

    def convert(args: list[Any], kwargs: dict[str, Any]) -> tuple[list[Any], dict[str, Any]]:
        names = [*positional, *[rest] * len(args)]
        args = [one(name, value, name) for name, value in zip(names, args, strict=False)]
        named = signature.parameters
        return args, {name: one(name if name in named else others, value, name) for name, value in kwargs.items()}

    return convert
