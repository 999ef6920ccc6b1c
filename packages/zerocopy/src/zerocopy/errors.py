"""Every error that zerocopy raises on purpose; each names a condition, not a place."""


class ZerocopyError(Exception):
    """Base of all errors of zerocopy."""


class UnshareableError(ZerocopyError, TypeError):
    """The model holds something without plain bytes to share: a meta, lazy or sparse tensor, TorchScript, a lock."""


class CorruptSegmentError(ZerocopyError, ValueError):
    """A segment is truncated, altered or not a segment at all; nothing of it was used."""


class OtherFormatError(CorruptSegmentError):
    """A segment was written by another version of zerocopy; it is left as it is."""


class SegmentGoneError(ZerocopyError, FileNotFoundError):
    """The segment was removed: its publisher and every reader have left, or it was never on this machine."""


class NoSpaceError(ZerocopyError, OSError):
    """The directory that should hold the segment is too small; nothing became visible."""


class UnknownNameError(ZerocopyError, LookupError):
    """No model is published under this name."""


class WriteRefusedError(ZerocopyError, RuntimeError):
    """Strict mode stopped an operation that would have written to a published weight."""


class MethodNotAllowedError(ZerocopyError, AttributeError):
    """A pipeline's model was asked for a method that it was not rewritten with."""


class CheckpointMismatchError(ZerocopyError, ValueError):
    """A checkpoint and the model that should take its tensors do not fit."""


class MissingExtraError(ZerocopyError, ImportError):
    """An optional library is needed; the message names the extra that brings it."""
