"""A compact training loop with schedules, mixed precision, clipping, resume, and errors that name the cause."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable, Mapping, Sized
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from ternary._quantization.calibration import mode, output_of, reestimate_batch_norm, run
from ternary._training.batches import cut_and_mixed, tensors_of
from ternary._training.checkpoint import resume, save_checkpoint
from ternary._training.config import History, TrainConfig, rate, ternary_part
from ternary.errors import DivergedError, NoBatchesError, NonFiniteActivationError, VanishingGradientError
from ternary.nn._layers import ternary_layers


def make_optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    """Return AdamW that decays weights, but neither biases nor norms nor scales."""
    decayed = [p for n, p in model.named_parameters() if p.dim() > 1 and "scale_" not in n]
    plain = [p for n, p in model.named_parameters() if p.dim() <= 1 or "scale_" in n]
    groups = [{"params": decayed, "weight_decay": config.weight_decay}, {"params": plain, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=config.learning_rate)


def fit(  # long because its documentation counts too
    model: nn.Module,
    batches: Callable[[], Iterable[Any]],
    config: TrainConfig | None = None,
    *,
    teacher: nn.Module | None = None,
    evaluate: Callable[[nn.Module], float] | None = None,
    loss: Callable[[Tensor, Tensor], Tensor] | None = None,
    checkpoint: str | Path | None = None,
    progress: Callable[[int, History], None] | None = None,
) -> History:
    """Train a model in place.

    Args:
        model: The model, on the device of the batches.
        batches: Called once per epoch; returns pairs (inputs, targets), or mappings of named inputs in which "labels"
            are the targets. Inputs are a tensor, a tuple or a mapping. A result with a length, as a DataLoader, is read
            batch by batch; any other is first read into a list, since the schedule needs the length.
        config: How to train.
        teacher: A model with the same outputs, usually the float form of this one. The loss then also measures how far
            the outputs are from the teacher's (Hinton et al., 2015), as `config.distill` and `config.temperature` say.
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
        TernaryError: `config.cutmix` finds no span in inputs of this shape.
        NoBatchesError: An epoch has no batch, as where each call returns the same iterator.
        ValueError: The model has no parameter that can be trained.

    Example:
        >>> import torch, ternary
        >>> x, y = torch.randn(32, 4), torch.zeros(32, dtype=torch.int64)
        >>> config = ternary.TrainConfig(epochs=5, learning_rate=0.1)
        >>> history = ternary.fit(torch.nn.Linear(4, 2), lambda: [(x, y)], config)
        >>> history.loss[-1] < history.loss[0]
        True
    """
    config = config or TrainConfig()
    if not callable(batches):
        raise TypeError(f"batches is {batches!r:.80}; wanted a function that returns them, as lambda: data")
    criterion = loss or (lambda y, t: functional.cross_entropy(y, t, label_smoothing=config.label_smoothing))
    if not any(p.requires_grad for p in model.parameters()):
        raise ValueError(f"{type(model).__name__} has no parameter that can be trained")
    training = _Training(model, config, criterion, teacher)
    first = 0
    if checkpoint is not None and Path(checkpoint).exists():
        first, training.step = resume(Path(checkpoint), model, training.optimizer, training.history)
    for epoch in range(first, config.epochs):
        model.train()
        found = batches()
        given = found if isinstance(found, Sized) else list(found)
        if len(given) == 0:
            raise NoBatchesError(
                f"epoch {epoch + 1} has no batch; batches() returned {found!r:.80}, which is empty or was read before"
            )
        with contextlib.nullcontext() if teacher is None else mode(teacher, training=False):
            training.epoch(epoch, given)
        if config.reestimate_norms and epoch == config.epochs - 1:
            reestimate_batch_norm(model, (_inputs_and_target(batch)[0] for batch in given))
        history = training.history
        history.accuracy.append(evaluate(model) if evaluate is not None else math.nan)
        if checkpoint is not None:
            save_checkpoint(Path(checkpoint), epoch + 1, training.step, model, training.optimizer, history)
        if progress is not None:
            progress(epoch + 1, history)
    return training.history


class _Training:
    """One training: the model, its optimizer, and where it stands."""

    def __init__(
        self,
        model: nn.Module,
        config: TrainConfig,
        criterion: Callable[[Tensor, Tensor], Tensor],
        teacher: nn.Module | None,
    ) -> None:
        self.model, self.config, self.criterion, self.teacher = model, config, criterion, teacher
        self.optimizer = make_optimizer(model, config)
        self.device = next(model.parameters()).device
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=config.amp and self.device.type == "cuda")
        self.history = History()
        self.step = 0
        self.still = 0  # steps in a row without a gradient
        self.gradual = list(ternary_layers(model).values()) if config.gradual else []

    def epoch(self, epoch: int, given: Iterable[Any]) -> None:
        """Train on every batch once and record the means; afterwards ternary layers are wholly ternary."""
        try:
            self._epoch(epoch, given)
        finally:
            for layer in self.gradual:
                layer.ternary_part = 1.0

    def _epoch(self, epoch: int, given: Iterable[Any]) -> None:
        count = len(given)  # type: ignore[arg-type] # the caller has made it sized
        total, seen, norms = 0.0, 0, 0.0
        for batch in given:
            x, target = _inputs_and_target(batch)
            if not all(bool(torch.isfinite(t).all()) for t in tensors_of(x) if t.is_floating_point()):
                raise NonFiniteActivationError(f"epoch {epoch + 1}, step {self.step}: an input is NaN or infinite")
            for group in self.optimizer.param_groups:
                group["lr"] = rate(self.step, self.config.epochs * count, self.config)
            for layer in self.gradual:
                layer.ternary_part = ternary_part(self.step, self.config.epochs * count, self.config)
            value, norm = self.one_step(x, target, epoch)
            total += value * len(target)
            seen += len(target)
            norms += norm
            self.step += 1
        self.history.loss.append(total / max(1, seen))
        self.history.learning_rate.append(self.optimizer.param_groups[0]["lr"])
        self.history.gradient_norm.append(norms / max(1, count))

    def loss(self, x: Any, target: Tensor) -> Tensor:
        """Return the loss of a batch: by its targets, and with a teacher also by the teacher's outputs."""
        if self.teacher is None:
            return self.criterion(output_of(run(self.model, x)), target)
        config = self.config
        whole: Tensor | None = None  # which samples their targets still fit
        if config.cutmix:
            x, whole = cut_and_mixed(x, config.cutmix)
        y = output_of(run(self.model, x))
        with torch.no_grad():
            wanted = output_of(run(self.teacher, x))
        if wanted.shape != y.shape:
            raise ValueError(f"the teacher returns {list(wanted.shape)}, the model {list(y.shape)}; wanted the same")
        heat, part = config.temperature, config.distill
        log, soft = (y / heat).flatten(0, -2).log_softmax(-1), (wanted / heat).flatten(0, -2).softmax(-1)
        value = part * heat**2 * functional.kl_div(log, soft, reduction="batchmean")
        if whole is None:
            return (1 - part) * self.criterion(y, target) + value
        if part == 1 or not bool(whole.any()):
            return value
        return (1 - part) * self.criterion(y[whole], target[whole]) + value

    def one_step(self, x: Any, target: Tensor, epoch: int) -> tuple[float, float]:
        """Take one step; return the loss and the norm of the gradient."""
        config, scaler, model = self.config, self.scaler, self.model
        self.optimizer.zero_grad(set_to_none=True)
        with torch.autocast(self.device.type, torch.float16 if scaler.is_enabled() else torch.bfloat16, config.amp):
            value = self.loss(x, target)
        if not math.isfinite(value.item()):
            raise DivergedError(_diverged(f"the loss is {value.item()}", epoch, self.step, model))
        scaler.scale(value).backward()  # type: ignore[no-untyped-call] # torch's own lack
        scaler.unscale_(self.optimizer)
        norm = float(nn.utils.clip_grad_norm_(model.parameters(), config.clip or math.inf))
        if not scaler.is_enabled() and (not math.isfinite(norm) or norm > config.explode):
            raise DivergedError(_diverged(f"the gradient norm is {norm:.3g}", epoch, self.step, model))
        self.still = self.still + 1 if norm == 0.0 else 0
        if self.still >= config.vanish:
            raise VanishingGradientError(
                f"no weight got a gradient for {self.still} steps; look for a saturated or detached layer"
            )
        scaler.step(self.optimizer)
        scaler.update()
        return value.item(), norm


def _inputs_and_target(batch: Any) -> tuple[Any, Tensor]:
    if isinstance(batch, Mapping):
        if "labels" not in batch:
            raise ValueError(
                f"a batch has the names {', '.join(map(str, batch))}; its targets are to be called 'labels'"
            )
        return {k: v for k, v in batch.items() if k != "labels"}, batch["labels"]
    x, target = batch
    return x, target


def _diverged(what: str, epoch: int, step: int, model: nn.Module) -> str:
    bad = [n for n, p in model.named_parameters() if p.grad is not None and not bool(torch.isfinite(p.grad).all())]
    where = f"; gradients not finite in {', '.join(bad[:3])}" if bad else ""
    return f"epoch {epoch + 1}, step {step}: {what}{where}. Lower the learning rate, or clip gradients"
