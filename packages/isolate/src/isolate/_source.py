"""The source of a function as a module of its own: the function, and what it uses of the module around it."""

from __future__ import annotations

import ast
import builtins
import inspect
import symtable
import sys
import sysconfig
import textwrap
import typing
from collections import ChainMap
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from types import FunctionType, ModuleType
from typing import Any

from isolate.errors import FunctionSourceError

EXPORTED = "isolate_function"
"""The name under which the module exports the function."""
_LITERAL_LIMIT = 64 << 10
_MISSING = object()
_Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


@dataclass(slots=True)
class Captured:
    """A function's module.

    Attributes:
        text: Its source.
        uses: For each global that the source depends on: the namespace, the name, and the value it had.
        changeable: The constants that can change in place, as lists, with their texts in the source.
    """

    text: str
    uses: list[tuple[Mapping[str, Any], str, Any]]
    changeable: list[tuple[Any, str]] = field(default_factory=list)

    def is_current(self) -> bool:
        """Return whether all that was used has the same value still."""
        if not all(space.get(name, _MISSING) is value for space, name, value in self.uses):
            return False
        return all(repr(value) == text for value, text in self.changeable)


@dataclass(slots=True)
class _Module:
    owner: str
    stripped: object
    imports: dict[str, str] = field(default_factory=dict)
    constants: dict[str, str] = field(default_factory=dict)
    definitions: list[str] = field(default_factory=list)
    uses: list[tuple[Mapping[str, Any], str, Any]] = field(default_factory=list)
    changeable: list[tuple[Any, str]] = field(default_factory=list)
    seen: dict[str, Any] = field(default_factory=dict)

    def refuse(self, what: str) -> FunctionSourceError:
        """Return an error that names the function."""
        return FunctionSourceError(f"{self.owner} cannot run elsewhere: {what}")


def read_source(value: Any) -> str:
    """Return the source of a function or class as it is now; empty if it is not to be had."""
    plain = _plain(value)
    # From Python 3.13 on this is the name of the text of `python -c`, and of any text that exec() has compiled.
    if isinstance(plain, FunctionType) and plain.__code__.co_filename == "<string>":
        return ""
    try:
        return textwrap.dedent(inspect.getsource(plain))
    except (OSError, TypeError):
        return ""


def capture(function: FunctionType, decorator: object = None, text: str | None = None) -> Captured:
    """Return the module of a function.

    Args:
        function: The function; what it uses of its module comes along, as imports, constants and sources.
        decorator: Left out of the source, with all decorators above it.
        text: The function's source, if it was read before: a file or cell may have changed since.

    Raises:
        FunctionSourceError: The source is not to be had, or a global that it uses cannot come along.
    """
    module = _Module(function.__qualname__, decorator)
    _define(module, function, function.__name__, read_source(function) if text is None else text)
    lines = ["from __future__ import annotations", "", *module.imports.values(), "", *module.constants.values(), ""]
    lines += [*module.definitions, f"{EXPORTED} = {function.__name__}", ""]
    return Captured("\n".join(lines), module.uses, module.changeable)


def _define(module: _Module, value: Any, name: str, text: str) -> None:
    """Add the source of a function or class, after what it uses."""
    if not text:
        raise module.refuse(
            f"the source of {name!r} is not to be had; define it in a file or a notebook cell, not in exec()"
        )
    try:
        node = ast.parse(text).body[0]
    except SyntaxError:
        node = ast.Pass()
    if not isinstance(node, _Definition):
        raise module.refuse(f"{name!r} is a lambda or has no source of its own; define it with def")
    space = _namespace(value)
    _strip(node, space, module.stripped)
    text = ast.unparse(node)
    for used, is_needed in _names(node, text):
        _use(module, space, used, is_needed)
    alias = [] if node.name == name else [f"{name} = {node.name}"]
    file = inspect.getsourcefile(_plain(value)) or "<"
    # A notebook's cell has a new file whenever it is run; its source is the same.
    origin = [] if file.startswith("<") or "ipykernel" in file else [f"# from {file}"]
    module.definitions += [*origin, text, *alias, ""]


def _namespace(value: Any) -> Mapping[str, Any]:
    """Return the globals and captured variables of a function, or the globals of a class's module."""
    value = _plain(value)
    if not isinstance(value, FunctionType):
        return vars(sys.modules[value.__module__])
    if not value.__closure__:
        return value.__globals__
    return ChainMap(_Cells(zip(value.__code__.co_freevars, value.__closure__, strict=True)), value.__globals__)


class _Cells(dict[str, Any]):
    """The captured variables of a function as they are now."""

    def __getitem__(self, name: str) -> Any:
        try:
            return super().__getitem__(name).cell_contents
        except ValueError:  # not assigned yet
            return _MISSING


