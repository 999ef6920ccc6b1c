"""Every error that xfer raises on purpose; each names a condition, not a place."""


class XferError(Exception):
    """Base of all errors of xfer."""
