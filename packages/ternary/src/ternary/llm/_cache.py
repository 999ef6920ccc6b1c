"""Keys and values of sequences, in the layout that the decoder reads, and the rows of a step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from ternary._limits import taking_memory
from ternary.llm._config import ModelConfig
from ternary.llm._modelfile import ModelFile

__all__ = ["LANES", "Cache", "Row", "bytes_a_position"]

LANES = 16
"""Positions that lie together in the keys, and numbers that the decoder adds up side by side."""


@dataclass(frozen=True, slots=True)
class Row:
    """One token of a step: its number, its position in the sequence of `cache`, and whether logits are wanted."""

    token: int
    position: int
    cache: Cache
    logits: bool = False


class Cache:
    """Keys and values of one sequence, in 8 or 16 bits with a scale for each position and head.

    Memory is reserved for `capacity` positions and used as they come.
    """

    def __init__(self, file: ModelFile, capacity: int, bits: int):
        config = file.config
        self.limit = capacity
        self.capacity: int = -(-capacity // LANES) * LANES
        kind = np.int8 if bits == 8 else np.int16
        pairs = config.layers * config.kv_heads
        needed = capacity * bytes_a_position(config, bits)
        with taking_memory(
            f"the keys and values of {capacity} tokens do not fit ({needed:,} bytes)",
            ", or give a smaller context or cache_bits=8",
        ):
            self.keys: np.ndarray[Any, Any] = np.zeros((pairs, self.capacity // LANES, config.head_size, LANES), kind)
            self.values: np.ndarray[Any, Any] = np.zeros((pairs, self.capacity, config.head_size), kind)
            self.key_scale: np.ndarray[Any, Any] = np.zeros((pairs, self.capacity), np.float32)
            self.value_scale: np.ndarray[Any, Any] = np.zeros((pairs, self.capacity), np.float32)
        arrays = (self.keys, self.values, self.key_scale, self.value_scale)
        self.words: np.ndarray[Any, Any] = np.array([*(a.ctypes.data for a in arrays), self.capacity], np.int64)
        self.address: int = self.words.ctypes.data


def bytes_a_position(config: ModelConfig, bits: int) -> int:
    """Return how many bytes of a cache one position takes."""
    return config.layers * config.kv_heads * (2 * config.head_size * bits // 8 + 2 * 4)
