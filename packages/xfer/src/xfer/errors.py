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
    "StaleCoreError",
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
    """The bytes are not a handle of this version: too short, altered, or from another program.

    Pass the bytes exactly as `bytes(handle)` returned them, and use the same version of xfer at both ends.
    """


class StaleHandleError(XferError, LookupError):
    """The array that the handle named is no longer there: released, or its slot holds something newer.

    Ask the producer for a new handle, or let it release the array only after the readers have opened it.
    """


class ProducerGoneError(StaleHandleError):
    """The process that made the handle has exited, or cannot be seen from here.

    Keep the producer running until its arrays were opened. Readers in another container need the same process
    namespace.
    """


class UnsupportedDtypeError(XferError, TypeError):
    """The data type holds pointers or has no portable description, so its bytes mean nothing elsewhere.

    Convert the array to a numeric, boolean, date or fixed-width dtype, or send Python objects by other means.
    """


class BudgetExceededError(XferError, MemoryError):
    """No room for the request.

    Release arrays that are no longer used, or give the pool a larger budget. `pool.stats()` and `pool.leaks()` show
    what is held.

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
    """The handle or block has been released before.

    Let exactly one owner release each handle or block.
    """


class ForeignHandleError(XferError, ValueError):
    """The handle or block belongs to another pool or process.

    Release a handle in the pool and in the process that made it.
    """


class PoolClosedError(XferError, ValueError):
    """The pool was closed, or was made before a fork and belongs to the parent.

    Make a new pool: after `close`, and in the child after a fork.
    """


class ChannelClosedError(XferError, ConnectionError):
    """The other end, or this one, has closed the channel.

    End the loop: everything that was sent before was delivered. `with sender:` closes at the right time.
    """


class PeerDiedError(ChannelClosedError):
    """The process at the other end ended without closing the channel.

    Start the other process again and attach the end by the same bytes, or close the channel.
    """


class EndpointTakenError(XferError, ValueError):
    """Another process already holds this end of the channel.

    Give each end to one process. Several consumers need a channel each, or a `Topic`.
    """


class WaitTimeoutError(XferError, TimeoutError):
    """The time given for waiting ran out.

    Look whether the other end still works, then wait again: nothing was lost. A sender waits while the receiver is
    behind.
    """


class NameTakenError(XferError, ValueError):
    """The store already holds an array of that name.

    Use `replace` for a new value, or another name.
    """


class NameMissingError(XferError, KeyError):
    """The store holds no array of that name.

    Call `list` to see which names the store holds.
    """

    def __str__(self) -> str:
        return str(self.args[0]) if self.args else ""


class ReadOnlyStoreError(XferError, PermissionError):
    """Only the process that made the store may change it.

    Send the new array to the process that made the store, and let it call `create` or `replace`.
    """


class UnsupportedPlatformError(XferError, OSError):
    """This operating system lacks a mechanism that the call is built on.

    Run `xfer doctor` to see what works here. Shared memory needs Linux, and parts of it work on macOS.
    """


class SpilledDataLostError(XferError, OSError):
    """A block that was spilled to disk cannot be read back: its file was cut, or is this process's parent's.

    Fill the block again. After a fork, only the parent reads back what it has spilled.
    """


class StaleCoreError(XferError, ImportError):
    """The compiled part of xfer was built from other sources than the Python files beside it.

    Install pentad-xfer again. In a checkout this happens when the sources have changed since the last installation.
    """


class TooManyOpenFilesError(XferError, OSError):
    """This process, or the system, has no file descriptor left for the request.

    Close channels, topics and arrays that are no longer used, or raise the limit with `ulimit -n`.
    """


class UntrustedFileError(XferError, PermissionError):
    """A file in a place that users share is not this user's alone: another's, a link, of another kind, or too open.

    Remove the file that the message names, or use another name. xfer reads nothing of it.
    """


class DeviceUnavailableError(XferError, RuntimeError):
    """The device that was asked for cannot be used from this process.

    Run `xfer doctor`: it says whether CuPy or torch finds the device, and why not.
    """
