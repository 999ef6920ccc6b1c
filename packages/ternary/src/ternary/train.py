"""A compact training loop: schedule, mixed precision, clipping, resume, curves, and errors that say what went wrong.

Knows nothing of data sets or of the language.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sized
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from ternary.errors import DivergedError, ModelFileError, NonFiniteActivationError, VanishingGradientError
from ternary.wholefile import whole_file

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

    def __post_init__(self) -> None:
        """Refuse a schedule that does not exist."""
        if self.schedule not in SCHEDULES:
            raise ValueError(f"got schedule={self.schedule!r}; it is one of {', '.join(SCHEDULES)}")


@dataclass(slots=True)
class History:
    """What happened, one entry per epoch."""

    loss: list[float] = field(default_factory=list)
    accuracy: list[float] = field(default_factory=list)
    learning_rate: list[float] = field(default_factory=list)
    gradient_norm: list[float] = field(default_factory=list)


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


def make_optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    """Return AdamW that decays weights, but neither biases nor norms nor scales."""
    decayed = [p for n, p in model.named_parameters() if p.dim() > 1 and "scale_" not in n]
    plain = [p for n, p in model.named_parameters() if p.dim() <= 1 or "scale_" in n]
    groups = [{"params": decayed, "weight_decay": config.weight_decay}, {"params": plain, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=config.learning_rate)


def fit(
    model: nn.Module,
    batches: Callable[[], Iterable[tuple[Tensor, Tensor]]],
    config: TrainConfig | None = None,
    *,
    evaluate: Callable[[nn.Module], float] | None = None,
    loss: Callable[[Tensor, Tensor], Tensor] | None = None,
    checkpoint: str | Path | None = None,
    progress: Callable[[int, History], None] | None = None,
) -> History:
    """Train a model in place.

    Args:
        model: The model, on the device of the batches.
        batches: Called once per epoch; gives (inputs, targets). What has a length, as a DataLoader does, is read batch
            by batch; of anything else a whole epoch is held in memory, since the schedule needs to know its length.
        config: How to train.
        evaluate: Called after each epoch; its result is recorded as accuracy.
        loss: Of (outputs, targets); cross entropy by default.
        checkpoint: A file to resume from if it is there, and to write after each epoch, whole or not at all.
        progress: Called after each epoch with its number (from 1) and the history.

    Returns:
        The history, including that of a run that was resumed.

    Raises:
        DivergedError: The loss or a gradient is not finite, or the gradient norm exceeds `config.explode`.
        VanishingGradientError: No weight got a gradient for `config.vanish` steps.
        NonFiniteActivationError: An input is NaN or infinite.
        ModelFileError: The checkpoint is damaged or of another model.
        ValueError: The model has no parameter that can be trained.
    """
    config = config or TrainConfig()
    criterion = loss or (lambda y, t: functional.cross_entropy(y, t, label_smoothing=config.label_smoothing))
    if not any(p.requires_grad for p in model.parameters()):
        raise ValueError(f"{type(model).__name__} has no parameter that can be trained")
    optimizer = make_optimizer(model, config)
    device = next(model.parameters()).device
    scaler = torch.amp.GradScaler(device.type, enabled=config.amp and device.type == "cuda")
    history = History()
    first, step = 0, 0
    if checkpoint is not None and Path(checkpoint).exists():
        first, step = _resume(Path(checkpoint), model, optimizer, history)
    still = 0
    for epoch in range(first, config.epochs):
        model.train()
        given = batches()
        if not isinstance(given, Sized):
            given = list(given)
        steps = config.epochs * len(given)
        total, seen, norms = 0.0, 0, 0.0
        for x, target in given:
            if x.is_floating_point() and not bool(torch.isfinite(x).all()):
                raise NonFiniteActivationError(f"epoch {epoch + 1}, step {step}: an input is NaN or infinite")
            now = rate(step, steps, config)
            for group in optimizer.param_groups:
                group["lr"] = now
            optimizer.zero_grad(set_to_none=True)
            with torch.autocast(device.type, torch.float16 if scaler.is_enabled() else torch.bfloat16, config.amp):
                value = criterion(model(x), target)
            if not math.isfinite(value.item()):
                raise DivergedError(_diverged(f"the loss is {value.item()}", epoch, step, model))
            scaler.scale(value).backward()  # type: ignore[no-untyped-call] # torch's own lack
            scaler.unscale_(optimizer)
            norm = float(nn.utils.clip_grad_norm_(model.parameters(), config.clip or math.inf))
            if not scaler.is_enabled() and (not math.isfinite(norm) or norm > config.explode):
                raise DivergedError(_diverged(f"the gradient norm is {norm:.3g}", epoch, step, model))
            still = still + 1 if norm == 0.0 else 0
            if still >= config.vanish:
                raise VanishingGradientError(
                    f"no weight got a gradient for {still} steps; look for a saturated or detached layer"
                )
            scaler.step(optimizer)
            scaler.update()
            total += value.item() * len(x)
            seen += len(x)
            norms += norm
            step += 1
        history.loss.append(total / max(1, seen))
        history.learning_rate.append(optimizer.param_groups[0]["lr"])
        history.gradient_norm.append(norms / max(1, len(given)))
        history.accuracy.append(evaluate(model) if evaluate is not None else math.nan)
        if checkpoint is not None:
            _save(Path(checkpoint), epoch + 1, step, model, optimizer, history)
        if progress is not None:
            progress(epoch + 1, history)
    return history


def _diverged(what: str, epoch: int, step: int, model: nn.Module) -> str:
    bad = [n for n, p in model.named_parameters() if p.grad is not None and not bool(torch.isfinite(p.grad).all())]
    where = f"; gradients not finite in {', '.join(bad[:3])}" if bad else ""
    return f"epoch {epoch + 1}, step {step}: {what}{where}. Lower the learning rate, or clip gradients"


def _save(path: Path, epoch: int, step: int, model: nn.Module, optimizer: Any, history: History) -> None:
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


def _resume(path: Path, model: nn.Module, optimizer: Any, history: History) -> tuple[int, int]:
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


@torch.no_grad()
def accuracy(model: nn.Module, x: Tensor, target: Tensor, *, batch: int = 512) -> float:
    """Return the fraction of samples whose largest output is the target, in evaluation mode."""
    was = model.training
    model.eval()
    right = sum(
        int((model(x[i : i + batch]).argmax(-1) == target[i : i + batch]).sum()) for i in range(0, len(x), batch)
    )
    model.train(was)
    return right / max(1, len(x))


def shuffled(x: Tensor, target: Tensor, batch: int, *, seed: int = 0) -> Callable[[], Iterable[tuple[Tensor, Tensor]]]:
    """Return batches over tensors in a new order each epoch; a last batch of one is left out (batch norm needs two).

    The orders begin anew with each call of this function, so a resumed training does not go on with those of the
    interrupted one.
    """
    generator = torch.Generator().manual_seed(seed)

    def epoch() -> Iterable[tuple[Tensor, Tensor]]:
        order = torch.randperm(len(x), generator=generator)
        parts = [order[i : i + batch] for i in range(0, len(x), batch)]
        return [(x[i], target[i]) for i in parts if len(i) > 1]

    return epoch
