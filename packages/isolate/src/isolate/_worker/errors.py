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
    """The other side sent bytes that break the protocol.

    The connection is closed. Load the extension again; if that repeats, its worker or its packages are faulty.
    """


class UnsupportedTypeError(IsolateError, TypeError):
    """A value is of a type that does not travel; the message gives its place.

    Pass plain values, arrays or tensors: convert the object at that place first.
    """


class UnknownMethodError(IsolateError, AttributeError):
    """The other side declares no method of that name.

    Check the spelling, and whether the manifest's `provides` or `needs` lists the method.
    """


class CpuLimitError(IsolateError, RuntimeError):
    """A call used more processor time than `limits.cpu_seconds` allows.

    The call was ended and the extension goes on. Raise the limit, or make the method faster.
    """


class DepthExceededError(IsolateError, RecursionError):
    """Calls between host and extensions are nested deeper than the limit.

    Look for a recursion between host and extension that does not end.
    """


class CallTimeoutError(IsolateError, TimeoutError):
    """A call's deadline passed before its answer came.

    The callee was cancelled. Call again with a longer `timeout`, or make the method faster.

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
    """The connection is closed, so the call cannot be answered.

    Load the extension again, or make the call before the host closes.
    """


class WouldDeadlockError(IsolateError, RuntimeError):
    """A blocking call was made on the thread that would have to receive its answer.

    Await the call (`extension.aio`), or make it on another thread.
    """


class ForkedError(IsolateError, RuntimeError):
    """A host or one of its extensions was used in a fork of the process that opened it.

    Open a host in the child, or start processes by spawn.
    """


class DebuggerUnavailableError(IsolateError, RuntimeError):
    """An extension called `breakpoint()` or pdb, and its host has no debugger for it.

    Run it with `isolate debug FOLDER METHOD`, or allow it in the host's program: `Policy(allow_debugger=True)`.
    """


class OverloadedError(IsolateError, RuntimeError):
    """More calls or bytes are in flight than the limit allows.

    Wait for some of the calls, or raise the extension's `Quotas` in the `Policy`.
    """


class RemoteError(IsolateError):
    """An exception of a type that the caller does not share; it carries the remote type, message and traceback.

    Read `traceback`. Catch it by `type_name` where you expect it.

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
    """The cause of an exception that came from the other side: its formatted traceback there.

    Its text ends with the line of the other side that failed.
    """

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.text = text

    def __str__(self) -> str:
        return f'\n"""\n{self.text}"""'


class CallCancelledError(BaseException):
    """Raised inside a running synchronous method when its caller has given up; not an `Exception`, as in asyncio.

    Do not catch it: release resources in `finally`.
    """
