"""A training's whole state as named arrays and back (parameters, AdamW's moments, averages)."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from ttt.checkpoint import CheckpointStore
from ttt.errors import CheckpointWriteError

Named = Mapping[str, torch.Tensor]
Arrays = dict[str, npt.NDArray[np.float32]]


def pack(parameters: Named, optimizer: torch.optim.AdamW, averages: Named | None = None) -> Arrays:
    """Return parameters, the optimizer's moments and step counts, and averages, as float32 arrays by name."""

    def array(t: torch.Tensor) -> npt.NDArray[np.float32]:
        out: npt.NDArray[np.float32] = t.detach().to("cpu", torch.float32).numpy().copy()
        return out

    out = {f"parameter/{k}": array(v) for k, v in parameters.items()}
    for k, v in parameters.items():
        out |= {f"optimizer/{part}/{k}": array(t) for part, t in optimizer.state[v].items()}
    return out | {f"average/{k}": array(v) for k, v in (averages or {}).items()}


def keep(store: CheckpointStore, arrays: Arrays, about: Mapping[str, Any], *, score: float) -> None:
    """Write a version and keep the two newest and the best; a disk that is full does not stop the training."""
    try:
        store.save(arrays, about, score=score)
        store.prune(2)
    except (CheckpointWriteError, OSError) as error:
        print(f"ttt: the training goes on without this checkpoint: {error}", file=sys.stderr)


@torch.no_grad()
def unpack(arrays: Mapping[str, npt.NDArray[np.float32]], parameters: Named, optimizer: torch.optim.AdamW) -> None:
    """Restore parameters and optimizer from what `pack` returned, in place."""
    for k, v in parameters.items():
        v.copy_(torch.from_numpy(arrays[f"parameter/{k}"].copy()))
        for part in ("step", "exp_avg", "exp_avg_sq"):
            if f"optimizer/{part}/{k}" not in arrays:
                continue
            value, state = torch.from_numpy(arrays[f"optimizer/{part}/{k}"].copy()), optimizer.state[v]
            if part in state:  # a recorded step goes on reading the same memory
                state[part].copy_(value)
            else:
                on_host = part == "step" and not optimizer.defaults["capturable"]
                state[part] = value if on_host else value.to(v.device, v.dtype)


@torch.no_grad()
def unpack_averages(arrays: Mapping[str, npt.NDArray[np.float32]], averages: Named) -> None:
    """Restore averages, in place."""
    for k, v in averages.items():
        v.copy_(torch.from_numpy(arrays[f"average/{k}"].copy()))
