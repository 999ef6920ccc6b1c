"""From a foreign checkpoint to a model file, and opening either."""

from __future__ import annotations

import hashlib
import os
import stat
from pathlib import Path
from typing import Literal

from ternary.errors import ImportFormatError, ModelFileError, TernaryError
from ternary.llm._gguf import GGUFFile
from ternary.llm._hubcache import cache_home, find_source, model_name
from ternary.llm._huggingface import HuggingFaceFolder
from ternary.llm._model import Model
from ternary.llm._modelfile import FORMAT, VERSION, open_file, read_header
from ternary.llm._shared import Reference
from ternary.llm._source import Source, write_model

__all__ = ["convert", "load"]

Weights = Literal["exact", "absmean"]


def convert(source: str | Path, path: str | Path, *, weights: Weights | None = None) -> None:
    """Write a model file of a checkpoint: tiles that the decoder maps, 8-bit embedding, tokenizer and template.

    Args:
        source: A Hugging Face folder (`config.json`, `.safetensors`), a GGUF file, or the name of a model that was
            downloaded into the Hub's cache, such as `owner/name`.
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
    found = find_source(Path(source))
    _write(_open_source(found, weights), found, path)


def _write(opened: Source, source: Path, path: str | Path) -> None:
    """Write the model file; what damage in the source leads to inside numpy becomes an error of the source."""
    try:
        write_model(opened, path)
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as e:
        if isinstance(e, TernaryError):
            raise
        raise ImportFormatError(f"{source} is damaged: {e!r}") from None


def _open_source(source: Path, weights: Weights | None) -> Source:
    if source.is_dir():
        return HuggingFaceFolder(source, weights)
    with source.open("rb") as file:
        start = file.read(4)
    if start == b"GGUF":
        return GGUFFile(source, weights)
    raise ImportFormatError(f"{source} is neither a Hugging Face folder nor a GGUF file")


def load(
    path: str | Path | Reference, *, kernel: str = "auto", threads: int = 0, cache_bits: int = 16, context: int = 0
) -> Model:
    """Open a language model.

    A model file opens in milliseconds. A Hugging Face folder or a GGUF file is converted once, to a file in the user's
    cache folder (`$XDG_CACHE_HOME/pentad-ternary`), which later calls open while the source is unchanged.

    Args:
        path: A model file of `convert`, a Hugging Face folder, a GGUF file, the name of a model that was downloaded
            into the Hub's cache (`owner/name`), or a reference of `publish`.
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
    if isinstance(path, str | Path):
        path = find_source(Path(path))
        file = open_file(_converted(path) if path.is_dir() or read_header(path) is None else path)
    else:
        file = path.load()
    return Model(file, kernel=kernel, threads=threads, cache_bits=cache_bits, context=context)


def _converted(source: Path) -> Path:
    """Return the model file of a source in the cache folder, made now if it is not there."""
    files = sorted(f for f in source.iterdir() if f.is_file()) if source.is_dir() else [source]
    digest = hashlib.sha256(f"{FORMAT} {VERSION}\n".encode())
    for file in files:
        status = file.stat()
        # The time of the last change of the entry, which a copy that keeps its modification time does not keep.
        changed = f"{status.st_size} {status.st_mtime_ns} {status.st_ctime_ns}"
        digest.update(f"{file.resolve()} {changed}\n".encode(errors="surrogateescape"))
    folder = cache_home() / "pentad-ternary"
    made = folder / f"{model_name(source)}-{digest.hexdigest()[:16]}.ternary"
    if not made.exists():
        opened = _open_source(source, None)  # refuse before a folder is made
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as e:
            why = f"{e.strerror}; {source} is converted into this folder: set XDG_CACHE_HOME, or use `ternary convert`"
            raise type(e)(e.errno, why, str(folder)) from None
        _refuse_foreign(folder)
        _write(opened, source, made)
    _refuse_foreign(folder)
    return made


def _refuse_foreign(folder: Path) -> None:
    """Refuse a cache folder into which another user can put a model."""
    if not hasattr(os, "geteuid"):
        return
    status = folder.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid() or status.st_mode & 0o022:
        raise ModelFileError(
            f"{folder} belongs to another user, or others can write to it; make it yours with mode 0700, set "
            "XDG_CACHE_HOME, or convert to a file of your own"
        )
