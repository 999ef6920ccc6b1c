"""Write safetensors files whose tensors can be mapped in place, and find the tensors in any safetensors file."""

from __future__ import annotations

import errno
import io
import json
import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import torch

from zerocopy._flatten import ALIGNMENT
from zerocopy._lease import FULL
from zerocopy.errors import MissingExtraError, NoSpaceError, UnshareableError


def save_aligned(tensors: Mapping[str, torch.Tensor], path: str | os.PathLike[str]) -> None:
    """Write a safetensors file in which every tensor of a multiple of 64 bytes lies at a multiple of 64 bytes.

    `publish_file(..., in_place=True)` can map such a file. Any reader of safetensors reads it.

    Args:
        tensors: A state_dict.
        path: The file to write. It appears when it is complete.

    Raises:
        MissingExtraError: The library safetensors is not installed.
        NoSpaceError: The file system is full. Nothing was written.
        TypeError: A value is no tensor.
        UnshareableError: A tensor is sparse, quantized or on the meta device.
        OSError: The path is a device or a pipe (EINVAL), or a folder.

    Example:
        >>> import os, tempfile, torch, zerocopy
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     zerocopy.save_aligned(torch.nn.Linear(4, 2).state_dict(), os.path.join(folder, "model.safetensors"))
        ...     os.listdir(folder)
        ['model.safetensors']
    """
    try:
        from safetensors.torch import save
    except ImportError as error:
        raise MissingExtraError('this needs safetensors: pip install "pentad-zerocopy[safetensors]"') from error
    for name, tensor in tensors.items():
        if not isinstance(name, str) or not isinstance(tensor, torch.Tensor):
            raise TypeError(f"{name!r:.80} is {tensor!r:.80}; wanted names and tensors, as model.state_dict()")
        if tensor.layout is not torch.strided or tensor.is_meta or tensor.is_quantized:
            raise UnshareableError(f"{name}: a tensor without plain bytes; make it dense, or leave it out")
    header: dict[str, Any] = {}
    ordered = sorted(tensors.items(), key=lambda item: item[1].nbytes % ALIGNMENT != 0)  # odd sizes shift what follows
    offset = 0
    for name, tensor in ordered:
        entry = _header(io.BytesIO(save({name: tensor.new_empty((0,), device="cpu")})))[1][name]  # names the dtype
        header[name] = {**entry, "shape": list(tensor.shape), "data_offsets": [offset, offset + tensor.nbytes]}
        offset += tensor.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % ALIGNMENT)
    target = Path(path)
    if target.exists() and not target.is_file() and not target.is_dir():  # a file must not take a device's name
        raise OSError(errno.EINVAL, "is a device or a pipe, wanted the name of a file", str(target))
    if target.is_dir() or not target.name:
        raise IsADirectoryError(errno.EISDIR, "is a folder, wanted the name of a file", str(target))
    temporary = target.with_name(f"{target.name}.{secrets.token_hex(4)}.part")
    try:
        with temporary.open("xb") as file:  # another user's link is not followed, nor another process's file written
            file.write(len(text).to_bytes(8, "little") + text)
            for _, tensor in ordered:
                raw = tensor.detach().cpu().contiguous().flatten()
                if raw.numel():
                    file.write(memoryview(raw.view(torch.uint8).numpy()))  # type: ignore[arg-type]  # it is a buffer
        temporary.replace(target)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno in FULL:
            raise NoSpaceError(error.errno, f"no room for {target} ({error.strerror}); nothing was written") from error
        raise


def _header(file: IO[bytes]) -> tuple[int, dict[str, Any]]:
    """Return where the data of a safetensors file starts, and its header."""
    size = int.from_bytes(file.read(8), "little")
    return 8 + size, json.loads(file.read(size))


def spans_of(path: Path) -> dict[str, tuple[int, int]]:
    """Return offset in the file and length of each tensor of a safetensors file that the library has checked."""
    with path.open("rb") as file:
        data, header = _header(file)
    header.pop("__metadata__", None)
    found = {name: entry["data_offsets"] for name, entry in header.items()}
    return {name: (data + first, last - first) for name, (first, last) in found.items()}
