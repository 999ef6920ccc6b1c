"""Every error that ternary raises on purpose; each names a condition, not a place."""


class TernaryError(Exception):
    """Base of all errors of ternary."""
