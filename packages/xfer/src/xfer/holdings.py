"""What a pool says of itself, as values; knows nothing of how it is counted."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class PoolStats:
    """What a pool holds; sizes in bytes."""

    budget: int
    reserved: int
    segments: int
    live: int
    live_bytes: int
    waiting_for_readers: int
    free_slots: int


@dataclass(frozen=True, slots=True)
class Leak:
    """An array that was put and not released."""

    nbytes: int
    age: float
    leased: bool
    site: str
