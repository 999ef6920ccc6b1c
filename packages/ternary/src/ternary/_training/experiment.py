"""Train a source on data with several quantizers and seeds, pack the results and measure them."""

from __future__ import annotations

import functools
import math
import statistics
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ternary import _modelfile as modelfile
from ternary._language.compiler import compile as compile_source
from ternary._options import QUANTIZERS
from ternary._quantization.calibration import mode
from ternary._training import History, TrainConfig, accuracy, fit, shuffled
from ternary._training.data import Split
from ternary.errors import TernaryError, UnknownQuantizerError

OTHER_METHODS = ("float", "as written", "distilled")


@dataclass(frozen=True, slots=True)
class Result:
    """One method on one data set: held-out accuracies by seed, the last history, and the packed file if written."""

    method: str
    accuracies: tuple[float, ...]
    history: History
    file: Path | None = None
    file_bytes: int = 0

    @property
    def mean(self) -> float:
        """The mean accuracy."""
        return statistics.fmean(self.accuracies)

    @property
    def spread(self) -> float:
        """The standard deviation over seeds, 0 for one."""
        return statistics.stdev(self.accuracies) if len(self.accuracies) > 1 else 0.0


@dataclass(frozen=True, slots=True)
class Plan:
    """What to train.

    Args:
        source: A program, whose model has a parameter `quantizer: str` if methods are compared.
        model: Which model; may be empty if there is one.
        arguments: Arguments of the model.
        methods: 'float', 'as written', 'distilled' (as written, starting from the float network of the same seed, which
            is its teacher), or names of quantizers.
        seeds: How many trainings per method.
        first_seed: The seed of the first one; each further one has the next number.
        batch: Samples per step.
        config: How to train.
        student: How to train distilled networks; as the others by default.
        student_arguments: Arguments of distilled models that differ from `arguments`, as the share of a dropout. Their
            weights keep the teacher's shapes.
        shape: The shape of one sample, if the data's own is not what the model takes.
    """

    source: str
    model: str = ""
    arguments: dict[str, Any] = field(default_factory=dict)
    methods: tuple[str, ...] = ("as written",)
    seeds: int = 1
    first_seed: int = 0
    batch: int = 64
    config: TrainConfig = field(default_factory=TrainConfig)
    student: TrainConfig | None = None
    student_arguments: dict[str, Any] = field(default_factory=dict)
    shape: tuple[int, ...] = ()


def run(
    plan: Plan,
    split: Split,
    out: Path | None = None,
    *,
    progress: Callable[[str, int, int, History], None] | None = None,
) -> list[Result]:
    """Train every method with every seed and measure the held-out accuracy of the model read from its file.

    The accuracy of a ternary method is that of its packed file, read again, not that of the model in training.

    Args:
        plan: What to train.
        split: The data.
        out: A directory for the packed file of each ternary method's first seed and a float file of the others.
        progress: Called with method, seed, epoch and history after each epoch.

    Returns:
        One result per method, in order.

    Raises:
        UnknownQuantizerError: A method is none of these and no quantizer.
        TernaryError: The model cannot be made with the arguments, or does not take the data.
    """
    for method in plan.methods:
        if method not in (*QUANTIZERS, *OTHER_METHODS):
            wanted = ", ".join(("float", "distilled", *QUANTIZERS))
            raise UnknownQuantizerError(f"unknown method {method!r}; it is one of {wanted}")
    if plan.shape:
        own = split.train_x.shape[1:]
        if own.numel() != math.prod(plan.shape):
            raise TernaryError(f"a sample has shape {list(own)}, which cannot become {list(plan.shape)}")
        shaped = (x.reshape(len(x), *plan.shape) for x in (split.train_x, split.test_x))
        train_x, test_x = shaped
        split = replace(split, train_x=train_x, test_x=test_x)
    teachers: dict[int, nn.Module] = {}  # the float networks, by seed
    return [_method(plan, split, method, out, progress, teachers) for method in plan.methods]


def _method(
    plan: Plan, split: Split, method: str, out: Path | None, progress: Any, teachers: dict[int, nn.Module]
) -> Result:
    found: list[float] = []
    file: Path | None = None
    history = History()
    for seed in range(plan.first_seed, plan.first_seed + plan.seeds):
        if method == "distilled" and seed not in teachers:
            teachers[seed] = _trained(plan, split, "float", seed, progress)[0]
        teacher = teachers[seed] if method == "distilled" else None
        model, history = _trained(plan, split, method, seed, progress, teacher)
        if method == "float":
            teachers[seed] = model
        measured = model
        if out is not None and seed == plan.first_seed:
            file = out / f"{type(model).__name__.lower()}-{method.replace(' ', '-')}.safetensors"
            modelfile.save(model, file, arguments=_arguments(plan, method))
            if method != "float":
                measured = modelfile.load(file)
        found.append(accuracy(measured, split.test_x, split.test_y))
    return Result(method, tuple(found), history, file, 0 if file is None else file.stat().st_size)


def _arguments(plan: Plan, method: str) -> dict[str, Any]:
    own: dict[str, Any] = {} if method in ("float", "as written") else {"quantizer": method}
    return plan.arguments | (plan.student_arguments if method == "distilled" else own)


def _trained(
    plan: Plan, split: Split, method: str, seed: int, progress: Any, teacher: nn.Module | None = None
) -> tuple[nn.Module, History]:
    """Train one network; with a teacher, start from its weights and learn its outputs too."""
    factory = compile_source(plan.source, plan.model, quantized=method != "float")
    torch.manual_seed(seed)
    model = _made(factory, _arguments(plan, method), split)
    if teacher is not None:
        model.load_state_dict(teacher.state_dict())
    history = fit(
        model,
        shuffled(split.train_x, split.train_y, plan.batch, seed=seed),
        plan.student if teacher is not None and plan.student is not None else plan.config,
        teacher=teacher,
        evaluate=lambda m: accuracy(m, split.test_x, split.test_y),
        progress=None if progress is None else functools.partial(_tell, progress, method, seed),
    )
    return model, history


def _made(factory: type[nn.Module], arguments: dict[str, Any], split: Split) -> nn.Module:
    """Make the model and try it on two samples, so that a mismatch is an error before hours of training."""
    name = factory.__name__
    try:
        model = factory(**arguments)
    except (TypeError, ValueError, RuntimeError) as e:
        raise TernaryError(f"{name} cannot be made with {arguments}: {e}") from e
    shape = list(split.train_x.shape[1:])
    try:
        with torch.no_grad(), mode(model, training=False):
            y = model(split.train_x[:2])
    except (TypeError, RuntimeError) as e:
        raise TernaryError(f"{name} does not take samples of shape {shape}: {e}") from e
    if y.dim() != 2 or y.shape[1] < split.classes:
        raise TernaryError(f"{name} returns {list(y.shape)} for two samples; the data have {split.classes} classes")
    return model


def _tell(progress: Callable[[str, int, int, History], None], method: str, seed: int, epoch: int, h: History) -> None:
    progress(method, seed, epoch, h)
