"""Move any array between processes, libraries and devices."""

from xfer import errors
from xfer.channel import Channel, Receiver, Sender
from xfer.descriptor import Handle
from xfer.errors import XferError
from xfer.pool import Leak, Loan, Pool, PoolStats, default_pool, put, release
from xfer.reader import get, open

__all__ = [
    "Channel",
    "Handle",
    "Leak",
    "Loan",
    "Pool",
    "PoolStats",
    "Receiver",
    "Sender",
    "XferError",
    "default_pool",
    "errors",
    "get",
    "open",
    "put",
    "release",
]
