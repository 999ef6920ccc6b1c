"""Every error that isolate raises on purpose, each named for its condition."""

from __future__ import annotations

from typing import Any

from isolate import _moved
from isolate._worker.errors import (
    CallCancelledError,
    CallTimeoutError,
    CpuLimitError,
    DebuggerUnavailableError,
    DepthExceededError,
    ForkedError,
    IsolateError,
    LinkClosedError,
    OverloadedError,
    RemoteError,
    RemoteTracebackError,
    UnknownMethodError,
    UnsupportedTypeError,
    WireError,
    WouldDeadlockError,
)

__all__ = [
    "CallCancelledError",
    "CallTimeoutError",
    "ContractMismatchError",
    "CpuLimitError",
    "DebuggerUnavailableError",
    "DepthExceededError",
    "EnvironmentBuildError",
    "ExtensionDisabledError",
    "ExtensionStartError",
    "ForkedError",
    "FunctionSourceError",
    "HostClosedError",
    "HostRunningError",
    "InvalidManifestError",
    "InvalidRequirementError",
    "IsolateError",
    "LinkClosedError",
    "LockOutOfDateError",
    "NotReadyError",
    "OverloadedError",
    "RemoteError",
    "RemoteTracebackError",
    "SandboxUnavailableError",
    "ShareConflictError",
    "UnknownMethodError",
    "UnsafeStoreError",
    "UnsupportedSystemError",
    "UnsupportedTypeError",
    "WireError",
    "WorkerDiedError",
    "WouldDeadlockError",
]


def __getattr__(name: str) -> Any:
    return _moved.renamed_error("isolate.errors", name)


class InvalidManifestError(IsolateError, ValueError):
    """A manifest is invalid; the message gives file, line and the expected value.

    Correct that line. The README has a table of all keys.
    """


class InvalidRequirementError(IsolateError, ValueError):
    """A dependency is not a plain requirement, or the host's policy does not allow it.

    Name a package and a version range, or allow addresses and paths in the host's `Policy`.
    """


class FunctionSourceError(IsolateError, ValueError):
    """A function's source is not to be had, or it uses a global that cannot go with it.

    Define the function in a file or a notebook cell, and import what it needs inside it or pass it as an argument.
    """


class LockOutOfDateError(IsolateError, ValueError):
    """An extension's lock file was made for other requirements than its manifest has now.

    Run `isolate lock` for the extension.
    """


class UnsupportedSystemError(IsolateError, OSError):
    """This operating system lacks what isolate needs: file locks and passing of descriptors.

    Run the host on Linux.
    """


class UnsafeStoreError(IsolateError, PermissionError):
    """Another user could put code into the store of environments.

    Take the right to write from others (`chmod go-w`) on the folder that the message names, or choose another store.
    """


class EnvironmentBuildError(IsolateError, RuntimeError):
    """An environment could not be resolved or installed; the message carries uv's output.

    Read uv's output in the message: a version that does not exist, a package without a wheel for this Python, or an
    index that does not answer.
    """


class ShareConflictError(IsolateError, ValueError):
    """The extension needs another version of torch, or of what torch needs, than the host has.

    Give the extension a torch of its own (`share_torch: false`), or relax its requirement.
    """


class SandboxUnavailableError(IsolateError, OSError):
    """A sandbox is required and this machine does not provide all of it.

    Run `isolate doctor` to see what is missing, or lower the required level.
    """


class ContractMismatchError(IsolateError, TypeError):
    """An extension does not provide what it promised, or needs what the host does not export.

    Change the extension, the Protocol, or what the host exports; `differences` lists every one.

    Args:
        name: The extension, or the Protocol.
        differences: One readable line for each difference.

    Attributes:
        name: The extension, or the Protocol.
        differences: One readable line for each difference.

    Example:
        >>> error = ContractMismatchError("stats", ["has no method 'mean'"])
        >>> str(error), error.differences
        ("stats: has no method 'mean'", ["has no method 'mean'"])
    """

    def __init__(self, name: str, differences: list[str]) -> None:
        super().__init__(f"{name}: " + "; ".join(differences))
        self.name = name
        self.differences = differences

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.name, self.differences)


class ExtensionDisabledError(IsolateError, RuntimeError):
    """The extension's manifest says `enabled: false`.

    Set `enabled: true`, or skip this extension.
    """


class ExtensionStartError(IsolateError, RuntimeError):
    """An extension's own code failed while it was imported or constructed; the cause is its exception.

    Read the traceback of the cause: it shows the line of the extension that failed.
    """


class HostClosedError(IsolateError, RuntimeError):
    """The host is closed or being closed, so it can load, reload or wait for nothing.

    Open a new `Host`; its extensions are loaded there again.

    Example:
        >>> host = Host(store)
        >>> host.close()
        >>> try:
        ...     host.load(extensions / "stats")
        ... except HostClosedError as error:
        ...     print(error)
        this host is closed
    """


class HostRunningError(IsolateError, RuntimeError):
    """A host was opened with `async with` although it runs already.

    Open it once, and use that host; or make another `Host`.
    """


class NotReadyError(IsolateError, RuntimeError):
    """A call was made while the extension is not running; the message gives its state.

    Wait for it with `extension.when(State.READY)`, or load it again.

    Example:
        >>> with Host(store) as host:
        ...     stats = host.load(extensions / "stats")
        >>> try:
        ...     stats.call.mean([1])
        ... except NotReadyError as error:
        ...     print(error)
        stats is stopped
    """


class WorkerDiedError(LinkClosedError):
    """A worker process ended while it was needed.

    Look at `exit_code`, `signal` and `stderr`. A restart policy in the manifest starts the worker again.

    Args:
        name: The extension.
        exit_code: The process's exit code; None if a signal ended it.
        signal: The number of the signal that ended it; None if it exited.
        reason: Why the host ended it; empty if it ended by itself.
        stderr: Its last lines on stderr.

    Attributes:
        name: The extension.
        exit_code: The process's exit code; None if a signal ended it.
        signal: The number of the signal that ended it; None if it exited.
        reason: Why the host ended it; empty if it ended by itself.
        stderr: Its last lines on stderr.

    Example:
        >>> print(WorkerDiedError("stats", None, 9, "", ("out of cheese",)))
        the worker of stats ended by signal 9; last lines on stderr:
          out of cheese
    """

    def __init__(
        self, name: str, exit_code: int | None, signal: int | None, reason: str, stderr: tuple[str, ...]
    ) -> None:
        how = f"ended by signal {signal}" if signal is not None else f"exited with code {exit_code}"
        text = f"the worker of {name} {how}"
        if reason:
            text += f" ({reason})"
        if stderr:
            text += "; last lines on stderr:\n  " + "\n  ".join(stderr)
        super().__init__(text)
        self.name = name
        self.exit_code = exit_code
        self.signal = signal
        self.reason = reason
        self.stderr = stderr

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.name, self.exit_code, self.signal, self.reason, self.stderr)
