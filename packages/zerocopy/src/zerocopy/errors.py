"""Every error that zerocopy raises on purpose; each names a condition, not a place."""


class ZerocopyError(Exception):
    """Base of all errors of zerocopy."""
