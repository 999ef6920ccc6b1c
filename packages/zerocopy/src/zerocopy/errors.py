"""Every error that zerocopy raises on purpose. Each class names a condition."""

from __future__ import annotations

__all__ = [
    "CheckpointMismatchError",
    "CorruptSegmentError",
    "DeviceUnavailableError",
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
    """The model holds something without plain bytes to share: a meta, lazy or sparse tensor, TorchScript, a lock.

    The message gives the path of the part. Materialise, densify or replace it, or leave it out of the published
    model.
    """


class CorruptSegmentError(ZerocopyError, ValueError):
    """A segment is truncated, altered or not a segment. None of its content was used.

    Publish the model again. `zerocopy verify FILE` hashes every weight of a segment.
    """


class OtherFormatError(CorruptSegmentError):
    """A segment was written by another version of zerocopy. It was not changed.

    Use the same version of zerocopy in the publisher and in the workers, and publish again.
    """


class SegmentGoneError(ZerocopyError, FileNotFoundError):
    """The segment was removed because its publisher and every reader have left, or it was never on this machine.

    Keep the publisher running until the workers have loaded, or publish with `keep=True`. On another node, load
    through `zerocopy.on_ray`.
    """


class NoSpaceError(ZerocopyError, OSError):
    """The directory is too small for the segment, or the process may not open more files. Nothing became visible.

    Make the directory larger (in Docker: `--shm-size`), or pass `directory=` with a folder on a larger file system.
    Raise the limit of open files with `ulimit -n`.
    """


class UntrustedPathError(ZerocopyError, PermissionError):
    """A file or folder belongs to another user, can be written by others, or is of another kind. It was not read.

    Remove what the message names, or take the right to write from others (`chmod go-w`).
    """


class UnusableDirectoryError(ZerocopyError, OSError):
    """The system does not let this process use a segment directory, or another process does not release its lock.

    Pass `directory=` with a folder in which this process may write, or end the process that holds the lock.
    """


class UnknownNameError(ZerocopyError, LookupError):
    """No model is published under this name.

    Check the name with `zerocopy report`. The publisher and the readers must use the same directory and the same
    user.
    """


class WriteRefusedError(ZerocopyError, RuntimeError):
    """Strict mode stopped an operation that would have written to a published weight.

    Write to a copy: `ref.load(cached=False)` outside the strict block, or `tensor.clone()`.
    """


class MethodNotAllowedError(ZerocopyError, AttributeError):
    """A pipeline's model was asked for a method that the pipeline was not rewritten with.

    Name the method when you call `rewrite_pipeline`.
    """


class CheckpointMismatchError(ZerocopyError, ValueError):
    """A checkpoint does not fit the model that should take its tensors.

    Build the model with the configuration of the checkpoint. The message lists the names and shapes that differ.
    """


class OtherBuildError(ZerocopyError, ValueError):
    """A name is shared from another build or checkpoint than the one that was given.

    Use another name, or give every worker the same build and checkpoint.
    """


class DeviceUnavailableError(ZerocopyError, RuntimeError):
    """A GPU cannot be used from this process, or cannot share a copy of the weights.

    In a process that was forked from one that uses CUDA, start workers by spawn. Where the message says that the
    device cannot share, load without `share=True`.
    """


class RemoteCodeError(ZerocopyError, PermissionError):
    """A model's classes come from code of its checkpoint, and the publisher or the loader does not allow that.

    Read that code. If you trust it, pass `trust_remote_code=True` to the publisher and to `load`.
    """


class ShareTimeoutError(ZerocopyError, TimeoutError):
    """The process that builds a shared model was not done in time.

    Give `share` a longer timeout. If the building process hangs, end it: another takes its place.
    """


class MissingExtraError(ZerocopyError, ImportError):
    """An optional library is not installed. The message names the extra that installs it.

    Install it with the line in the message.
    """
