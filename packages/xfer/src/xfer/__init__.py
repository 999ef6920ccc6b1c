"""Move any array between processes, libraries and devices."""

from xfer.errors import XferError

__all__ = ["XferError"]
