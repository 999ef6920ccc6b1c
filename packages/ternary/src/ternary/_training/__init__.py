"""Training: the loop, small data sets, and comparing quantizers on them."""

from __future__ import annotations

from ternary._training.batches import accuracy, shuffled
from ternary._training.config import SCHEDULES, History, TrainConfig, rate
from ternary._training.loop import fit, make_optimizer

__all__ = ["SCHEDULES", "History", "TrainConfig", "accuracy", "fit", "make_optimizer", "rate", "shuffled"]
