"""Run a build function without the cost of its initial weights, and notice when skipping them would show.

Random fills of large tensors are skipped while the model is built: untouched pages take no memory, and the checkpoint
overwrites the tensors. What depends on a skipped fill is followed: a tensor that was computed from one, or drawn from
the random stream after one. If such a tensor is still in the model when the checkpoint's are in place, the model is
built again without skipping.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from zerocopy._arena import Arena, InArena, run_in_arena
from zerocopy._torch_private import schema_of

_LARGE = 1 << 16  # bytes; smaller tensors are filled
_FILLS = ("normal_", "uniform_", "random_", "bernoulli_", "exponential_", "log_normal_", "cauchy_", "geometric_")


class SkipLargeFills(InArena):  # type: ignore[no-untyped-call]
    """Skips random fills of large tensors and follows what depends on them.

    Args:
        arena: Where copies of large tensors are made.
        skip: Whether to skip at all.
    """

    def __init__(self, arena: Arena, *, skip: bool) -> None:
        super().__init__(arena, copies_only=True)
        self.skip = skip
        self.skipped = False
        self.escaped = False  # a skipped value became a Python number
        self.tainted: dict[int, torch.UntypedStorage] = {}  # by address; kept alive, so that no address is reused

    def taints(self, tensor: object) -> bool:
        """Return whether a tensor depends on a skipped fill."""
        return isinstance(tensor, torch.Tensor) and _address(tensor) in self.tainted

    def taint(self, tensor: object) -> None:
        """Note that a tensor depends on a skipped fill."""
        if isinstance(tensor, torch.Tensor) and (address := _address(tensor)):
            self.tainted[address] = tensor.untyped_storage()


def _address(tensor: torch.Tensor) -> int:
    try:
        return tensor.untyped_storage().data_ptr()
    except (RuntimeError, NotImplementedError):
        return 0


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, list | tuple):
        for part in value:
            yield from _tensors(part)
    elif isinstance(value, dict):
        yield from _tensors(list(value.values()))


def _skip_or_run(
    mode: SkipLargeFills, func: Any, _types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
) -> Any:
    kwargs = kwargs or {}
    name = schema_of(func).name.removeprefix("aten::")
    if not mode.skip:
        return run_in_arena(mode, func, args, kwargs)
    if name in _FILLS and args[0].device.type == "cpu" and args[0].nbytes >= _LARGE:
        mode.skipped = True
        mode.taint(args[0])
        return args[0]
    inputs = list(_tensors((args, kwargs)))
    depends = any(map(mode.taints, inputs)) or (mode.skipped and torch.Tag.nondeterministic_seeded in func.tags)
    result = run_in_arena(mode, func, args, kwargs)
    if depends:
        if name in ("_local_scalar_dense", "equal"):
            mode.escaped = True
        written = [args[index] for index, arg in enumerate(schema_of(func).arguments[: len(args)]) if _is_written(arg)]
        for tensor in _tensors((result, written)):
            mode.taint(tensor)
    return result


def _is_written(argument: Any) -> bool:
    return argument.alias_info is not None and argument.alias_info.is_write


# Set after the class is made for the reason given in _writes.py: it keeps torch._dynamo out.
SkipLargeFills.__torch_dispatch__ = _skip_or_run  # type: ignore[method-assign, assignment]


@contextmanager
def random_state() -> Iterator[Callable[[], None]]:
    """Yield a function that brings back the random state of now, so that a second build draws the same numbers."""
    torch_state, python_state = torch.get_rng_state(), random.getstate()

    def restore() -> None:
        torch.set_rng_state(torch_state)
        random.setstate(python_state)

    yield restore


def is_spoiled(mode: SkipLargeFills, model: nn.Module) -> bool:
    """Return whether a model still holds something that depends on a skipped fill."""
    held = [
        *model.parameters(),
        *model.buffers(),
        *_tensors([list(vars(module).values()) for module in model.modules()]),
    ]
    return mode.escaped or any(map(mode.taints, held))
