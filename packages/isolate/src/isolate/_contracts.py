"""Compares the methods of an extension with its promises and with the host's Protocol."""

from __future__ import annotations

import ast
import datetime
import inspect
import pathlib
import types
import typing
from collections.abc import Mapping
from dataclasses import is_dataclass
from enum import Enum
from typing import Any

from isolate._manifest import Manifest
from isolate._worker import kinds
from isolate._worker.convert import Convert, converter, hints_of
from isolate._worker.loading import annotation_text
from isolate._worker.spelling import suggest
from isolate.errors import ContractMismatchError

_WIRE = (
    type(None),
    bool,
    int,
    float,
    str,
    bytes,
    list,
    tuple,
    dict,
    set,
    frozenset,
    datetime.datetime,
    pathlib.Path,
    object,
)
_STREAMS = ("Iterator", "Iterable", "Generator", "AsyncIterator", "AsyncIterable", "AsyncGenerator")
_ARRAYS = {("numpy", "ndarray"), ("torch", "Tensor"), ("xfer", "Handle")}


def travels(annotation: Any) -> bool:
    """Return whether values of an annotated type can cross the wire."""
    if annotation in (Any, inspect.Parameter.empty, None) or isinstance(annotation, (str, typing.TypeVar)):
        return True
    origin, args = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is not None:
        if origin is typing.Literal:
            return True
        if origin is typing.Annotated:
            return travels(args[0])
        inner = [arg for arg in args if arg is not Ellipsis and not isinstance(arg, list)]
        is_container = origin in (typing.Union, types.UnionType) or origin in _WIRE
        if _is_array(origin):
            return True
        module = getattr(origin, "__module__", "")
        return (is_container or module == "collections.abc") and all(map(travels, inner))
    if not isinstance(annotation, type):
        return True
    return (
        annotation in _WIRE
        or is_dataclass(annotation)
        or issubclass(annotation, Enum)
        or (issubclass(annotation, tuple) and hasattr(annotation, "_fields"))
        or _is_array(annotation)
        or kinds.handles(annotation)
        or annotation.__module__ == "collections.abc"
    )


def _is_array(kind: Any) -> bool:
    package = getattr(kind, "__module__", "").partition(".")[0]
    return (package, getattr(kind, "__name__", "")) in _ARRAYS


def check_needs(manifest: Manifest, apis: Mapping[str, Mapping[str, str]]) -> None:
    """Refuse an extension that needs what the host does not export.

    Raises:
        ContractMismatchError: With every difference.
    """
    differences = []
    for api, methods in (manifest.needs or {}).items():
        if api not in apis:
            differences.append(f"needs the API {api!r}, which the host does not export{suggest(api, list(apis))}")
            continue
        differences += [
            f"needs {api}.{method}, which the host does not export{suggest(method, list(apis[api]))}"
            for method in methods
            if method not in apis[api]
        ]
    if differences:
        raise ContractMismatchError(manifest.name, differences)


def check_provides(manifest: Manifest, methods: dict[str, dict[str, Any]], contract: type | None) -> None:
    """Refuse an extension that lacks methods of its manifest's promises or of the host's Protocol.

    Args:
        manifest: Its `provides` are the promised methods.
        methods: The methods that the worker found; see `worker.loading.describe_methods`.
        contract: A Protocol or class whose public methods it must have.

    Raises:
        ContractMismatchError: With every difference.
    """
    differences = [
        f"promises {name!r} and has no such method{suggest(name, list(methods))}"
        for name in manifest.provides
        if name not in methods
    ]
    if contract is not None:
        for name, wanted in _wanted(contract).items():
            if name not in methods:
                differences.append(
                    f"has no method {name!r}, which {contract.__name__} wants{suggest(name, list(methods))}"
                )
            else:
                differences += [f"{name}: {text}" for text in _compare(wanted, methods[name])]
    if differences:
        raise ContractMismatchError(manifest.name, differences)


def _wanted(contract: type) -> dict[str, inspect.Signature]:
    wanted = {}
    for name, function in _functions(contract).items():
        for parameter, hint in hints_of(function).items():
            if not travels(hint):
                raise ContractMismatchError(
                    contract.__name__, [f"{name}: the type {annotation_text(hint)} of {parameter!r} does not travel"]
                )
        signature = inspect.signature(function)
        parameters = list(signature.parameters.values())[1:]
        wanted[name] = signature.replace(parameters=parameters)
    return wanted


