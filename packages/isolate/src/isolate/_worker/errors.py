"""Errors that both ends of a connection can raise."""

from __future__ import annotations

from typing import Any


class IsolateError(Exception):
    """Base of all errors of isolate.

    Example:
        >>> try:
        ...     read_manifest("/no/such/folder")
        ... except IsolateError as error:
        ...     print(type(error).__name__)
        InvalidManifestError
    """


class WireError(IsolateError, ValueError):
    """The other side sent bytes that break the protocol."""


class UnsupportedTypeError(IsolateError, TypeError):
    """A value is of a type that does not travel; the message gives its place."""


class UnknownMethodError(IsolateError, AttributeError):
    """The other side declares no method of that name."""


class DepthExceededError(IsolateError, RecursionError):
    """Calls between host and extensions are nested deeper than the limit."""


class CallTimeoutError(IsolateError, TimeoutError):
    """A call's deadline passed before its answer came.

    Example:
        >>> with Host(store) as host:
        ...     stats = host.load(extensions / "stats")
        ...     try:
        ...         stats.call(timeout=0.1).wait(5)
        ...     except CallTimeoutError as error:
        ...         print(error)
        stats: wait did not answer before its deadline
    """


class LinkClosedError(IsolateError, ConnectionError):
    """The connection is closed, so the call cannot be answered."""


class WouldDeadlockError(IsolateError, RuntimeError):
    """A blocking call was made on the thread that would have to receive its answer."""


class OverloadedError(IsolateError, RuntimeError):
    """More calls or bytes are in flight than the limit allows."""


class RemoteError(IsolateError):
    """An exception of a type that the caller does not share; it carries the remote type, message and traceback.

    Args:
        type_name: Dotted name of the class on the other side; text only, never imported.
        message: What `str` of the exception returned there.
        traceback: The formatted traceback of every hop.

    Example:
        >>> error = RemoteError("sqlite3.IntegrityError", "UNIQUE failed")
        >>> error.type_name, str(error)
        ('sqlite3.IntegrityError', 'sqlite3.IntegrityError: UNIQUE failed')
    """

    def __init__(self, type_name: str, message: str, traceback: str = "") -> None:
        super().__init__(f"{type_name}: {message}" if message else type_name)
        self.type_name = type_name
        self.message = message
        self.traceback = traceback

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.type_name, self.message, self.traceback)


class RemoteTracebackError(Exception):
    """The cause of an exception that came from the other side: its formatted traceback there."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.text = text

    def __str__(self) -> str:
        return f'\n"""\n{self.text}"""'


class CallCancelledError(BaseException):
    """Raised inside a running synchronous method when its caller has given up; not an `Exception`, as in asyncio."""
