"""The model file of a language model: a safetensors file whose tensors the decoder reads where they are mapped."""

from __future__ import annotations

import json
import math
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from ternary._limits import check_memory, taking_memory
from ternary._tensorheader import parse_json, read_tensor_header
from ternary._wholefile import whole_file
from ternary.errors import ImportFormatError, ModelFileError
from ternary.llm._config import ModelConfig
from ternary.llm._matrices import TernaryMatrix

__all__ = [
    "FORMAT",
    "MATRICES",
    "VERSION",
    "ModelFile",
    "Writer",
    "matrix_shapes",
    "open_file",
    "read_header",
    "writing",
]

FORMAT, VERSION = "pentad-ternary-llm", 1
MATRICES = ("q", "k", "v", "o", "gate", "up", "down")
"""The ternary matrices of a layer."""
_ALIGNMENT = 64
_TYPES: dict[str, Any] = {"U8": np.uint8, "I8": np.int8, "F32": np.float32}
_LAYER_TENSORS = 16
"""Tensors that a layer has at least."""


def matrix_shapes(config: ModelConfig) -> dict[str, tuple[int, int]]:
    """Return outputs and inputs of each ternary matrix of a layer."""
    queries, pairs = config.heads * config.head_size, config.kv_heads * config.head_size
    return {
        "q": (queries, config.hidden),
        "k": (pairs, config.hidden),
        "v": (pairs, config.hidden),
        "o": (config.hidden, queries),
        "gate": (config.inner, config.hidden),
        "up": (config.inner, config.hidden),
        "down": (config.hidden, config.inner),
    }


