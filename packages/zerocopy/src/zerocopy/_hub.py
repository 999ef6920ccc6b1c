"""Load pretrained models through their own library, transformers, which converts names and layouts of checkpoints."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from zerocopy._arena import Arena, InArena
from zerocopy._publish import Options, from_base, publish_made
from zerocopy._ref import ModelRef
from zerocopy.errors import CheckpointMismatchError, MissingExtraError

_NO_THREADS = "HF_DEACTIVATE_ASYNC_LOAD"  # its loader's threads would make tensors outside of our mode


def is_pretrained(model: nn.Module) -> bool:
    """Return whether a model is one of transformers, without importing it to ask."""
    library = sys.modules.get("transformers")
    kind = getattr(library, "PreTrainedModel", None)
    return kind is not None and isinstance(model, kind)


@contextmanager
def _in_this_thread() -> Iterator[None]:
    before = os.environ.get(_NO_THREADS)
    os.environ[_NO_THREADS] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[_NO_THREADS]
        else:
            os.environ[_NO_THREADS] = before


def load_through_library(model: Any, tensors: Mapping[str, torch.Tensor]) -> nn.Module:
    """Return a model of the same class and configuration with a checkpoint's tensors, converted by transformers.

    Raises:
        CheckpointMismatchError: The checkpoint lacks tensors of the model, or has others of other shapes.
    """
    kind, dtype = type(model), next(model.parameters()).dtype
    training = model.training
    with _in_this_thread():
        loaded, info = kind.from_pretrained(
            None, config=model.config, state_dict=dict(tensors), dtype=dtype, output_loading_info=True
        )
    _refuse_gaps(info)
    return loaded.train(training)  # type: ignore[no-any-return]  # transformers is untyped here


def _refuse_gaps(info: Mapping[str, Any]) -> None:
    """Raise if weights are missing: transformers would have filled them at random."""
    problems = [f"{name} is missing" for name in sorted(info.get("missing_keys", ()))]
    problems += [f"{entry} has another shape" for entry in sorted(map(str, info.get("mismatched_keys", ())))]
    if problems:
        raise CheckpointMismatchError("checkpoint and model do not fit: " + "; ".join(problems))


def from_pretrained(
    path_or_id: str | os.PathLike[str],
    auto_class: Any = None,
    *,
    name: str | None = None,
    version: int | None = None,
    base: ModelRef | None = None,
    directory: str | os.PathLike[str] | None = None,
    keep: bool = False,
    progress: bool = False,
    trust_remote_code: bool = False,
    **options: Any,
) -> ModelRef:
    """Publish a pretrained model of transformers, without putting its weights on the heap.

    Args:
        path_or_id: A folder, or the id of a model on the Hub.
        auto_class: The class whose `from_pretrained` loads it, or its name; `AutoModel` if None.
        name: See `publish`.
        version: See `publish`.
        base: See `publish`.
        directory: See `publish`.
        keep: See `publish`.
        progress: See `publish`.
        trust_remote_code: Run the checkpoint's own code, as transformers does for its argument of this name, and take
            it along for loaders that allow it.
        **options: Further arguments of the class's `from_pretrained`, such as `dtype` or `revision`.

    Returns:
        The reference to pass to other processes.

    Raises:
        CheckpointMismatchError: The checkpoint lacks tensors of the model.
        MissingExtraError: The library transformers is not installed.
        FileNotFoundError: It is a path, and there is nothing.

    Example:
        >>> import zerocopy
        >>> try:
        ...     zerocopy.from_pretrained("/no/such/folder", "AutoModelForCausalLM")
        ... except (OSError, zerocopy.errors.MissingExtraError):
        ...     print("not there")
        not there
    """
    how = Options(name, version, directory, keep, progress, base, trust_remote_code=trust_remote_code)
    return publish_pretrained(path_or_id, auto_class, how, **options)


def publish_pretrained(path_or_id: str | os.PathLike[str], auto_class: Any, how: Options, **options: Any) -> ModelRef:
    """Publish a pretrained model; the arguments are those of `from_pretrained`."""
    _require_folder(os.fspath(path_or_id))
    kind = _class(auto_class)
    if how.trust_remote_code:
        options = {**options, "trust_remote_code": True}

    def make(arena: Arena | None) -> nn.Module:
        assert arena is not None
        with _in_this_thread(), InArena(arena):
            model, info = kind.from_pretrained(path_or_id, output_loading_info=True, **options)
        _refuse_gaps(info)
        return model.eval()  # type: ignore[no-any-return]  # transformers is untyped here

    return publish_made(make, from_base(how.base), how, in_arena=True)


def _require_folder(path_or_id: str) -> None:
    """Refuse a path to nothing. The Hub would only say that it is no id."""
    is_path = os.path.isabs(path_or_id) or path_or_id.startswith((".", "~")) or path_or_id.count("/") > 1
    if is_path and not os.path.exists(path_or_id):
        home = "; write the home folder out in place of ~" if path_or_id.startswith("~") else ""
        raise FileNotFoundError(errno.ENOENT, f"there is no such folder{home}", path_or_id)


def _class(auto_class: Any) -> Any:
    if auto_class is not None and not isinstance(auto_class, str):
        return auto_class
    try:
        import transformers
    except ImportError as error:
        raise MissingExtraError(
            'this needs transformers: pip install transformers "pentad-zerocopy[safetensors]"'
        ) from error
    try:
        return getattr(transformers, auto_class or "AutoModel")
    except AttributeError as error:
        raise ValueError(f"transformers has no class {auto_class}") from error
