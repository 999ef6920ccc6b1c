"""What tells one build function from another in two processes: its code, and the constants and code that it uses."""

from __future__ import annotations

import dis
import hashlib
import pickle
import types
from collections.abc import Iterator
from typing import Any

_PLAIN = (str, bytes, int, float, complex, bool, type(None), type(...))


def code_of(what: Any, seen: set[int] | None = None) -> Any:
    """Return a value that is equal in two processes if a callable does the same in both.

    The globals that a function reads count too, where they are plain constants, or functions and classes of its own
    module. Those of other modules count by their names.

    Args:
        what: The callable.
        seen: The ids of the functions and classes that are described already.
    """
    seen = set() if seen is None else seen
    if isinstance(what, types.FunctionType):
        if id(what) in seen:
            return what.__qualname__
        seen.add(id(what))
        cells = [constant(cell.cell_contents, seen) for cell in what.__closure__ or ()]
        defaults = [constant(value, seen) for value in (what.__defaults__ or ())]
        keywords = [(name, constant(value, seen)) for name, value in sorted((what.__kwdefaults__ or {}).items())]
        uses = list(_uses(what, seen))
        return what.__qualname__, _bytecode(what.__code__), cells, defaults, keywords, uses
    if isinstance(what, types.MethodType):
        return code_of(what.__func__, seen), constant(what.__self__, seen)
    if hasattr(what, "func") and hasattr(what, "keywords"):  # functools.partial
        return code_of(what.func, seen), constant(what.args, seen), constant(sorted(what.keywords.items()), seen)
    if isinstance(what, type):
        return _module(what), what.__qualname__
    return type(what).__qualname__, constant(what, seen)


def constant(value: Any, seen: set[int] | None = None) -> Any:
    """Return a value that is equal in two processes if a constant is."""
    if isinstance(value, types.FunctionType):
        return code_of(value, seen)
    if isinstance(value, set | frozenset):
        return sorted(map(repr, value))
    if isinstance(value, _PLAIN):
        return repr(value)
    if isinstance(value, tuple | list):
        return [constant(item, seen) for item in value]
    try:
        return hashlib.sha256(pickle.dumps(value)).hexdigest()
    except Exception:  # of any type: what cannot be pickled counts by its class
        return f"{type(value).__module__}.{type(value).__qualname__}"


def _module(value: Any) -> str:
    """Return the name of the module of a function or class; the main module of a spawned process is the main one."""
    return str(value.__module__).replace("__mp_main__", "__main__")


def _bytecode(code: types.CodeType) -> Any:
    constants = [_bytecode(c) if isinstance(c, types.CodeType) else constant(c) for c in code.co_consts]
    return code.co_code.hex(), constants, code.co_names


def _uses(function: types.FunctionType, seen: set[int]) -> Iterator[Any]:
    """Yield what a function reads of its module: a change of one of these changes what it builds."""
    for name in sorted(_read(function.__code__)):
        value = function.__globals__.get(name)
        if _is_plain(value):
            yield name, constant(value)
        elif isinstance(value, types.FunctionType) and value.__globals__ is function.__globals__:
            yield name, code_of(value, seen)
        elif isinstance(value, type) and _module(value) == _module(function):
            yield name, _class(value, seen)


def _class(kind: type, seen: set[int]) -> Any:
    if id(kind) in seen:
        return kind.__qualname__
    seen.add(id(kind))
    own = [
        (name, constant(value, seen))
        for name, value in sorted(vars(kind).items())
        if isinstance(value, types.FunctionType) or (_is_plain(value) and not _is_special(name))
    ]
    bases = [_class(base, seen) for base in kind.__bases__ if _module(base) == _module(kind)]
    return kind.__qualname__, own, bases


def _read(code: types.CodeType) -> set[str]:
    """Return the globals that code only reads. One that it sets, as a counter, is no constant."""
    read: set[str] = set()
    written: set[str] = set()
    waiting = [code]
    while waiting:
        each = waiting.pop()
        waiting += [c for c in each.co_consts if isinstance(c, types.CodeType)]
        for step in dis.get_instructions(each):
            if step.opname in ("LOAD_GLOBAL", "LOAD_NAME"):
                read.add(str(step.argval))
            elif step.opname in ("STORE_GLOBAL", "DELETE_GLOBAL"):
                written.add(str(step.argval))
    return {name for name in read - written if not _is_special(name)}


def _is_special(name: str) -> bool:
    """Return whether a name is one like `__name__` or `__file__`, which differ from process to process."""
    return name.startswith("__") and name.endswith("__")


def _is_plain(value: Any) -> bool:
    """Return whether a value is a constant: what can change in place, as a list of calls, is none."""
    if isinstance(value, tuple | frozenset):
        return all(map(_is_plain, value))
    return value is not None and type(value) in _PLAIN  # a global that is None may be filled at its first use
