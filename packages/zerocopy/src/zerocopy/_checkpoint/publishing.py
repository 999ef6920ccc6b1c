"""publish_file: publish a checkpoint from disk without putting its weights on the heap."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from torch import nn

from zerocopy._arena import Arena
from zerocopy._checkpoint.aligned import spans_of
from zerocopy._checkpoint.building import SkipLargeFills, is_spoiled, random_state
from zerocopy._checkpoint.files import Checkpoint, PathLike, files_of, read
from zerocopy._checkpoint.fitting import Fitted, fit
from zerocopy._flatten import ALIGNMENT, Flat
from zerocopy._hub import is_pretrained, load_through_library
from zerocopy._progress import Tick
from zerocopy._publish import Options, Shared, from_base, publish_made
from zerocopy._ref import ModelRef
from zerocopy._segment.checking import hash_blocks, stamp
from zerocopy.errors import CheckpointMismatchError


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
    trust_remote_code: bool = False,
) -> ModelRef:
    """Publish a model whose weights lie in a checkpoint, mapping the file instead of reading it.

    Args:
        path: A safetensors file, a file that `torch.save` wrote of a state_dict, a list of such files (shards), an
            index of shards (`model.safetensors.index.json`), or the folder of a pretrained model.
        build: Returns the model, on the meta device if you like. Its initial weights do not matter, and large random
            ones are not generated. Names that differ by a prefix (`module.`, `model.`) are matched. For a model of
            transformers, its own `from_pretrained` converts names and layouts that differ otherwise.
        name: See `publish`.
        version: See `publish`.
        base: See `publish`.
        directory: See `publish`.
        keep: See `publish`.
        progress: See `publish`.
        in_place: Map safetensors files where they lie instead of copying them into the segment. Tensors at multiples of
            64 bytes stay in the file (`save_aligned` writes such files), others are copied. The files must stay
            unchanged, on every node at the same path.
        trust_remote_code: See `publish`.

    A tensor of another dtype than the model's is converted, with a warning.

    Returns:
        The reference to pass to other processes.

    Raises:
        CheckpointMismatchError: Tensors are missing, left over, or of another shape, and all are listed; or a file is
            damaged or holds something else than named tensors.
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
    how = Options(name, version, directory, keep, progress, base, trust_remote_code=trust_remote_code)
    return publish_checkpoint(path, build, how, in_place=in_place)


def publish_checkpoint(
    path: PathLike | Sequence[PathLike],
    build: Callable[[], nn.Module],
    how: Options,
    *,
    in_place: bool = False,
) -> ModelRef:
    """Publish a checkpoint; the arguments are those of `publish_file`."""
    if in_place and (how.base is not None or any(file.suffix != ".safetensors" for file in files_of(path))):
        raise ValueError("in_place is for safetensors files, without a base")
    checkpoint = read(path)
    as_saved: dict[str, str] = {}

    def make(arena: Arena | None) -> nn.Module:
        assert arena is not None
        model, fitted = _make(checkpoint, build, arena)
        as_saved.update(fitted.as_saved)
        return model

    def in_files(flat: Flat, tick: Tick) -> Shared:
        return _in_files(flat, tick, _places(checkpoint, as_saved), checkpoint.files)

    return publish_made(make, in_files if in_place else from_base(how.base), how, in_arena=True)


def _make(checkpoint: Checkpoint, build: Callable[[], nn.Module], arena: Arena) -> tuple[nn.Module, Fitted]:
    """Build the model and give it the checkpoint's tensors."""
    with random_state() as restore:
        for skip in (True, False):
            mode = SkipLargeFills(arena, skip=skip)
            with mode:
                model, fitted = _fitted(checkpoint, build())
            for address in fitted.filled:
                mode.tainted.pop(address, None)
            if not skip or not is_spoiled(mode, model):
                return model, fitted
            restore()
    raise AssertionError("the second build skips nothing")


def _fitted(checkpoint: Checkpoint, model: nn.Module) -> tuple[nn.Module, Fitted]:
    if is_pretrained(model) and any(tensor.is_meta for tensor in model.state_dict().values()):
        return load_through_library(model, checkpoint.tensors), Fitted({}, set())
    try:
        return model, fit(model, checkpoint.tensors)
    except CheckpointMismatchError:
        if not is_pretrained(model):
            raise
        return load_through_library(model, checkpoint.tensors), Fitted({}, set())


def _places(checkpoint: Checkpoint, as_saved: Mapping[str, str]) -> dict[str, tuple[int, int, int]]:
    """Return by the model's names where tensors lie in the files: index of the file, offset and length."""
    spans = {
        name: (index, *span) for index, file in enumerate(checkpoint.files) for name, span in spans_of(file).items()
    }
    return {name: spans[saved] for name, saved in as_saved.items()}


def _in_files(flat: Flat, tick: Tick, known_at: Mapping[str, tuple[int, int, int]], paths: Sequence[Path]) -> Shared:
    """Find the blocks that lie in the files as they would in a segment."""
    known: list[tuple[int, int] | None] = []
    for block in flat.blocks:
        index, offset, nbytes = next((known_at[name] for name in block.names if name in known_at), (0, 0, -1))
        fits = block.start == 0 and block.nbytes == nbytes and nbytes and offset % ALIGNMENT == 0
        known.append((index, offset) if fits else None)
    hashes = hash_blocks((block.bytes_view() for block in flat.blocks), tick)
    return Shared(tuple(known), tuple(hashes), tuple(stamp(path) for path in paths))
