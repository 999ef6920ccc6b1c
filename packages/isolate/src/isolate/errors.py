"""Every error that isolate raises on purpose; each names a condition, not a place."""

from __future__ import annotations

from isolate.worker.errors import (
    CallCancelled,
    CallTimeout,
    DepthExceeded,
    IsolateError,
    LinkClosed,
    Overloaded,
    RemoteError,
    RemoteTraceback,
    UnknownMethod,
    UnsupportedType,
    WireError,
    WouldDeadlock,
)

__all__ = [
    "CallCancelled",
    "CallTimeout",
    "ContractMismatch",
    "DepthExceeded",
    "EnvironmentBuildError",
    "ExtensionDisabled",
    "ExtensionStartError",
    "InvalidManifest",
    "InvalidRequirement",
    "IsolateError",
    "LinkClosed",
    "LockOutOfDate",
    "NotReady",
    "Overloaded",
    "RemoteError",
    "RemoteTraceback",
    "SandboxUnavailable",
    "ShareConflict",
    "UnknownMethod",
    "UnsupportedType",
    "WireError",
    "WorkerDied",
    "WouldDeadlock",
]


class InvalidManifest(IsolateError, ValueError):
    """A manifest says something that it may not; the message names file, line and what was wanted."""


class InvalidRequirement(IsolateError, ValueError):
    """A dependency is not a plain, allowed requirement."""


class LockOutOfDate(IsolateError, ValueError):
    """An extension's lock file was made for other requirements than its manifest has now."""


class EnvironmentBuildError(IsolateError, RuntimeError):
    """An environment could not be resolved or installed; the message carries what uv said."""


class ShareConflict(IsolateError, ValueError):
    """The host's torch cannot serve this extension: the versions contradict each other."""


class SandboxUnavailable(IsolateError, OSError):
    """A sandbox is required and this machine cannot provide it."""


class ContractMismatch(IsolateError, TypeError):
    """An extension does not provide what it promised, or needs what the host does not export.

    Attributes:
        differences: One readable line for each difference.
    """

    def __init__(self, name: str, differences: list[str]) -> None:
        super().__init__(f"{name}: " + "; ".join(differences))
        self.differences = differences


class ExtensionDisabled(IsolateError, RuntimeError):
    """A disabled extension was asked for."""


class ExtensionStartError(IsolateError, RuntimeError):
    """An extension's own code failed while it was imported or constructed; the cause is its exception."""


class NotReady(IsolateError, RuntimeError):
    """A call was made while the extension is not running; the message gives its state."""


class WorkerDied(LinkClosed):
    """A worker process ended while it was needed.

    Attributes:
        name: The extension.
        exit_code: What the process exited with, None if a signal ended it.
        signal: The number of the signal that ended it, None if it exited.
        reason: Why the host ended it, empty if it ended by itself.
        stderr: Its last lines on stderr.
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

    def __copy__(self) -> WorkerDied:
        return WorkerDied(self.name, self.exit_code, self.signal, self.reason, self.stderr)
