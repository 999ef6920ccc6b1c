"""Move any array between processes, libraries and devices."""

from __future__ import annotations

from xfer import _moved, errors, ops
from xfer._channel.channel import Channel, Receiver, Sender
from xfer._channel.select import wait
from xfer._channel.topic import Subscription, Topic
from xfer._convert.move import Route, Step, explain, move
from xfer._device.allocators import Allocator, CupyAllocator, HostAllocator
from xfer._device.block import BlockReport, MemoryBlock
from xfer._device.manager import GpuMemoryManager
from xfer._device.pool import MemoryPool, MemoryPoolStats
from xfer._shared.default import default_pool, put, release, set_default_pool
from xfer._shared.handle import Handle
from xfer._shared.holdings import Leak, Lent, PoolStats
from xfer._shared.loan import Loan
from xfer._shared.pool import Pool
from xfer._shared.reader import get, open, trim
from xfer._shared.store import SharedArrayStore
from xfer._shared.writable import WritableArray
from xfer.errors import XferError

__all__ = [
    "Allocator",
    "BlockReport",
    "Channel",
    "CupyAllocator",
    "GpuMemoryManager",
    "Handle",
    "HostAllocator",
    "Leak",
    "Lent",
    "Loan",
    "MemoryBlock",
    "MemoryPool",
    "MemoryPoolStats",
    "Pool",
    "PoolStats",
    "Receiver",
    "Route",
    "Sender",
    "SharedArrayStore",
    "Step",
    "Subscription",
    "Topic",
    "WritableArray",
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
    "set_default_pool",
    "trim",
    "wait",
]

_moved.install()
