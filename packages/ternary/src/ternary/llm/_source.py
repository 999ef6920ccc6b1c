"""What a reader of foreign files offers, and how a model file is made of it, one matrix in memory at a time."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ternary.errors import ImportFormatError
from ternary.llm._config import ModelConfig
from ternary.llm._matrices import TernaryMatrix, quantize_rows
from ternary.llm._modelfile import matrix_shapes, writing

__all__ = ["Source", "write_model"]

Floats = NDArray[np.float32]


class Source(Protocol):
    """A foreign checkpoint, read piece by piece under the names of the model file."""

    config: ModelConfig
    metadata: dict[str, Any]
    tokenizer: bytes

    def vector(self, name: str) -> Floats:
        """Return a norm or a bias."""
        ...

    def matrix(self, name: str) -> TernaryMatrix:
        """Return a ternary matrix."""
        ...

    def rows(self, name: str) -> Iterator[Floats]:
        """Return the embedding or the head in blocks of rows."""
        ...


def write_model(source: Source, path: str | Path) -> None:
    """Write the model file of a source.

    Raises:
        ImportFormatError: A tensor is missing, has a wrong shape, or is not ternary.
        OSError: The file cannot be written.
    """
    config = source.config
    with writing(path, config, source.metadata, source.tokenizer) as writer:
        for layer in range(config.layers):
            at = f"layers.{layer}."
            norms = {"attention_norm": config.hidden, "feed_norm": config.hidden}
            if config.sub_norms:
                norms |= {"attention_sub_norm": config.heads * config.head_size, "feed_sub_norm": config.inner}
            for name, size in norms.items():
                writer.put(at + name, _vector(source, at + name, size))
            for name, shape in matrix_shapes(config).items():
                writer.put_matrix(at + name, _matrix(source, at + name, shape, config.bias and name in "qkvo"))
        writer.put("norm", _vector(source, "norm", config.hidden))
        for name in ("embedding",) if config.tied else ("embedding", "head"):
            done = 0
            for block in source.rows(name):
                if block.ndim != 2 or block.shape[1] != config.hidden or done + len(block) > config.vocabulary:
                    raise ImportFormatError(
                        f"{name}: got rows of shape {block.shape}, wanted {config.hidden} wide ones"
                    )
                values, scale = quantize_rows(block, name)
                writer.put(name, values, done * config.hidden)
                writer.put(name + ".scale", scale, done * 4)
                done += len(block)
            if done != config.vocabulary:
                raise ImportFormatError(f"{name}: got {done} rows for a vocabulary of {config.vocabulary}")
            writer.finish_tensor(name)
            writer.finish_tensor(name + ".scale")


def _vector(source: Source, name: str, size: int) -> Floats:
    found = np.ascontiguousarray(source.vector(name), np.float32)
    if found.shape != (size,) or not bool(np.isfinite(found).all()):
        raise ImportFormatError(f"{name}: got shape {found.shape}, wanted {size} finite numbers")
    return found


def _matrix(source: Source, name: str, shape: tuple[int, int], biased: bool) -> TernaryMatrix:
    found = source.matrix(name)
    if (found.outputs, found.inputs) != shape:
        raise ImportFormatError(f"{name}: got {found.outputs} x {found.inputs}, wanted {shape[0]} x {shape[1]}")
    if not bool(np.isfinite(found.scale).all()):
        raise ImportFormatError(f"{name}: got a scale that is not finite")
    bias = _vector(source, name + ".bias", shape[0]) if biased else None
    return TernaryMatrix(found.tiles, np.ascontiguousarray(found.scale, np.float32), bias)
