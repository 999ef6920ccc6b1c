"""Every error that zerocopy raises on purpose. Each class names a condition."""

from __future__ import annotations

__all__ = [
    "CheckpointMismatchError",
    "CorruptSegmentError",
    "MethodNotAllowedError",
    "MissingExtraError",
    "NoSpaceError",
    "OtherBuildError",
    "OtherFormatError",
    "RemoteCodeError",
    "SegmentGoneError",
    "ShareTimeoutError",
    "UnknownNameError",
    "UnshareableError",
    "UntrustedPathError",
    "UnusableDirectoryError",
    "WriteRefusedError",
    "ZerocopyError",
]


class ZerocopyError(Exception):
    """Base of all errors of zerocopy.

    Example:
        >>> import zerocopy
        >>> try:
        ...     zerocopy.current("never-published")
        ... except zerocopy.ZerocopyError as error:
        ...     print(type(error).__name__)
        UnknownNameError
    """


class UnshareableError(ZerocopyError, TypeError):
    """The model holds something without plain bytes to share: a meta, lazy or sparse tensor, TorchScript, a lock."""


class CorruptSegmentError(ZerocopyError, ValueError):
    """A segment is truncated, altered or not a segment. None of its content was used."""


class OtherFormatError(CorruptSegmentError):
    """A segment was written by another version of zerocopy. It was not changed."""


class SegmentGoneError(ZerocopyError, FileNotFoundError):
    """The segment was removed because its publisher and every reader have left, or it was never on this machine."""


class NoSpaceError(ZerocopyError, OSError):
    """The directory is too small for the segment, or the process may not open more files. Nothing became visible."""


class UntrustedPathError(ZerocopyError, PermissionError):
    """A file or folder belongs to another user, can be written by others, or is of another kind. It was not read."""


class UnusableDirectoryError(ZerocopyError, OSError):
    """The system does not let this process use a segment directory, or another process does not release its lock."""


class UnknownNameError(ZerocopyError, LookupError):
    """No model is published under this name."""


class WriteRefusedError(ZerocopyError, RuntimeError):
    """Strict mode stopped an operation that would have written to a published weight."""


class MethodNotAllowedError(ZerocopyError, AttributeError):
    """A pipeline's model was asked for a method that the pipeline was not rewritten with."""


class CheckpointMismatchError(ZerocopyError, ValueError):
    """A checkpoint does not fit the model that should take its tensors."""


class OtherBuildError(ZerocopyError, ValueError):
    """A name is shared from another build or checkpoint than the one that was given."""


class RemoteCodeError(ZerocopyError, PermissionError):
    """A model's classes come from code of its checkpoint, and the publisher or the loader does not allow that."""


class ShareTimeoutError(ZerocopyError, TimeoutError):
    """The process that builds a shared model was not done in time."""


class MissingExtraError(ZerocopyError, ImportError):
    """An optional library is not installed. The message names the extra that installs it."""