def _layout(config: ModelConfig, tokenizer: int) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Return dtype and shape of every tensor, those of whole cache lines first, so that all of them are aligned."""
    made: dict[str, tuple[str, tuple[int, ...]]] = {}
    for layer in range(config.layers):
        at = f"layers.{layer}."
        made[at + "attention_norm"] = made[at + "feed_norm"] = ("F32", (config.hidden,))
        if config.sub_norms:
            made[at + "attention_sub_norm"] = ("F32", (config.heads * config.head_size,))
            made[at + "feed_sub_norm"] = ("F32", (config.inner,))
        for name, (outputs, inputs) in matrix_shapes(config).items():
            made[f"{at}{name}.tiles"] = ("U8", (-(-outputs // 16), inputs // 16, 16, 4))
            made[f"{at}{name}.scale"] = ("F32", (outputs,))
            if config.bias and name in "qkvo":
                made[f"{at}{name}.bias"] = ("F32", (outputs,))
    made["norm"] = ("F32", (config.hidden,))
    for name in ("embedding",) if config.tied else ("embedding", "head"):
        made[name] = ("I8", (config.vocabulary, config.hidden))
        made[name + ".scale"] = ("F32", (config.vocabulary,))
    if tokenizer:
        made["tokenizer"] = ("U8", (tokenizer,))
    return dict(sorted(made.items(), key=lambda item: _size(*item[1]) % _ALIGNMENT != 0 or item[0] == "tokenizer"))


def _size(dtype: str, shape: tuple[int, ...]) -> int:
    return math.prod(shape) * int(np.dtype(_TYPES[dtype]).itemsize)


class Writer:
    """Writes the tensors of a model file one by one, in any order, each once."""

    def __init__(self, file: BinaryIO, config: ModelConfig, metadata: dict[str, Any], tokenizer: bytes):
        self._file = file
        self._places: dict[str, tuple[int, int, str]] = {}
        header: dict[str, Any] = {"__metadata__": {"ternary": json.dumps(_metadata(config, metadata), sort_keys=True)}}
        offset = 0
        for name, (dtype, shape) in _layout(config, len(tokenizer)).items():
            size = _size(dtype, shape)
            header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [offset, offset + size]}
            self._places[name] = (offset, size, dtype)
            offset += size
        text = json.dumps(header).encode()
        text += b" " * (-(len(text) + 8) % _ALIGNMENT)
        file.write(struct.pack("<Q", len(text)) + text)
        self._start = file.tell()
        file.truncate(self._start + offset)
        if tokenizer:
            self.put("tokenizer", np.frombuffer(tokenizer, np.uint8))
            self.finish_tensor("tokenizer")

    def put(self, name: str, data: NDArray[Any], at: int = 0) -> None:
        """Write a tensor, or the part of it that starts `at` so many bytes behind its begin."""
        offset, size, dtype = self._places[name]
        if data.dtype != _TYPES[dtype] or at + data.nbytes > size:
            raise ImportFormatError(f"{name}: got {data.nbytes} bytes of {data.dtype}, wanted {size} of {dtype}")
        self._file.seek(self._start + offset + at)
        self._file.write(np.ascontiguousarray(data).data)
        if at == 0 and data.nbytes == size:
            self.finish_tensor(name)

    def finish_tensor(self, name: str) -> None:
        """Note that all parts of a tensor are written."""
        self._places.pop(name, None)

    def put_matrix(self, name: str, matrix: TernaryMatrix) -> None:
        """Write a ternary matrix with its scales and bias."""
        self.put(name + ".tiles", matrix.tiles)
        self.put(name + ".scale", matrix.scale)
        if matrix.bias is not None:
            self.put(name + ".bias", matrix.bias)

    def check_whole(self) -> None:
        """Refuse to end while tensors are missing."""
        if self._places:
            raise ImportFormatError(f"the source lacks {', '.join(sorted(self._places)[:5])}")


def _metadata(config: ModelConfig, metadata: dict[str, Any]) -> dict[str, Any]:
    return {"format": FORMAT, "version": VERSION, "config": config.as_dict(), **metadata}


@contextmanager
def writing(path: str | Path, config: ModelConfig, metadata: dict[str, Any], tokenizer: bytes) -> Iterator[Writer]:
    """Write a model file whole or not at all."""
    with whole_file(path) as temporary, temporary.open("wb") as file:
        writer = Writer(file, config, metadata, tokenizer)
        yield writer
        writer.check_whole()


@dataclass(frozen=True, slots=True)
class ModelFile:
    """An open model file; its arrays are views of the mapped file.

    Attributes:
        path: Where the file is.
        config: The model's shape.
        metadata: What else the header says: chat template, defaults for generation, the source.
        tensors: Every tensor by name.
    """

    path: Path
    config: ModelConfig
    metadata: dict[str, Any]
    tensors: dict[str, NDArray[Any]]

    def without_tensors(self) -> ModelFile:
        """Return the same without its weights."""
        return replace(self, tensors={})

    def matrix(self, name: str) -> TernaryMatrix:
        """Return a ternary matrix, such as `layers.0.q`."""
        return TernaryMatrix(
            self.tensors[name + ".tiles"], self.tensors[name + ".scale"], self.tensors.get(name + ".bias")
        )

    def tokenizer(self) -> str | None:
        """Return the tokenizer as JSON of the `tokenizers` library, or None."""
        data = self.tensors.get("tokenizer")
        try:
            return None if data is None else data.tobytes().decode("utf-8")
        except UnicodeDecodeError as e:
            raise ModelFileError(f"{self.path}: the tokenizer is damaged: {e}") from None

    def matrices(self) -> Iterator[tuple[str, TernaryMatrix]]:
        """Return every ternary matrix with its name."""
        for layer in range(self.config.layers):
            for name in MATRICES:
                yield f"layers.{layer}.{name}", self.matrix(f"layers.{layer}.{name}")


def read_header(path: Path) -> dict[str, Any] | None:
    """Return the header of a safetensors file with a `ternary` language model, or None for another file."""
    try:
        header, start = read_tensor_header(path)
        found = parse_json(header["__metadata__"]["ternary"])
        if found["format"] != FORMAT:
            return None
    except (ValueError, KeyError, TypeError, AttributeError):
        return None
    return {**found, "tensors": header, "start": start}


def open_file(path: str | Path) -> ModelFile:
    """Map a model file; nothing of the weights is read yet.

    Raises:
        ModelFileError: It is no such file, of another version, cut off, or tensors do not fit its header.
        ModelTooLargeError: It is larger than the memory that this process may use.
        OSError: It cannot be read.
    """
    path = Path(path)
    header = read_header(path)
    if header is None:
        raise ModelFileError(f"{path} is no model file of ternary.llm; convert it with ternary.llm.convert")
    if header.get("version") != VERSION:
        raise ModelFileError(f"{path} has version {header.get('version')}; this library reads version {VERSION}")
    table = header["tensors"]
    try:
        config = ModelConfig.from_dict(header.get("config", {}))
        length = table["tokenizer"]["shape"][0] if "tokenizer" in table else 0
    except (ImportFormatError, LookupError, TypeError) as e:
        raise ModelFileError(f"{path}: {e}") from None
    if config.layers > len(table) // _LAYER_TENSORS:
        raise ModelFileError(f"{path} has {len(table)} tensors, too few for the {config.layers} layers of its shape")
    wanted = _layout(config, length if type(length) is int and length > 0 else 0)
    end = header["start"] + sum(_size(*entry) for entry in wanted.values())
    if os.stat(path).st_size != end:
        raise ModelFileError(f"{path} has {os.stat(path).st_size} bytes; its header says {end}. The file is cut off")
    check_memory(end, f"{path} does not fit")
    with taking_memory(f"{path} does not fit ({end:,} bytes)"):
        mapped = np.memmap(path, np.uint8, mode="r")
    tensors: dict[str, NDArray[Any]] = {}
    offset = header["start"]
    for name, (dtype, shape) in wanted.items():
        entry = table.get(name, {})
        size = _size(dtype, shape)
        begin = offset - header["start"]
        if entry != {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, begin + size]}:
            raise ModelFileError(f"{path}: the tensor {name} is not what the model's shape wants: {entry}")
        tensors[name] = mapped[offset : offset + size].view(_TYPES[dtype]).reshape(shape)
        offset += size
    extra = {k: v for k, v in header.items() if k not in ("tensors", "start", "format", "version", "config")}
    return ModelFile(path, config, _checked_metadata(extra, path), tensors)


_METADATA = {"chat_template": str, "generation": dict, "stop_tokens": list, "bos_token": str, "eos_token": str}


def _checked_metadata(given: dict[str, Any], path: Path) -> dict[str, Any]:
    """Refuse metadata whose type would fail later."""
    for name, kind in _METADATA.items():
        if name in given and not isinstance(given[name], kind):
            raise ModelFileError(f"{path}: {name} is {type(given[name]).__name__}, wanted {kind.__name__}")
    if any(type(token) is not int for token in given.get("stop_tokens", [])):
        raise ModelFileError(f"{path}: a stop token is no whole number")
    return given
