"""Errors that both ends of a socket can raise; knows nothing of manifests or environments."""

from __future__ import annotations


class IsolateError(Exception):
    """Base of all errors of isolate."""


class WireError(IsolateError, ValueError):
    """The other side sent bytes that break the protocol."""


class UnsupportedType(IsolateError, TypeError):
    """A value is of a type that does not travel."""


class UnknownMethod(IsolateError, AttributeError):
    """The other side did not declare a method of that name."""


class DepthExceeded(IsolateError, RecursionError):
    """Calls between host and extensions are nested deeper than the limit."""


class CallTimeout(IsolateError, TimeoutError):
    """A call's deadline passed before its answer came."""


class LinkClosed(IsolateError, ConnectionError):
    """The other side is gone, so the call cannot be answered."""


class WouldDeadlock(IsolateError, RuntimeError):
    """A blocking call was made on the thread that would have to receive its answer."""


class Overloaded(IsolateError, RuntimeError):
    """More calls or bytes are in flight than the limit allows."""


class RemoteError(IsolateError):
    """An exception of a type that the caller does not share; it carries the remote type, message and traceback.

    Args:
        type_name: Dotted name of the class on the other side; text only, never imported.
        message: What `str` of the exception gave there.
        traceback: The formatted traceback, every hop included.
    """

    def __init__(self, type_name: str, message: str, traceback: str = "") -> None:
        super().__init__(f"{type_name}: {message}" if message else type_name)
        self.type_name = type_name
        self.message = message
        self.traceback = traceback


class RemoteTraceback(Exception):
    """Carries the formatted traceback of the other side as the cause of a revived exception."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.text = text

    def __str__(self) -> str:
        return f'\n"""\n{self.text}"""'


class CallCancelled(BaseException):
    """Raised inside a running synchronous method when its caller has given up; not an `Exception`, as in asyncio."""
