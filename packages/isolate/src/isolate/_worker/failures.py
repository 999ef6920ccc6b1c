"""Exceptions on the wire: a closed set comes back as itself, everything else as `RemoteError`."""

from __future__ import annotations

import builtins
import traceback
from collections.abc import Callable
from typing import Any, TypeVar

from . import debugging, errors
from .errors import IsolateError, RemoteError, RemoteTracebackError

# These have a meaning to the interpreter and cannot be raised through a future or a generator.
_EXCLUDED = {"StopIteration", "StopAsyncIteration", "GeneratorExit", "SystemExit", "KeyboardInterrupt"}
_KNOWN: dict[str, type[Exception]] = {
    name: value
    for space in (vars(builtins), vars(errors))
    for name, value in space.items()
    if isinstance(value, type)
    and issubclass(value, Exception)
    and name not in _EXCLUDED
    and value is not RemoteTracebackError
}
_WIRE_ARGS = (type(None), bool, int, float, str, bytes)
_TEXT_LIMIT = 200_000
_NAME_LIMIT = 1000
_BITS = 2000
"""Fewer than the 640 digits that `sys.set_int_max_str_digits` always allows."""
_QUALNAME = type.__dict__["__qualname__"].__get__
_T = TypeVar("_T")


def _known_name(kind: type) -> str | None:
    is_shared = kind.__module__ == "builtins" or issubclass(kind, IsolateError)
    return kind.__name__ if is_shared and kind.__name__ in _KNOWN else None


def _is_wire_arg(arg: Any) -> bool:
    """Return whether an argument travels with its exception.

    Long texts do not, nor do numbers of more digits than Python writes: `str` of the exception would fail.
    """
    if isinstance(arg, int):
        return type(arg) in _WIRE_ARGS and arg.bit_length() <= _BITS
    return type(arg) in _WIRE_ARGS and (not isinstance(arg, (str, bytes)) or len(arg) <= _TEXT_LIMIT)


def describe(failure: BaseException) -> list[Any]:
    """Return the wire form of an exception: known name or None, dotted name, message, arguments, traceback.

    Nothing that the exception's class defines can fail this, or its caller would wait for ever.
    """
    failure = _or(lambda: debugging.explained(failure), failure)
    text = _or(lambda: "".join(traceback.format_exception(failure))[-_TEXT_LIMIT:], "")
    message, args = _message(failure), _or(lambda: _arguments(failure), None)
    remote = _or(lambda: [failure.type_name, failure.message] if isinstance(failure, RemoteError) else None, None)
    if remote is not None and type(remote[0]) is type(remote[1]) is str:
        return ["RemoteError", remote[0], remote[1][:_TEXT_LIMIT], None, text]
    kind = type(failure)
    return [_or(lambda: _known_name(kind), None), _dotted(kind), message, args, text]


def _or(function: Callable[[], _T], otherwise: _T) -> _T:
    """Return what a function returns that runs code of an exception's class, or the other value if it raises."""
    try:
        return function()
    except BaseException:
        return otherwise


def _message(failure: BaseException) -> str:
    try:
        return str.__str__(str(failure))[:_TEXT_LIMIT]  # plain, if it is a subclass
    except BaseException as failed:
        broken = failed
    told = _or(lambda: str.__str__(repr(broken)), _dotted(type(broken)))
    return f"<str() of the exception failed: {told[:_NAME_LIMIT]}>"


def _arguments(failure: BaseException) -> list[Any] | None:
    """Return the arguments if all of them travel with their exception; long texts do not."""
    args = list(failure.args)
    if not all(map(_is_wire_arg, args)):
        return None
    if isinstance(failure, OSError) and failure.filename is not None and len(args) == 2:
        args.append(str.__str__(str(failure.filename)))
    return args if sum(len(arg) for arg in args if isinstance(arg, (str, bytes))) <= _TEXT_LIMIT else None


def _dotted(kind: type) -> str:
    """Return the class's name with its module; its metaclass has no say."""
    name = str.__str__(_QUALNAME(kind))
    module = _or(lambda: str.__str__(f"{kind.__module__}"), "?")
    return name if module == "builtins" else f"{module}.{name}"


def revive(parts: Any) -> Exception:
    """Return the exception for a wire form; only classes of the closed set are constructed."""
    if type(parts) is not list or len(parts) != 5:
        raise errors.WireError("a failure is not a list of five parts")
    name, dotted, message, args, text = parts
    if not (isinstance(dotted, str) and isinstance(message, str) and isinstance(text, str)):
        raise errors.WireError("a failure's name, message and traceback are not strings")
    dotted, message, text = dotted[:_NAME_LIMIT], message[:_TEXT_LIMIT], text[-_TEXT_LIMIT:]
    made: Exception | None = None
    kind = _KNOWN.get(name) if isinstance(name, str) else None
    if kind is RemoteError:
        made = RemoteError(dotted, message, text)
    elif kind is not None:
        arguments = args if type(args) is list and all(map(_is_wire_arg, args)) else [message]
        try:
            made = kind(*arguments)
        except Exception:  # a UnicodeDecodeError, say, whose arguments did not travel
            made = None
    if made is None:
        made = RemoteError(dotted, message, text)
    made.__cause__ = RemoteTracebackError(text)
    return made
