"""The checkpoint of a training: written whole or not at all, and read again."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ternary._training.config import History
from ternary._wholefile import whole_file
from ternary.errors import ModelFileError


def save_checkpoint(path: Path, epoch: int, step: int, model: nn.Module, optimizer: Any, history: History) -> None:
    state = {
        "epoch": epoch,
        "step": step,
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "history": asdict(history),
        "random": torch.get_rng_state(),
    }
    with whole_file(path) as temporary:
        torch.save(state, temporary)


def resume(path: Path, model: nn.Module, optimizer: Any, history: History) -> tuple[int, int]:
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)  # written on a GPU, perhaps, that is not here
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        torch.set_rng_state(state["random"])
        for key, values in state["history"].items():
            getattr(history, key)[:] = values
        return int(state["epoch"]), int(state["step"])
    except Exception as e:  # torch raises nearly everything for a damaged file
        raise ModelFileError(f"the checkpoint {path} is damaged or of another model: {e}") from e
