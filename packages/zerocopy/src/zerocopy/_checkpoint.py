"""publish_file: publish a checkpoint from disk without putting its weights on the heap."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import torch
from torch import nn

from zerocopy._flatten import ALIGNMENT, Flat
from zerocopy._progress import Tick
from zerocopy._publish import Shared, publish, publish_shared
from zerocopy._ref import ModelRef
from zerocopy._segment.checking import hash_blocks, stamp
from zerocopy._torch_private import TorchDispatchMode, schema_of
from zerocopy.errors import CheckpointMismatchError, MissingExtraError

PathLike = str | os.PathLike[str]

# Random fills of tensors of at least this many bytes are skipped while the model is built: untouched pages take no
# memory, and the checkpoint overwrites the tensors anyway. A skipped tensor that it does not overwrite is an error.
_LARGE = 1 << 16
_FILLS = ("normal_", "uniform_", "random_", "bernoulli_", "exponential_", "log_normal_", "cauchy_", "geometric_")


def publish_file(
    path: PathLike | Sequence[PathLike],
    build: Callable[[], nn.Module],
    *,
    name: str | None = None,
    version: int | None = None,
    base: ModelRef | None = None,
    directory: PathLike | None = None,
    keep: bool = False,
    progress: bool = False,
    in_place: bool = False,
) -> ModelRef:
    """Publish a model whose weights lie in a checkpoint, mapping the file instead of reading it.

    Args:
        path: A safetensors file, a file that `torch.save` wrote of a state_dict, or several of them (shards).
        build: Returns the model. Its initial weights do not matter, and large random ones are not generated.
        name: See `publish`.
        version: See `publish`.
        base: See `publish`.
        directory: See `publish`.
        keep: See `publish`.
        progress: See `publish`.
        in_place: Map safetensors files where they lie instead of copying them into the segment. Tensors at multiples of
            64 bytes stay in the file (`save_aligned` writes such files), others are copied. The files must stay
            unchanged, on every node at the same path.

    Returns:
        The reference to pass to other processes.

    Raises:
        CheckpointMismatchError: Tensors are missing, left over, or of another shape. All are listed.
        MissingExtraError: The file is a safetensors file and safetensors is not installed.
        ValueError: `in_place` was given together with a base, or with files that are not safetensors.

    Example:
        >>> import os, tempfile, torch, zerocopy
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = os.path.join(folder, "model.pt")
        ...     torch.save(torch.nn.Linear(4, 2).state_dict(), path)
        ...     ref = zerocopy.publish_file(path, lambda: torch.nn.Linear(4, 2))
        >>> zerocopy.unpublish(ref)
    """
    paths = [Path(p).absolute() for p in ([path] if isinstance(path, str | os.PathLike) else path)]
    if in_place and (base is not None or any(path.suffix != ".safetensors" for path in paths)):
        raise ValueError("in_place is for safetensors files, without a base")
    with _SkipLargeFills() as skipped:
        model = build()
    as_saved = _assign(model, dict(_tensors(paths)), skipped)
    if not in_place:
        return publish(model, name=name, version=version, base=base, directory=directory, keep=keep, progress=progress)
    spans = {name: (index, *span) for index, path in enumerate(paths) for name, span in _spans(path).items()}
    known_at = {name: spans[name] for name in as_saved}
    return publish_shared(
        model,
        lambda flat, tick: _in_files(flat, tick, known_at, paths),
        name=name, version=version,
        directory=directory, keep=keep, progress=progress,
    )  # fmt: skip


def save_aligned(tensors: Mapping[str, torch.Tensor], path: PathLike) -> None:
    """Write a safetensors file in which every tensor of a multiple of 64 bytes lies at a multiple of 64 bytes.

    `publish_file(..., in_place=True)` can map such a file. Any reader of safetensors reads it.

    Args:
        tensors: A state_dict.
        path: The file to write. It appears when it is complete.

    Raises:
        MissingExtraError: The library safetensors is not installed.

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
    temporary = target.with_name(f"{target.name}.part")
    try:
        with temporary.open("wb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            for _, tensor in ordered:
                raw = tensor.detach().cpu().contiguous().flatten()
                if raw.numel():
                    file.write(memoryview(raw.view(torch.uint8).numpy()))  # type: ignore[arg-type]  # it is a buffer
        temporary.replace(target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _header(file: IO[bytes]) -> tuple[int, dict[str, Any]]:
    """Return where the data of a safetensors file starts, and its header."""
    size = int.from_bytes(file.read(8), "little")
    return 8 + size, json.loads(file.read(size))


def _spans(path: Path) -> dict[str, tuple[int, int]]:
    """Return offset in the file and length of each tensor of a safetensors file that the library has checked."""
    with path.open("rb") as file:
        data, header = _header(file)
    header.pop("__metadata__", None)
    spans = {name: entry["data_offsets"] for name, entry in header.items()}
    return {name: (data + first, last - first) for name, (first, last) in spans.items()}


def _in_files(flat: Flat, tick: Tick, known_at: Mapping[str, tuple[int, int, int]], paths: Sequence[Path]) -> Shared:
    """Find the blocks that lie in the files as they would in a segment."""
    known: list[tuple[int, int] | None] = []
    for block in flat.blocks:
        index, offset, nbytes = next((known_at[name] for name in block.names if name in known_at), (0, 0, -1))
        fits = block.start == 0 and block.nbytes == nbytes and nbytes and offset % ALIGNMENT == 0
        known.append((index, offset) if fits else None)
    hashes = hash_blocks((block.bytes_view() for block in flat.blocks), tick)
    return Shared(tuple(known), tuple(hashes), tuple(stamp(path) for path in paths))


class _SkipLargeFills(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Skips random fills of large tensors and records which tensors those are."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.storages: dict[int, torch.UntypedStorage] = {}  # kept alive, so that no address is reused


def _skip_or_run(
    mode: _SkipLargeFills, func: Any, _types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
) -> Any:
    name = schema_of(func).name.removeprefix("aten::")
    if name in _FILLS and args[0].device.type == "cpu" and args[0].nbytes >= _LARGE:
        storage = args[0].untyped_storage()
        mode.storages[storage.data_ptr()] = storage
        return args[0]
    return func(*args, **(kwargs or {}))


# Set after the class is made for the reason given in _writes.py: it keeps torch._dynamo out.
_SkipLargeFills.__torch_dispatch__ = _skip_or_run  # type: ignore[method-assign, assignment]


def _tensors(paths: Iterable[Path]) -> Iterable[tuple[str, torch.Tensor]]:
    """Yield (name, tensor) of every tensor in some files, mapped."""
    for path in paths:
        if path.suffix == ".safetensors":
            try:
                from safetensors import safe_open
            except ImportError as error:
                raise MissingExtraError('this needs safetensors: pip install "pentad-zerocopy[safetensors]"') from error
            with safe_open(path, framework="pt") as file:
                for name in file.keys():  # noqa: SIM118  # not a dict
                    yield name, file.get_tensor(name)
        else:
            state = torch.load(path, mmap=True, weights_only=True, map_location="cpu")
            yield from state.items()


def _assign(model: nn.Module, found: dict[str, torch.Tensor], skipped: _SkipLargeFills) -> list[str]:
    """Point the model's parameters and buffers at checkpoint tensors. Tied names share the one that the file has.

    Returns:
        The names of the tensors that are in the model as they are in the file.
    """
    as_saved = []
    persistent = model.state_dict(keep_vars=True)
    groups: dict[int, list[str]] = {}
    for name, tensor in persistent.items():
        if isinstance(tensor, torch.Tensor):
            groups.setdefault(id(tensor), []).append(name)
    problems = []
    used: set[str] = set()
    for names in groups.values():
        target = persistent[names[0]]
        saved = next((name for name in names if name in found), names[0])
        source = found.get(saved)
        used.update(names)
        if source is None:
            problems.append(f"{names[0]} is missing")
        elif source.shape != target.shape:
            problems.append(
                f"{names[0]} has shape {tuple(source.shape)} in the file, {tuple(target.shape)} in the model"
            )
        else:
            skipped.storages.pop(target.untyped_storage().data_ptr(), None)
            target.data = source.to(target.dtype)
            if source.dtype == target.dtype:
                as_saved.append(saved)
    problems.extend(f"{name} is in the file only" for name in sorted(found.keys() - used))
    if not problems:
        left = {tensor.untyped_storage().data_ptr(): name for name, tensor in model.named_buffers()}
        problems.extend(f"{left[key]} is filled at random by build()" for key in skipped.storages if key in left)
    if problems:
        raise CheckpointMismatchError("checkpoint and model do not fit: " + "; ".join(problems))
    return as_saved
