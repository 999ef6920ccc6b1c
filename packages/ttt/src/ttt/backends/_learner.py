"""A canvas network in training: one step of it, which a GPU records once and then replays."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.optim.swa_utils import get_ema_multi_avg_fn

from ttt._tasks.batching import OUTSIDE
from ttt.backends._canvas import CanvasViT, rows_of
from ttt.backends._model_service import half_precision

Canvases = npt.NDArray[np.uint8]
WARMING = 3
"""Steps before the one that a GPU records: libraries choose their kernels and take their memory in the first ones."""


class CanvasLearner:
    """A network with a vector for each rule, its optimizer and its moving average.

    Args:
        model: The network, on its device.
        rules: How many rules there are.
        learning_rate: Of AdamW, before the first step.
    """

    def __init__(self, model: CanvasViT, rules: int, learning_rate: float) -> None:
        self.model = model
        self.device: torch.device = model.rule.device
        self.rules: nn.Parameter = nn.Parameter(torch.zeros(rules, 1, model.shape.width, device=self.device))
        self.parameters: dict[str, nn.Parameter] = {**dict(model.named_parameters()), "rules": self.rules}
        self.averages: dict[str, Tensor] = {k: p.detach().clone() for k, p in self.parameters.items()}
        recorded = self.device.type == "cuda"
        # A recorded step reads its learning rate from memory.
        rate = torch.tensor(learning_rate, device=self.device) if recorded else learning_rate
        self.optimizer: torch.optim.AdamW = torch.optim.AdamW(
            self.parameters.values(), lr=rate, weight_decay=0.01, fused=recorded, capturable=recorded
        )
        self._replay: Callable[[], None] | None = None
        self._inputs: tuple[Tensor, ...] = ()
        self._loss = torch.zeros((), device=self.device)

    def step(self, given: Canvases, wanted: Canvases, followed: Sequence[int], rate: float, decay: float) -> float:
        """Take a step of AdamW; return the loss before it.

        Args:
            given: Input canvases, (batch, side, side); every step has the same batch.
            wanted: Output canvases.
            followed: The rule that each of them follows.
            rate: The learning rate.
            decay: Share of the old value in the moving average.
        """
        inputs = tuple(torch.from_numpy(np.ascontiguousarray(x)) for x in (given, wanted, np.asarray(followed)))
        if not self._inputs:
            self._inputs = tuple(x.to(self.device) for x in inputs)
            if self.device.type == "cuda":
                self._replay = self._recorded()
        for kept, new in zip(self._inputs, inputs, strict=True):
            kept.copy_(new)
        for group in self.optimizer.param_groups:
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(rate)
            else:
                group["lr"] = rate
        (self._replay or self._descend)()
        follow = get_ema_multi_avg_fn(decay)  # type: ignore[no-untyped-call]
        follow(list(self.averages.values()), [p.detach() for p in self.parameters.values()], 0)
        return float(self._loss)

    def _descend(self) -> None:
        given, wanted, followed = self._inputs
        self.optimizer.zero_grad(set_to_none=True)
        with repeatable_attention(self.device):
            with half_precision(self.device):
                rules = self.model.rule + rows_of(self.rules.squeeze(1), followed).unsqueeze(1)
                logits = self.model(given.long(), rules)
            loss = canvas_loss(logits, wanted.long())
            torch.autograd.backward(loss)
        nn.utils.clip_grad_norm_(self.parameters.values(), 1.0)
        self.optimizer.step()
        self._loss.copy_(loss.detach())

    def _recorded(self) -> Callable[[], None]:
        """Record a step and return what repeats it; parameters and moments are as before."""
        moments = self.optimizer.state
        saved = [
            (p, p.detach().clone(), {k: v.clone() for k, v in moments[p].items()}) for p in self.parameters.values()
        ]
        replay = recording(self._descend, self.device)
        with torch.no_grad():
            for parameter, value, state in saved:
                parameter.copy_(value)
                for name, moment in moments[parameter].items():
                    moment.copy_(state[name]) if name in state else moment.zero_()
        return replay


@contextmanager
def repeatable_attention(device: torch.device) -> Iterator[None]:
    """Use the attention kernel of a GPU whose gradient repeats; those of cuDNN and flash differ from run to run.

    On an H200 trainings were equal to the bit up to a batch of 64, and differed at 128.
    """
    if device.type == "cuda":
        with sdpa_kernel([SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]):
            yield
    else:
        yield


@cache
def recording_stream(device: torch.device) -> torch.cuda.Stream:
    """Return the stream that steps are recorded on: one for all, as cuBLAS keeps 32 MB for each that it has seen."""
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]


def recording(work: Callable[[], None], device: torch.device) -> Callable[[], None]:
    """Do some work a few times, then record its kernels as one CUDA graph; return what launches them.

    A step of a small network is hundreds of kernels, which take a processor longer to launch than a GPU to run.
    """
    own = recording_stream(device)
    own.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(own):
        for _ in range(WARMING):
            work()
    torch.cuda.current_stream(device).wait_stream(own)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=own, capture_error_mode="thread_local"):
        work()
    replay: Callable[[], None] = graph.replay
    return replay


def canvas_loss(logits: Tensor, target: Tensor) -> Tensor:
    """Return the mean cross entropy of predicted canvases, cells outside of the grids at a tenth of the weight.

    Most of a canvas is outside; its border still teaches the output's size.
    """
    losses = functional.cross_entropy(logits.float().flatten(0, 2), target.flatten(), reduction="none")
    weight = 1 - 0.9 * (target.flatten() == OUTSIDE).float()
    return (losses * weight).sum() / weight.sum()