def returns(contract: type | None) -> dict[str, Convert]:
    """Return what rebuilds the results of a contract's methods, or the items of its streams."""
    found = {}
    for name, function in _functions(contract).items() if contract is not None else ():
        hint = hints_of(function).get("return")
        if getattr(typing.get_origin(hint), "__name__", "") in _STREAMS and typing.get_args(hint):
            hint = typing.get_args(hint)[0]
        change = converter(hint)
        if change is not None:
            found[name] = change
    return found


def _functions(contract: type) -> dict[str, Any]:
    return {
        name: getattr(contract, name)
        for kind in contract.__mro__
        if kind.__module__ != "typing"
        for name, value in vars(kind).items()
        if inspect.isfunction(value) and not name.startswith("_")
    }


def _compare(wanted: inspect.Signature, found: dict[str, Any]) -> list[str]:
    if found["params"] is None:
        return []
    differences = []
    positional = ("POSITIONAL_ONLY", "POSITIONAL_OR_KEYWORD")
    takes_any = any(kind == "VAR_POSITIONAL" for _, kind, _, _ in found["params"])
    takes_names = any(kind == "VAR_KEYWORD" for _, kind, _, _ in found["params"])
    have = {name: (kind, default, note) for name, kind, default, note in found["params"]}
    slots = [name for name, kind, _, _ in found["params"] if kind in positional]
    used = set()
    index = 0
    for parameter in wanted.parameters.values():
        note = annotation_text(parameter.annotation)
        if parameter.kind.name in positional:
            name = slots[index] if index < len(slots) else None
            index += 1
            if name is None:
                if not takes_any:
                    differences.append(f"takes {len(slots)} arguments, and none for {parameter.name!r}")
                continue
        else:
            name = parameter.name if parameter.name in have else None
            if name is None:
                if parameter.kind is parameter.KEYWORD_ONLY and not takes_names:
                    differences.append(f"takes no argument named {parameter.name!r}")
                continue
        used.add(name)
        theirs = have[name][2]
        if note and theirs and _plain(note) != _plain(theirs):
            differences.append(f"takes {name!r} as {theirs}, wanted {note}")
    differences += [
        f"needs an argument {name!r} that the contract does not give"
        for name, (kind, default, _) in have.items()
        if name not in used and not default and not kind.startswith("VAR_")
    ]
    note = annotation_text(wanted.return_annotation)
    if note and found["returns"] and _plain(note) != _plain(found["returns"]):
        differences.append(f"returns {found['returns']}, wanted {note}")
    return differences


def _plain(text: str) -> str:
    """Return an annotation in one spelling, so that `Optional[int]` and `int | None`, `List` and `list` are equal."""
    try:
        return _spelled(ast.parse(text.strip().strip("'\""), mode="eval").body)
    except (SyntaxError, RecursionError):
        return text.replace(" ", "")


def _spelled(node: ast.expr) -> str:
    if isinstance(node, ast.Constant):
        return _plain(node.value) if isinstance(node.value, str) else repr(node.value)
    if isinstance(node, ast.Name | ast.Attribute):
        name = node.id if isinstance(node, ast.Name) else node.attr
        return _SPELLINGS.get(name, name)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr):
        return _union([node.left, node.right])
    if isinstance(node, ast.Subscript):
        items = list(node.slice.elts) if isinstance(node.slice, ast.Tuple) else [node.slice]
        name = _spelled(node.value)
        if name in ("Optional", "Union"):
            return _union([node])
        if name == "Annotated":
            return _spelled(items[0])
        return f"{name}[{','.join(map(_spelled, items))}]"
    if isinstance(node, ast.List):
        return f"[{','.join(map(_spelled, node.elts))}]"
    return ast.unparse(node).replace(" ", "")


def _union(nodes: list[ast.expr]) -> str:
    return "|".join(sorted({part for node in nodes for part in _members(node)}))


def _members(node: ast.expr) -> list[str]:
    """Return the members of a union, however it is written and nested."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return _members(ast.parse(node.value, mode="eval").body)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr):
        return _members(node.left) + _members(node.right)
    if isinstance(node, ast.Subscript) and (name := _spelled(node.value)) in ("Optional", "Union"):
        items = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
        return [part for item in items for part in _members(item)] + ["None"] * (name == "Optional")
    return [_spelled(node)]


_SPELLINGS = {
    **{name: name.lower() for name in ("List", "Dict", "Tuple", "Set", "FrozenSet", "Type")},
    "NoneType": "None",
    "Text": "str",
}