def _strip(node: _Definition, space: Mapping[str, Any], stripped: object) -> None:
    for index, decorator in reversed(list(enumerate(node.decorator_list))):
        called = decorator.func if isinstance(decorator, ast.Call) else decorator
        if stripped is not None and _resolve(called, space) is stripped:
            node.decorator_list = node.decorator_list[index + 1 :]
            return


def _resolve(node: ast.expr, space: Mapping[str, Any]) -> Any:
    if isinstance(node, ast.Name):
        return space.get(node.id)
    return getattr(_resolve(node.value, space), node.attr, None) if isinstance(node, ast.Attribute) else None


def _names(node: ast.AST, text: str) -> Iterator[tuple[str, bool]]:
    """Yield the names that a definition takes from around it, and whether it runs without them."""
    needed: set[str] = set()
    waiting = [symtable.symtable("from __future__ import annotations\n" + text, "<function>", "exec")]
    while waiting:
        table = waiting.pop()
        waiting += table.get_children()
        outer = table.get_type() == "module"
        needed |= {
            symbol.get_name()
            for symbol in table.get_symbols()
            if symbol.is_referenced() and (symbol.is_global() or (outer and not symbol.is_assigned()))
        }
    own = node.name if isinstance(node, _Definition) else ""
    annotated = {name.id for note in _annotations(node) for name in ast.walk(note) if isinstance(name, ast.Name)}
    for name in sorted((needed | annotated) - {own, "annotations"}):
        yield name, name in needed


def _annotations(node: ast.AST) -> Iterator[ast.AST]:
    for part in ast.walk(node):
        found = [getattr(part, "annotation", None), getattr(part, "returns", None)]
        for note in filter(None, found):
            if isinstance(note, ast.Constant) and isinstance(note.value, str):
                try:
                    yield ast.parse(note.value, mode="eval")
                except SyntaxError:
                    continue
            else:
                yield note


def _use(module: _Module, space: Mapping[str, Any], name: str, is_needed: bool) -> None:
    """Bring one global along."""
    value = space.get(name, _MISSING)
    if value is _MISSING:
        return  # a builtin, or an error that the function would raise here too
    if name in module.seen:
        if module.seen[name] is not value:
            raise module.refuse(f"two of the modules that it uses give the name {name!r} to different things")
        return
    module.seen[name] = value
    module.uses.append((space, name, value))
    line = _import_of(name, value)
    if line is not None:
        optional = f"try:\n    {line}\nexcept ImportError:\n    pass"
        module.imports[name] = line if is_needed else optional
    elif isinstance(_plain(value), FunctionType | type) and _is_own(value):
        _define(module, value, name, read_source(value))
    elif _is_literal(value):
        text = repr(value)
        module.constants[name] = f"{name} = {text}"
        if isinstance(value, list | dict | set | tuple):  # a tuple may hold a list
            module.changeable.append((value, text))
    elif is_needed:
        kind = f"{type(value).__module__}.{type(value).__qualname__}"
        raise module.refuse(
            f"the global {name!r} is a {kind}, which has no source and is no plain constant; pass it as an argument, "
            "or make it inside the function"
        )


def _import_of(name: str, value: Any) -> str | None:
    """Return the line that imports a value in another process; None if no import gives it."""
    if isinstance(value, ModuleType):
        return (
            f"import {value.__name__} as {name}"
            if "." in value.__name__ or value.__name__ != name
            else f"import {name}"
        )
    if getattr(builtins, name, None) is value:
        return None
    home = getattr(value, "__module__", None)
    own_name = next((n for key in ("__qualname__", "__name__", "_name") if (n := getattr(value, key, None))), None)
    if not isinstance(home, str) or not isinstance(own_name, str) or not own_name.isidentifier():
        return None
    if getattr(sys.modules.get(home), own_name, None) is not value or _is_own(value):
        return None
    return f"from {home} import {own_name}" + (f" as {name}" if name != own_name else "")


_INSTALLED = tuple(f"{sysconfig.get_path(key)}/" for key in ("stdlib", "platstdlib", "purelib", "platlib"))


def _plain(value: Any) -> Any:
    """Return the function inside of what decorators made of it."""
    return value if isinstance(value, type) or not callable(value) else inspect.unwrap(value)


def _is_own(value: Any) -> bool:
    """Return whether something is of the program itself, and not of a module that is installed."""
    found = sys.modules.get(value.__module__)
    file = getattr(found, "__file__", None)
    if value.__module__ == "__main__" or found is None:
        return True
    return file is not None and not file.startswith(_INSTALLED) and not file.startswith("<")


def _is_literal(value: Any) -> bool:
    text = repr(value)
    if len(text) > _LITERAL_LIMIT:
        return False
    try:
        found = ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return False
    return type(found) is type(value) and repr(found) == text


def returns_of(function: Callable[..., Any]) -> Any:
    """Return the annotation of a function's result; of a generator's items."""
    from isolate._worker.convert import hints_of

    hint = hints_of(function).get("return")
    is_stream = inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function)
    args = typing.get_args(hint)
    return args[0] if is_stream and args else hint
