"""One copy of a model's weights for all processes of a machine, and of every node that asks, through zerocopy."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from ternary.errors import MissingExtraError, TernaryError
from ternary.llm._modelfile import ModelFile, open_file

if TYPE_CHECKING:
    from zerocopy import ModelRef

__all__ = ["Reference", "follow_name", "publish", "publish_under"]


class Reference(Protocol):
    """What `publish` returns: a small object that other processes turn into the mapped model."""

    def load(self) -> ModelFile:
        """Return the model file, its arrays mapped."""
        ...


def publish(path: str | Path, *, name: str | None = None) -> ModelRef:
    """Put a model file's weights into shared memory, for `load` in any process that gets the reference.

    A file on a local disk is shared by its page cache as it is. Use this where workers see no common file, as on
    several nodes of a Ray cluster: each node fetches the weights once.

    Args:
        path: A model file of `convert`.
        name: A name for `zerocopy.current` and `zerocopy.follow`.

    Returns:
        A reference of some hundred bytes. The weights stay while this process lives or any process has them loaded.

    Raises:
        ModelFileError: The file is damaged.
        MissingExtraError: zerocopy is not installed.

    Example:
        >>> import tempfile, zerocopy
        >>> from ternary import llm
        >>> config = llm.ModelConfig(64, hidden=32, inner=64, layers=1, heads=2, kv_heads=1, head_size=16, context=32)
        >>> llm.save(llm.Decoder(config, ternary=True), path := tempfile.mkdtemp() + "/m.ternary")
        >>> ref = llm.publish(path)
        >>> with llm.load(ref, threads=1) as model:
        ...     model.logits([1, 2, 3]).shape
        (3, 64)
        >>> zerocopy.unpublish(ref)
    """
    zerocopy = _zerocopy()
    file = open_file(path)
    arrays = {key: np.asarray(array).view(np.ndarray) for key, array in file.tensors.items()}
    ref: ModelRef = zerocopy.publish(replace(file, tensors=arrays), name=name)
    return ref


def publish_under(name: str, path: str | Path) -> ModelRef:
    """Like `publish`, for commands: whatever zerocopy refuses is a `TernaryError`."""
    zerocopy = _zerocopy()
    try:
        return publish(path, name=name)
    except (zerocopy.ZerocopyError, ValueError) as e:
        raise e if isinstance(e, TernaryError) else TernaryError(str(e)) from None


def follow_name(name: str) -> Any:
    """Return what looks up the newest version under a name; whatever zerocopy refuses is a `TernaryError`."""
    zerocopy = _zerocopy()
    try:
        return zerocopy.follow(name)
    except (zerocopy.ZerocopyError, ValueError) as e:
        raise TernaryError(str(e)) from None


def _zerocopy() -> ModuleType:
    try:
        import zerocopy
    except ImportError as e:
        raise MissingExtraError("sharing needs zerocopy; pip install 'pentad-ternary[share]'") from e
    return zerocopy
