"""The decoder in the compiled core: its structures, filled from a model file, and its calls."""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ternary.errors import ModelClosedError
from ternary.llm._cache import LANES, Cache, Row
from ternary.llm._config import rotary_tables
from ternary.llm._forklock import ForkLock
from ternary.llm._modelfile import MATRICES, ModelFile

__all__ = ["NativeModel", "decoder_library"]

Floats = NDArray[np.float32]
_MATRIX_WORDS, _ACTIVATIONS = 5, {"silu": 0, "relu2": 1}
_SIZES = (9 * 8 + 8 + 8 * 8, (4 + 7 * _MATRIX_WORDS) * 8, 5 * 8, 4 * 8, 7 * 8)


def decoder_library(library: Any) -> bool:
    """Set the calls' signatures; whether the library has a decoder with the structures of this file."""
    try:
        sizes = library.ternary_llm_sizes
    except AttributeError:
        return False
    sizes.restype, sizes.argtypes = ctypes.c_int64, [ctypes.c_int64]
    if tuple(sizes(i) for i in range(len(_SIZES))) != _SIZES:
        return False
    library.ternary_llm_scratch.restype = ctypes.c_int64
    library.ternary_llm_scratch.argtypes = [ctypes.c_void_p, ctypes.c_int64]
    library.ternary_llm_run.restype = ctypes.c_int32
    library.ternary_llm_run.argtypes = [ctypes.c_void_p]
    library.ternary_llm_top.restype = ctypes.c_int64
    library.ternary_llm_top.argtypes = [
        *(ctypes.c_void_p, ctypes.c_int64, ctypes.c_void_p, ctypes.c_int64, ctypes.c_double),
        *(ctypes.c_int64, ctypes.c_void_p, ctypes.c_void_p),
    ]
    return True


class NativeModel:
    """A model file laid out for the core. It holds addresses into the mapped file, and the rotary tables.

    Args:
        file: The open model file.
        library: The core, checked by `decoder_library`.
        path: Number of the kernel.
        threads: How many threads a step uses.
        cache_bits: 8 or 16.
        positions: Longest sequence.
    """

    def __init__(self, file: ModelFile, library: Any, path: int, threads: int, cache_bits: int, positions: int):
        self._library, self._path, self._bits = library, path, cache_bits
        self.threads: int = threads
        self._file, config = file, file.config
        self.vocabulary: int = config.vocabulary
        self._tables = rotary_tables(config, -(-positions // LANES) * LANES)
        self._layers = np.zeros((config.layers, _SIZES[1] // 8), np.int64)
        for layer in range(config.layers):
            at = f"layers.{layer}."
            norms = ("attention_norm", "attention_sub_norm", "feed_norm", "feed_sub_norm")
            words = [self._address(at + name) for name in norms]
            for name in MATRICES:
                matrix = file.matrix(at + name)
                words += [self._address(f"{at}{name}.{part}") for part in ("tiles", "scale", "bias")]
                words += [matrix.outputs, matrix.inputs]
            self._layers[layer] = words
        head = "embedding" if config.tied else "head"
        self._words = np.frombuffer(
            struct.pack(
                "=9qd8q",
                *(config.layers, config.hidden, config.inner, config.heads, config.kv_heads, config.head_size),
                *(config.vocabulary, _ACTIVATIONS[config.activation], cache_bits, config.epsilon),
                *(table.ctypes.data for table in self._tables),
                *(self._address(name) for name in ("norm", "embedding", head, "embedding.scale", head + ".scale")),
                self._layers.ctypes.data,
            ),
            np.int64,
        )
        self._scratch = np.empty(0, np.uint8)
        self._one_step = ForkLock()
        self._open = True

    def close(self) -> None:
        """Let go of the file, after the step that runs."""
        with self._one_step:
            self._open = False
            self._scratch = np.empty(0, np.uint8)
            self._file = self._file.without_tensors()

    def _address(self, name: str) -> int:
        array = self._file.tensors.get(name)
        return 0 if array is None else int(array.ctypes.data)

    def new_cache(self, capacity: int) -> Cache:
        """Return an empty cache for a sequence of up to `capacity` positions."""
        return Cache(self._file, capacity, self._bits)

    def run(self, rows: Sequence[Row]) -> Floats:
        """Run the rows of one step, those of a sequence next to one another in the order of their positions.

        Returns:
            Logits of shape (rows with `logits`, vocabulary), float32.
        """
        wanted = sum(row.logits for row in rows)
        logits = np.empty((wanted, self.vocabulary), np.float32)
        table = np.array([(r.token, r.position, r.logits, r.cache.address) for r in rows], np.int64).reshape(-1, 4)
        need = self._library.ternary_llm_scratch(self._words.ctypes.data, len(rows))
        with self._one_step:
            if not self._open:
                raise ModelClosedError("the model is closed")
            if len(self._scratch) < need:
                self._scratch = np.empty(need, np.uint8)
            step = np.array(
                [
                    *(self._words.ctypes.data, self._path, self.threads, len(rows), table.ctypes.data),
                    *(self._scratch.ctypes.data, logits.ctypes.data),
                ],
                np.int64,
            )
            failure = self._library.ternary_llm_run(step.ctypes.data)
        if failure:
            raise MemoryError(f"ternary's core could not run a step of {len(rows)} tokens (reason {failure})")
        return logits

    def top(self, logits: Floats, seen: NDArray[np.int64], penalty: float, k: int) -> tuple[NDArray[np.int64], Floats]:
        """Apply the repetition penalty in place and return the k largest logits with their tokens, in falling order.

        Returns:
            Tokens and logits; both empty if a logit is not a number.
        """
        ids, values = np.empty(k, np.int64), np.empty(k, np.float32)
        found = self._library.ternary_llm_top(
            *(logits.ctypes.data, len(logits), seen.ctypes.data, len(seen), penalty),
            *(k, ids.ctypes.data, values.ctypes.data),
        )
        found = max(0, found)
        return ids[:found], values[:found]
