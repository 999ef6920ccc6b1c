"""Every error that isolate raises on purpose; each names a condition, not a place."""


class IsolateError(Exception):
    """Base of all errors of isolate."""
