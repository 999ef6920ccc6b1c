"""Every error that zerocopy raises on purpose. Each class names a condition."""

from __future__ import annotations

__all__ = [
    "CheckpointMismatchError",
    "CorruptSegmentError",
    "MethodNotAllowedError",
    "MissingExtraError",
    "NoSpaceError",
    "OtherFormatError",
    "SegmentGoneError",
    "UnknownNameError",
    "UnshareableError",
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
    """The directory is too small for the segment. Nothing became visible."""


class UnknownNameError(ZerocopyError, LookupError):
    """No model is published under this name."""


class WriteRefusedError(ZerocopyError, RuntimeError):
    """Strict mode stopped an operation that would have written to a published weight."""


class MethodNotAllowedError(ZerocopyError, AttributeError):
    """A pipeline's model was asked for a method that the pipeline was not rewritten with."""


class CheckpointMismatchError(ZerocopyError, ValueError):
    """A checkpoint does not fit the model that should take its tensors."""


class MissingExtraError(ZerocopyError, ImportError):
    """An optional library is not installed. The message names the extra that installs it."""
