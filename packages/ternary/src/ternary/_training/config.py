"""How a training goes: its settings, its learning rate at each step, and what it records."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

SCHEDULES = ("cosine", "step", "constant")


@dataclass(frozen=True, slots=True)
class TrainConfig:
    """How to train.

    Args:
        epochs: Passes over the data.
        learning_rate: Its peak.
        schedule: 'cosine' to zero, 'step' (a tenth at 1/2 and 3/4), or 'constant'.
        warmup: Fraction of all steps over which the rate rises from zero.
        weight_decay: For weights of two dimensions or more.
        clip: Largest gradient norm; 0 for none.
        amp: Mixed precision: bfloat16 on the CPU, float16 with loss scaling on CUDA.
        label_smoothing: Of the cross entropy.
        explode: A gradient norm above this ends the training with `DivergedError`.
        vanish: So many steps with a zero gradient in every weight end it with `VanishingGradientError`.
        distill: With a teacher, the weight of its outputs in the loss; the targets have the rest.
        temperature: With a teacher, what both outputs are divided by before they are compared.
        gradual: Fraction of all steps over which ternary layers go from their float weight to the ternary one, through
            mixtures of both. 0 starts ternary.
        cutmix: With a teacher, the fraction of samples in which a random span of the last dimension comes from another
            sample of the batch (Yun et al., 2019). Their targets say nothing; the teacher's outputs alone count.
        reestimate_norms: After the last epoch, set the running statistics of batch normalization to averages over its
            batches, as they are with the last weights and without dropout or `cutmix`.

    Example:
        >>> import ternary
        >>> ternary.TrainConfig(epochs=3, schedule="constant").clip
        1.0
    """

    epochs: int = 20
    learning_rate: float = 2e-3
    schedule: Literal["cosine", "step", "constant"] = "cosine"
    warmup: float = 0.05
    weight_decay: float = 1e-4
    clip: float = 1.0
    amp: bool = False
    label_smoothing: float = 0.0
    explode: float = 1e8
    vanish: int = 20
    distill: float = 0.7
    temperature: float = 2.0
    gradual: float = 0.0
    cutmix: float = 0.0
    reestimate_norms: bool = False

    def __post_init__(self) -> None:
        """Refuse values that no training can use."""
        if isinstance(self.epochs, bool) or not hasattr(self.epochs, "__index__") or self.epochs < 0:
            raise ValueError(f"got epochs={self.epochs!r}; wanted a whole number, 0 or more")
        if self.schedule not in SCHEDULES:
            raise ValueError(f"got schedule={self.schedule!r}; it is one of {', '.join(SCHEDULES)}")
        if not 0.0 <= self.distill <= 1.0 or not self.temperature > 0.0:
            raise ValueError(
                f"got distill={self.distill}, temperature={self.temperature}; wanted a fraction and a number above 0"
            )
        if not 0.0 <= self.gradual < 1.0:
            raise ValueError(f"got gradual={self.gradual}; wanted a fraction, and steps left for the ternary weights")
        if not 0.0 <= self.cutmix <= 1.0:
            raise ValueError(f"got cutmix={self.cutmix}; wanted a fraction")


@dataclass(slots=True)
class History:
    """What happened, one entry per epoch."""

    loss: list[float] = field(default_factory=list)
    accuracy: list[float] = field(default_factory=list)
    learning_rate: list[float] = field(default_factory=list)
    gradient_norm: list[float] = field(default_factory=list)


def ternary_part(step: int, steps: int, config: TrainConfig) -> float:
    """Return how much of the ternary weight ternary layers use at a step of a training of `steps` steps."""
    over = config.gradual * steps
    return min(1.0, step / over) if over > 0 else 1.0


def rate(step: int, steps: int, config: TrainConfig) -> float:
    """Return the learning rate of a step of a training of `steps` steps."""
    warm = int(config.warmup * steps)
    if step < warm:
        return config.learning_rate * (step + 1) / warm
    done = (step - warm) / max(1, steps - warm)
    if config.schedule == "cosine":
        return config.learning_rate * 0.5 * (1 + math.cos(math.pi * done))
    if config.schedule == "step":
        return config.learning_rate * (0.01 if done >= 0.75 else 0.1 if done >= 0.5 else 1.0)
    return config.learning_rate
