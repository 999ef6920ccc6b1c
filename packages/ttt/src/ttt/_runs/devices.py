"""Which slot of a pool uses which GPU: each process sees the one that it may use."""

from __future__ import annotations

import os
from collections.abc import Sequence

from ttt._backend import Backend
from ttt.errors import InvalidBackendError

VISIBLE = "CUDA_VISIBLE_DEVICES"


def uses_gpu(backend: Backend) -> bool:
    """Return whether a backend takes a GPU where there is one: it has a method `uses_gpu` that says so."""
    own = getattr(backend, "uses_gpu", None)
    return bool(own()) if own is not None else False


def visible_gpus() -> tuple[str, ...]:
    """Return the GPUs that this process may use, as `CUDA_VISIBLE_DEVICES` names them."""
    given = os.environ.get(VISIBLE)
    if given is not None:
        return tuple(name.strip() for name in given.split(",") if name.strip())
    import torch  # here: only a backend that uses a GPU needs to know

    return tuple(map(str, range(torch.cuda.device_count())))


def slots_of(
    workers: int | None, gpus: Sequence[str], *, per_gpu: int = 1, default: int = 1, most: int | None = None
) -> list[dict[str, str]]:
    """Return the environment of each slot; with GPUs each slot has one of them, and each GPU at most `per_gpu` slots.

    Args:
        workers: How many slots are wanted; None for all that the GPUs allow, or `default` without GPUs.
        gpus: The GPUs, empty for none.
        per_gpu: Slots per GPU.
        default: Slots where there are no GPUs.
        most: Slots that can be of use, such as the number of tasks; None for no bound.

    Raises:
        InvalidBackendError: More workers than the GPUs have room for.
    """
    if per_gpu < 1:
        raise ValueError(f"per_gpu: got {per_gpu}, wanted 1 or more")
    if not gpus:
        return [{} for _ in range(_at_most(workers or default, most))]
    room = len(gpus) * per_gpu
    if workers is not None and workers > room:
        raise InvalidBackendError(
            f"{workers} workers on {len(gpus)} GPUs with {per_gpu} tasks each: at most {room}; "
            "use fewer workers, or allow more tasks per GPU"
        )
    # Every GPU gets its first task before one gets its second.
    return [{VISIBLE: gpus[i % len(gpus)]} for i in range(_at_most(workers or room, most))]


def _at_most(slots: int, most: int | None) -> int:
    return slots if most is None else min(slots, max(1, most))
