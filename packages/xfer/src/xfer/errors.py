"""Every error that xfer raises on purpose, named by its condition."""

from __future__ import annotations

from typing import Any

__all__ = [
    "BudgetExceededError",
    "ChannelClosedError",
    "DeviceUnavailableError",
    "DoubleReleaseError",
    "EndpointTakenError",
    "ForeignHandleError",
    "HandleError",
    "NameMissingError",
    "NameTakenError",
    "PeerDiedError",
    "PoolClosedError",
    "ProducerGoneError",
    "ReadOnlyStoreError",
    "SpilledDataLostError",
    "StaleHandleError",
    "TooManyOpenFilesError",
    "UnsupportedDtypeError",
    "UnsupportedPlatformError",
    "UntrustedFileError",
    "WaitTimeoutError",
    "XferError",
]


class XferError(Exception):
    """Base of all errors of xfer.

    Example:
        >>> try:
        ...     xfer.get(b"no handle")
        ... except xfer.XferError as error:
        ...     type(error).__name__
        'HandleError'
    """


class HandleError(XferError, ValueError):
    """The bytes are not a handle of this version: too short, altered, or from another program."""


class StaleHandleError(XferError, LookupError):
    """The array that the handle named is no longer there: released, or its slot holds something newer."""


class ProducerGoneError(StaleHandleError):
    """The process that made the handle has exited, or cannot be seen from here."""


class UnsupportedDtypeError(XferError, TypeError):
    """The data type holds pointers or has no portable description, so its bytes mean nothing elsewhere."""


class BudgetExceededError(XferError, MemoryError):
    """No room for the request.

    Args:
        message: What was asked for and what is left.
        asked: Bytes that were asked for.
        available: Bytes that are left.
    """

    def __init__(self, message: str, asked: int = 0, available: int = 0) -> None:
        super().__init__(message)
        self.asked = asked
        self.available = available

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (*self.args, self.asked, self.available), self.__dict__


class DoubleReleaseError(XferError, ValueError):
    """The handle or block has been released before."""


class ForeignHandleError(XferError, ValueError):
    """The handle or block belongs to another pool or process."""


class PoolClosedError(XferError, ValueError):
    """The pool was closed, or was made before a fork and belongs to the parent."""


class ChannelClosedError(XferError, ConnectionError):
    """The other end, or this one, has closed the channel."""


class PeerDiedError(ChannelClosedError):
    """The process at the other end ended without closing the channel."""


class EndpointTakenError(XferError, ValueError):
    """Another process already holds this end of the channel."""


class WaitTimeoutError(XferError, TimeoutError):
    """The time given for waiting ran out."""


class NameTakenError(XferError, ValueError):
    """The store already holds an array of that name."""


class NameMissingError(XferError, KeyError):
    """The store holds no array of that name."""

    def __str__(self) -> str:
        return str(self.args[0]) if self.args else ""


class ReadOnlyStoreError(XferError, PermissionError):
    """Only the process that made the store may change it."""


class UnsupportedPlatformError(XferError, OSError):
    """This operating system lacks a mechanism that the call is built on."""


class SpilledDataLostError(XferError, OSError):
    """A block that was spilled to disk cannot be read back: its file was cut, or is this process's parent's."""


class TooManyOpenFilesError(XferError, OSError):
    """This process, or the system, has no file descriptor left for the request."""


class UntrustedFileError(XferError, PermissionError):
    """A file in a place that users share is not this user's alone: another's, a link, of another kind, or too open."""


class DeviceUnavailableError(XferError, RuntimeError):
    """The device that was asked for cannot be used from this process."""
