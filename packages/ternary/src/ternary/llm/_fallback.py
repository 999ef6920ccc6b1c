"""The decoder in numpy: the same bits as the compiled core, for machines without it and as a check of it; slow.

Sums have the order that csrc/llm.h specifies. `np.add.accumulate` adds in turn, where `np.sum` may add in pairs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ternary.llm._cache import LANES, Cache, Row
from ternary.llm._config import rotary_tables
from ternary.llm._matrices import TernaryMatrix
from ternary.llm._modelfile import ModelFile
from ternary.runtime import _fallback as fallback

__all__ = ["FallbackModel"]

Floats = NDArray[np.float32]
_TINY, _WIDE = np.float32(1e-30), np.float32(32512.0)
_LOG2E, _LN2_HIGH, _LN2_LOW = np.float32(1.44269504), np.float32(0.693145752), np.float32(1.42860677e-6)
_TAYLOR = [np.float32(c) for c in (1.3888889e-3, 8.3333333e-3, 4.1666667e-2, 1.6666667e-1, 0.5, 1.0, 1.0)]


def add_in_turn(x: Floats, axis: int) -> Floats:
    """Sum along an axis from its first element to its last, starting at 0."""
    if not x.shape[axis]:
        return np.zeros(np.delete(x.shape, axis), np.float32)
    sums: Floats = np.add.accumulate(x, axis=axis, dtype=np.float32)
    last: Floats = np.take(sums, -1, axis=axis)
    return last


def add_lanes(x: Floats) -> Floats:
    """Sum the last dimension in 16 lanes; its length is a multiple of 16."""
    lanes = add_in_turn(x.reshape(*x.shape[:-1], -1, LANES), -2)
    while lanes.shape[-1] > 1:
        half = lanes.shape[-1] // 2
        lanes = lanes[..., :half] + lanes[..., half:]
    return lanes[..., 0]


def exponential(x: Floats) -> Floats:
    """Return e to the power of x, with the operations of the core; 0 below -87."""
    v = np.minimum(np.maximum(x, np.float32(-87)), np.float32(88))
    magic = np.float32(12582912.0)
    n = v * _LOG2E + magic
    power = n.view(np.int32) - 0x4B400000
    n = n - magic
    r = (v - n * _LN2_HIGH) - n * _LN2_LOW
    p = r * _TAYLOR[0] + _TAYLOR[1]
    for coefficient in _TAYLOR[2:]:
        p = p * r + coefficient
    p = p * ((power + 127) << 23).astype(np.int32).view(np.float32)
    return np.where(x >= np.float32(-87), p, np.float32(0)).astype(np.float32)


def norm(x: Floats, weight: Floats, epsilon: float) -> Floats:
    """Root mean square norm of the last dimension."""
    mean = add_lanes(x * x) / np.float32(x.shape[-1])
    inverse = np.float32(1) / np.sqrt(mean + np.float32(epsilon))
    normed: Floats = weight * (x * inverse[..., None])
    return normed


def _inverse(most: Floats, limit: np.float32) -> Floats:
    return np.divide(limit, most, out=np.zeros_like(most), where=most >= _TINY)


def _scale(most: Floats, limit: np.float32) -> Floats:
    return np.where(most >= _TINY, most / limit, np.float32(0)).astype(np.float32)


class FallbackModel:
    """A model file run by numpy, with the interface of `NativeModel`."""

    def __init__(self, file: ModelFile, cache_bits: int, positions: int):
        self._file, self._config, self._bits = file, file.config, cache_bits
        self.vocabulary: int = file.config.vocabulary
        self._tables = rotary_tables(file.config, -(-positions // LANES) * LANES)

    def new_cache(self, capacity: int) -> Cache:
        """Return an empty cache for a sequence of up to `capacity` positions."""
        return Cache(self._file, capacity, self._bits)

    def run(self, rows: Sequence[Row]) -> Floats:
        """Run the rows of one step; return logits of shape (rows with `logits`, vocabulary)."""
        tensors, config = self._file.tensors, self._config
        tokens = [row.token for row in rows]
        x = tensors["embedding"][tokens].astype(np.float32) * tensors["embedding.scale"][tokens][:, None]
        for layer in range(config.layers):
            at = f"layers.{layer}."
            normed = norm(x, tensors[at + "attention_norm"], config.epsilon)
            mixed = self._attention(layer, normed, rows)
            if config.sub_norms:
                mixed = norm(mixed, tensors[at + "attention_sub_norm"], config.epsilon)
            x = x + self._product(at + "o", mixed)
            normed = norm(x, tensors[at + "feed_norm"], config.epsilon)
            inner = self._gate(self._product(at + "gate", normed)) * self._product(at + "up", normed)
            if config.sub_norms:
                inner = norm(inner, tensors[at + "feed_sub_norm"], config.epsilon)
            x = x + self._product(at + "down", inner)
        return self._head(x[[row.logits for row in rows]])

    def _product(self, name: str, x: Floats) -> Floats:
        matrix: TernaryMatrix = self._file.matrix(name)
        q, scale = fallback.quantize(torch.from_numpy(np.ascontiguousarray(x)))
        sums = fallback.linear_sums(q, torch.from_numpy(matrix.values())).numpy()
        y: Floats = sums.astype(np.float32) * scale.numpy()[:, None] * matrix.scale
        return y if matrix.bias is None else y + matrix.bias

    def _gate(self, gate: Floats) -> Floats:
        if self._config.activation == "relu2":
            positive = np.maximum(gate, np.float32(0))
            return positive * positive
        return gate / (exponential(-gate) + np.float32(1))

    def _rotate(self, x: Floats, positions: list[int]) -> Floats:
        cosine, sine = (table[positions][:, None] for table in self._tables)
        a, b = np.split(x, 2, axis=-1)
        return np.concatenate([a * cosine - b * sine, b * cosine + a * sine], axis=-1)

    def _attention(self, layer: int, x: Floats, rows: Sequence[Row]) -> Floats:
        config, at = self._config, f"layers.{layer}."
        positions = [row.position for row in rows]
        q, k, v = (self._product(at + name, x).reshape(len(rows), -1, config.head_size) for name in "qkv")
        q, k = self._rotate(q, positions), self._rotate(k, positions)
        first = layer * config.kv_heads
        for i, row in enumerate(rows):
            self._store(row, slice(first, first + config.kv_heads), k[i], v[i])
        out = np.empty_like(q)
        group = config.heads // config.kv_heads
        for i, row in enumerate(rows):
            for head in range(config.heads):
                out[i, head] = self._attend(q[i, head], row, first + head // group)
        return out.reshape(len(rows), -1)

    def _store(self, row: Row, pairs: slice, key: Floats, value: Floats) -> None:
        limit = np.float32(127 if self._bits == 8 else 32767)
        cache, at = row.cache, row.position
        for x, scales in ((key, cache.key_scale), (value, cache.value_scale)):
            scales[pairs, at] = _scale(np.abs(x).max(axis=-1), limit)
        k = np.rint(key * _inverse(np.abs(key).max(axis=-1), limit)[:, None])
        cache.keys[pairs, at // LANES, :, at % LANES] = k.astype(cache.keys.dtype)
        v = np.rint(value * _inverse(np.abs(value).max(axis=-1), limit)[:, None])
        cache.values[pairs, at] = v.astype(cache.values.dtype)

    def _attend(self, query: Floats, row: Row, pair: int) -> Floats:
        cache, length, size = row.cache, row.position + 1, self._config.head_size
        padded = -(-length // LANES) * LANES
        keys = cache.keys[pair, : padded // LANES].astype(np.float32)  # blocks, dimensions, positions
        score = add_in_turn(keys * query[None, :, None], 1).reshape(-1)
        score = score * cache.key_scale[pair, :padded] * (np.float32(1) / np.sqrt(np.float32(size)))
        score[length:] = -np.inf
        weight = exponential(score - score[:length].max())
        weight = weight / add_lanes(weight)
        weight = (weight[:length] * cache.value_scale[pair, :length]).astype(np.float32)
        return add_in_turn(cache.values[pair, :length].astype(np.float32) * weight[:, None], 0)

    def _head(self, x: Floats) -> Floats:
        tensors, config = self._file.tensors, self._config
        name = "embedding" if config.tied else "head"
        x = norm(x, tensors["norm"], config.epsilon)
        most = np.abs(x).max(axis=-1, initial=0)
        q = np.rint(x * _inverse(most, _WIDE)[:, None]).astype(np.int64)
        out = np.empty((len(x), config.vocabulary), np.float32)
        for start in range(0, config.vocabulary, 4096):
            part = slice(start, start + 4096)
            sums = q @ tensors[name][part].astype(np.int64).T
            out[:, part] = sums.astype(np.float32) * _scale(most, _WIDE)[:, None] * tensors[name + ".scale"][part]
        return out

    def top(self, logits: Floats, seen: NDArray[Any], penalty: float, k: int) -> tuple[NDArray[np.int64], Floats]:
        """Apply the repetition penalty in place and return the k largest logits with their tokens, in falling order."""
        by = np.float32(penalty)
        logits[seen] = np.where(logits[seen] > 0, logits[seen] / by, logits[seen] * by)
        if bool(np.isnan(logits).any()):
            return np.empty(0, np.int64), np.empty(0, np.float32)
        ids = np.lexsort((np.arange(len(logits)), -logits))[:k]
        return ids, logits[ids]
