"""A block of device memory as its user sees it, and the record that the manager keeps of it."""

from __future__ import annotations

import contextlib
import time
import weakref
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NoReturn, Protocol

import numpy as np

from xfer._device.spill import SpillFile

Where = Literal["device", "host", "disk", "released"]


@dataclass(frozen=True, slots=True)
class BlockReport:
    """A block that lives, or that was lost: dropped without a release and taken back into the pool.

    Example:
        >>> manager = xfer.GpuMemoryManager(xfer.HostAllocator())
        >>> block = manager.allocate(100)
        >>> [(report.device, report.nbytes, report.place) for report in manager.leaks()]
        [('cuda:0', 100, 'device')]

    Attributes:
        device: Where it was allocated.
        nbytes: Its size in bytes.
        age: Seconds since its allocation.
        site: The line that allocated it, if the manager traces.
        place: "device", "host" or "disk".
    """

    device: str
    nbytes: int
    age: float
    site: str
    place: str


class Right:
    """The right to a block's memory: held by the block's claim until its release, and by every array over the block."""

    __slots__ = ("__weakref__",)


class Claim:
    """A block's own hold on its right; it ends with the block or by a release."""

    __slots__ = ("__weakref__", "right")

    def __init__(self, right: Right) -> None:
        self.right: Right | None = right


class Residence:
    """A block's stay in one buffer: held by every array over that buffer; the block cannot move while it lives."""

    __slots__ = ("__weakref__", "_right")

    def __init__(self, right: Right | None) -> None:
        self._right = right


class Record:
    """What the manager knows of a block; it outlives a lost block."""

    __slots__ = (
        "buffer",
        "claim",
        "device",
        "host",
        "nbytes",
        "pins",
        "place",
        "residence",
        "since",
        "site",
        "size",
        "spillable",
        "spilled",
    )  # fmt: skip

    def __init__(self, nbytes: int, device: str, spillable: bool, site: str) -> None:
        self.nbytes: int = nbytes
        self.device: str = device
        self.spillable: bool = spillable
        self.site: str = site
        self.since: float = time.monotonic()
        self.place: Where = "device"
        self.buffer: Any = None
        self.size: int = 0
        self.host: np.ndarray[Any, Any] | None = None
        self.spilled: tuple[SpillFile, int] | None = None  # which file, and where in it
        self.pins: int = 0
        self.residence: weakref.ref[Residence] | None = None
        self.claim: weakref.ref[Claim] | None = None

    @property
    def in_view(self) -> bool:
        """Whether an array over the block's present buffer is alive."""
        return self.residence is not None and self.residence() is not None

    def reside(self) -> Residence:
        """Return the token of the block's stay in its present buffer."""
        residence = self.residence() if self.residence is not None else None
        if residence is None:
            claim = self.claim() if self.claim is not None else None
            residence = Residence(claim.right if claim is not None else None)
            self.residence = weakref.ref(residence)
        return residence

    def give_up(self) -> None:
        """End the block's own hold on its memory; arrays over it keep theirs."""
        claim = self.claim() if self.claim is not None else None
        if claim is not None:
            claim.right = None

    def report(self) -> BlockReport:
        """Return a report of the block."""
        return BlockReport(self.device, self.nbytes, time.monotonic() - self.since, self.site, self.place)


class Keeper(Protocol):
    """What a block needs of its manager."""

    def array(self, record: Record, shape: Any, dtype: np.dtype[Any]) -> Any:
        """Return an array over a block."""

    def pin(self, record: Record) -> Residence:
        """Bring a block to its device and keep it there."""

    def unpin(self, record: Record) -> None:
        """Let a block move again."""

    def release(self, record: Record) -> None:
        """Take a block back."""

    def spill(self, record: Record) -> None:
        """Move a block to the host or to disk."""


class MemoryBlock:
    """A piece of device memory; `release` it, or use it as a context manager.

    Example:
        >>> manager = xfer.GpuMemoryManager(xfer.HostAllocator(), budget="8MiB")
        >>> with manager.allocate("1MiB") as block:
        ...     block.array((2, 3), np.float32).shape
        (2, 3)
        >>> block.place
        'released'

    Args:
        keeper: What holds the memory; blocks come from `GpuMemoryManager.allocate`.
        record: What is known of the block.
        claim: The block's hold on its memory.
    """

    def __init__(self, keeper: Keeper, record: Record, claim: Claim) -> None:
        self._keeper, self._record, self._claim = keeper, record, claim

    @property
    def nbytes(self) -> int:
        """Size of the block."""
        return self._record.nbytes

    @property
    def device(self) -> str:
        """The device that it was allocated on."""
        return self._record.device

    @property
    def spillable(self) -> bool:
        """Whether it may be moved to the host or to disk."""
        return self._record.spillable

    @property
    def site(self) -> str:
        """The line that allocated it."""
        return self._record.site

    @property
    def place(self) -> Where:
        """Where the bytes are now."""
        return self._record.place

    def belongs_to(self, keeper: object) -> bool:
        """Return whether this part of a manager made the block."""
        return self._keeper is keeper

    def array(self, shape: int | Sequence[int] | None = None, dtype: Any = np.uint8) -> Any:
        """Return an array over the block; the memory is kept until that array is gone, even after `release`.

        Args:
            shape: Its shape; by default one dimension that fills the block.
            dtype: Its data type.

        Raises:
            ValueError: The block is too small, or spillable (then use `with block.use(...)`).
            DoubleReleaseError: The block was released.
        """
        if self.spillable:
            raise ValueError("a spillable block may move away: use it inside `with block.use(shape, dtype) as array`")
        return self._keeper.array(self._record, shape, np.dtype(dtype))

    @contextlib.contextmanager
    def use(self, shape: int | Sequence[int] | None = None, dtype: Any = np.uint8) -> Iterator[Any]:
        """Bring the block back to its device if it was spilled, and keep it there for the `with` block.

        The block also stays there while an array over it is alive after the `with` block.

        Args:
            shape: Shape of the array; by default one dimension that fills the block.
            dtype: Its data type.

        Raises:
            BudgetExceededError: There is no room for it and nothing left to spill.
            DoubleReleaseError: The block was released.
        """
        residence = self._keeper.pin(self._record)
        try:
            yield self._keeper.array(self._record, shape, np.dtype(dtype))
        finally:
            self._keeper.unpin(self._record)
            del residence

    def spill(self) -> None:
        """Move a spillable block to the host now, or to disk where the host's share is spent.

        Raises:
            ValueError: It is not spillable, is in use, or an array over it is alive.
        """
        self._keeper.spill(self._record)

    def release(self) -> None:
        """Give the memory back; it is reused once no array over the block is alive.

        Raises:
            DoubleReleaseError: It was given back before.
            ValueError: It is in use.
        """
        self._keeper.release(self._record)

    def __reduce__(self) -> NoReturn:
        raise TypeError("cannot pickle a MemoryBlock: it belongs to a manager of this process; send its content")

    def __enter__(self) -> MemoryBlock:
        return self

    def __exit__(self, *exc: object) -> None:
        if self.place != "released":
            self.release()

    def __repr__(self) -> str:
        return f"<xfer.MemoryBlock of {self.nbytes} bytes on {self.device}, {self.place}>"
