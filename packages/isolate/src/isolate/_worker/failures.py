"""Exceptions on the wire: a closed set comes back as itself, everything else as `RemoteError`."""

from __future__ import annotations

import builtins
import traceback
from typing import Any

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


def _known_name(kind: type) -> str | None:
    is_shared = kind.__module__ == "builtins" or issubclass(kind, IsolateError)
    return kind.__name__ if is_shared and kind.__name__ in _KNOWN else None


def _is_wire_arg(arg: Any) -> bool:
    """Return whether an argument travels with its exception; long texts do not."""
    return type(arg) in _WIRE_ARGS and (not isinstance(arg, (str, bytes)) or len(arg) <= _TEXT_LIMIT)


def describe(failure: BaseException) -> list[Any]:
    """Return the wire form of an exception: known name or None, dotted name, message, arguments, traceback."""
    failure = debugging.explained(failure)
    try:
        message = str(failure)
    except Exception as broken:
        message = f"<str() of the exception failed: {broken!r}>"
    text = "".join(traceback.format_exception(failure))[-_TEXT_LIMIT:]
    if isinstance(failure, RemoteError):
        return ["RemoteError", failure.type_name, failure.message[:_TEXT_LIMIT], None, text]
    kind = type(failure)
    args = list(failure.args) if all(map(_is_wire_arg, failure.args)) else None
    if isinstance(failure, OSError) and args is not None and failure.filename is not None and len(args) == 2:
        args = [*args, str(failure.filename)]
    dotted = kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
    return [_known_name(kind), dotted, message[:_TEXT_LIMIT], args, text]


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
