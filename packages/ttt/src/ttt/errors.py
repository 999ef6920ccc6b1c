"""Every error that ttt raises on purpose; each names a condition, not a place."""


class TTTError(Exception):
    """Base of all errors of ttt."""
