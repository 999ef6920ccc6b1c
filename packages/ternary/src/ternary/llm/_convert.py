"""From a foreign checkpoint to a model file, and opening either."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Literal

from ternary.errors import ImportFormatError
from ternary.llm._gguf import GGUFFile
from ternary.llm._huggingface import HuggingFaceFolder
from ternary.llm._model import Model
from ternary.llm._modelfile import open_file, read_header
from ternary.llm._source import Source, write_model

__all__ = ["convert", "load"]

Weights = Literal["exact", "absmean"]


def convert(source: str | Path, path: str | Path, *, weights: Weights | None = None) -> None:
    """Write a model file of a checkpoint: tiles that the decoder maps, 8-bit embedding, tokenizer and template.

    Args:
        source: A Hugging Face folder (`config.json`, `.safetensors`) or a GGUF file.
        path: Where to write, by custom ending in `.ternary`.
        weights: "exact" refuses weights that are not ternary; "absmean" quantizes float weights as BitNet b1.58 does.
            By default the checkpoint's configuration decides.

    Raises:
        ImportFormatError: The checkpoint is damaged, of another architecture, or not ternary; names the tensor.
        OSError: A file cannot be read or written.

    Example:
        >>> from ternary import llm
        >>> llm.convert("no-such-folder", "model.ternary")
        Traceback (most recent call last):
        FileNotFoundError: [Errno 2] No such file or directory: 'no-such-folder'
    """
    if weights not in (None, "exact", "absmean"):
        raise ValueError(f"got weights={weights!r}; wanted 'exact' or 'absmean'")
    write_model(_open_source(Path(source), weights), path)


def _open_source(source: Path, weights: Weights | None) -> Source:
    if source.is_dir():
        return HuggingFaceFolder(source, weights)
    with source.open("rb") as file:
        start = file.read(4)
    if start == b"GGUF":
        return GGUFFile(source, weights)
    raise ImportFormatError(f"{source} is neither a Hugging Face folder nor a GGUF file")


def load(path: str | Path, *, kernel: str = "auto", threads: int = 0, cache_bits: int = 16, context: int = 0) -> Model:
    """Open a language model.

    A model file opens in milliseconds. A Hugging Face folder or a GGUF file is converted once, to a file in the user's
    cache folder (`$XDG_CACHE_HOME/pentad-ternary`), which later calls open while the source is unchanged.

    Args:
        path: A model file of `convert`, a Hugging Face folder or a GGUF file.
        kernel: "auto" for the fastest kernel of this machine, or a name from `ternary.runtime.available_kernels()`.
        threads: Threads of a step, 0 for one per processor.
        cache_bits: Bits of the keys and values that are kept, 8 or 16.
        context: Longest sequence in tokens; 0 for the model's own limit, at most 4096.

    Returns:
        The open model.

    Raises:
        ModelFileError: A model file is damaged.
        ImportFormatError: A foreign checkpoint cannot be read.
        KernelUnavailableError: This machine does not have the kernel.

    Example:
        >>> import tempfile
        >>> from ternary import llm
        >>> config = llm.ModelConfig(64, hidden=32, inner=64, layers=1, heads=2, kv_heads=1, head_size=16, context=32)
        >>> llm.save(llm.Decoder(config, ternary=True), path := tempfile.mkdtemp() + "/m.ternary")
        >>> llm.load(path, threads=1).logits([1, 2, 3]).shape
        (3, 64)
    """
    path = Path(path)
    if path.is_dir() or read_header(path) is None:
        path = _converted(path)
    return Model(open_file(path), kernel=kernel, threads=threads, cache_bits=cache_bits, context=context)


def _converted(source: Path) -> Path:
    """Return the model file of a source in the cache folder, made now if it is not there."""
    files = sorted(f for f in source.iterdir() if f.is_file()) if source.is_dir() else [source]
    digest = hashlib.sha256()
    for file in files:
        status = file.stat()
        digest.update(f"{file.resolve()} {status.st_size} {status.st_mtime_ns}\n".encode())
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "pentad-ternary"
    made = folder / f"{source.resolve().stem}-{digest.hexdigest()[:16]}.ternary"
    if not made.exists():
        opened = _open_source(source, None)  # refuse before a folder is made
        folder.mkdir(parents=True, exist_ok=True)
        write_model(opened, made)
    return made
