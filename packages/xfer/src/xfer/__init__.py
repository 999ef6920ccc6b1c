"""Move any array between processes, libraries and devices."""

from xfer import errors, ops
from xfer.allocators import CupyAllocator, HostAllocator
from xfer.channel import Channel, Receiver, Sender
from xfer.default import default_pool, put, release
from xfer.descriptor import Handle
from xfer.errors import XferError
from xfer.gpu import GpuMemoryManager, MemoryBlock
from xfer.holdings import Leak, PoolStats
from xfer.loan import Loan
from xfer.memory_pool import MemoryPool
from xfer.move import Route, explain, move
from xfer.pool import Pool
from xfer.reader import get, open
from xfer.store import SharedArrayStore

__all__ = [
    "Channel",
    "CupyAllocator",
    "GpuMemoryManager",
    "Handle",
    "HostAllocator",
    "Leak",
    "Loan",
    "MemoryBlock",
    "MemoryPool",
    "Pool",
    "PoolStats",
    "Receiver",
    "Route",
    "Sender",
    "SharedArrayStore",
    "XferError",
    "default_pool",
    "errors",
    "explain",
    "get",
    "move",
    "open",
    "ops",
    "put",
    "release",
]
