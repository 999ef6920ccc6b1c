"""The `vit` backend: a canvas transformer trained per task, from scratch or from weights; made for a GPU."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from ttt._budget import Clock, parse_bytes
from ttt._runs.records import data_digest
from ttt._tasks.augment import View, random_views
from ttt._tasks.batching import OUTSIDE, pad
from ttt.backends._canvas import CanvasShape, CanvasViT
from ttt.backends._learner import CanvasLearner
from ttt.backends._model_service import choose_device, half_precision, seeded, within_gpu_memory
from ttt.backends._sharing import on_this_node, published
from ttt.backends._training_state import keep, pack, unpack, unpack_averages
from ttt.checkpoint import CheckpointStore
from ttt.errors import InvalidBackendError
from ttt.values import Candidate, Grid, Progress, Task, as_grid, grid_bytes, same

__all__ = ["VitBackend", "VitTraining", "load_canvas"]

UNFITTED, FITTED = 0.04, 0.75
"""Claims for full agreement of all views by a net that reproduces none, or all, of the training pairs."""


@dataclass(frozen=True)
class VitBackend:
    """Trains a small vision transformer on views of a task's pairs and lets views of the test input vote.

    Example:
        >>> from ttt.backends.vit import VitBackend
        >>> VitBackend(steps=20, device="cpu").name
        'vit'

    Attributes:
        shape: Fields of CanvasShape.
        weights: A safetensors file to start from, of the same shape.
        device: `auto`, `cpu`, `cuda`; on CUDA in bf16.
        steps: Training steps at most; `batch` views per step.
        views: Symmetries and colour orders that are learned, each with a rule of its own: a mirror image from left to
            right is one from top to bottom once the grids are turned.
        prediction_views: Views that vote, at most `views`.
        average: Share of the old value in the weights' moving average, which predicts.
        share: Read `weights` once per machine and let every task's process map them (extra `zerocopy`); a process
            copies them only as it trains them. The run sets `shared` to a reference to them.
        gpu_memory: What PyTorch may allocate on a GPU for one task, such as "8GB"; None is all of it.
    """

    shape: dict[str, int] = field(default_factory=dict)
    weights: str | None = None
    device: str = "auto"
    steps: int = 400
    batch: int = 16
    learning_rate: float = 1e-3
    average: float = 0.95
    views: int = 16
    prediction_views: int = 16
    answer_every: int = 100
    share: bool = False
    shared: Any = field(default=None, repr=False)
    gpu_memory: str | None = None
    name: str = "vit"

    def __post_init__(self) -> None:
        """Refuse an invalid shape, and a `share` that is neither true nor false."""
        if not isinstance(self.share, bool):
            raise InvalidBackendError(f"vit: share: got {self.share!r}, wanted true or false")
        if self.weights is not None and Path(self.weights).is_file():
            # Worker processes and nodes may have another working folder.
            object.__setattr__(self, "weights", str(Path(self.weights).resolve()))
        try:
            CanvasShape(**self.shape)
        except (TypeError, ValueError) as error:
            raise InvalidBackendError(f"vit: shape: {error}") from error

    def preflight(self) -> None:
        """Check device, GPU memory and weights."""
        choose_device(self.device)
        if self.gpu_memory is not None:
            parse_bytes(self.gpu_memory)
        if self.weights is not None and self.shared is None:
            load_canvas(CanvasShape(**self.shape), self.weights)

    def identity(self) -> dict[str, str]:
        """Return the SHA-256 of the weights; empty without them."""
        return data_digest(p for p in [Path(self.weights or "")] if p.is_file())

    def uses_gpu(self) -> bool:
        """Return whether the device may be a GPU."""
        return self.device == "auto" or self.device.startswith("cuda")

    @contextmanager
    def sharing(self) -> Iterator[VitBackend]:
        """Yield the backend for processes started within the block, see `ttt._backend.sharing`."""
        weights = self.weights
        if self.shared is not None:
            with on_this_node(self.shared) as ref:
                yield replace(self, shared=ref)
        elif self.share and weights is not None:
            with published(lambda: load_canvas(CanvasShape(**self.shape), weights)) as ref:
                yield replace(self, shared=ref)
        else:
            yield self

    def solve(self, task: Task, clock: Clock, workdir: Path | None) -> Iterator[Progress]:
        """Train, and answer every `answer_every` steps and at the end."""
        with within_gpu_memory(choose_device(self.device), self.gpu_memory):
            yield from self._train(task, clock, workdir)

    def _train(self, task: Task, clock: Clock, workdir: Path | None) -> Iterator[Progress]:
        training = VitTraining(self, task, clock.seed)
        store = None if workdir is None else CheckpointStore(workdir / "vit", kind="vit")
        if store is not None:
            training.resume(store)
            clock.spend(training.step)
        answered = -1
        # The learning rate falls with the steps done or the share of time gone, whichever is more.
        total = min(self.steps, clock.budget.steps or self.steps)
        allowed = clock.seconds_left
        reserve = 0.0
        if not math.isinf(allowed):
            # An answer at once, which also shows how much time the last one will need.
            begun = time.monotonic()
            yield training.progress(total)
            reserve = min(0.5 * allowed, 1.5 * (time.monotonic() - begun) + 0.1)
        while training.step < total and not clock.stop() and clock.seconds_left > reserve:
            time_gone = 0.0 if math.isinf(allowed) else 1 - clock.seconds_left / allowed
            training.one_step(max(training.step / total, time_gone))
            clock.spend()
            if training.step % self.answer_every == 0:
                answered = training.step
                yield training.progress(total)
                if store is not None:
                    training.save(store)
        if training.step < total and clock.seconds_left <= reserve:
            clock.end_early("time")
        if answered != training.step:
            yield training.progress(total)


class VitTraining:
    """One task's network, its optimizer and its moving average.

    Example:
        >>> from ttt.backends.vit import VitBackend, VitTraining
        >>> task = ttt.Task("t", (ttt.Pair(one, two),), (ttt.Pair(one, two),))
        >>> small = VitBackend({"side": 8, "patch": 2, "width": 32, "heads": 2, "depth": 1}, device="cpu")
        >>> training = VitTraining(small, task, seed=0)
        >>> training.one_step(0.0)
        >>> training.step
        1
    """

    def __init__(self, settings: VitBackend, task: Task, seed: int) -> None:
        self.settings: VitBackend = settings
        self.task: Task = task
        self.seed: int = seed
        self.device: torch.device = choose_device(settings.device)
        self.shape: CanvasShape = CanvasShape(**settings.shape)
        largest = max(max(g.shape) for p in (*task.train, *task.test) for g in (p.input, p.output) if g is not None)
        if largest > self.shape.side:
            raise InvalidBackendError(f"task {task.id}: has grids of {largest} cells, the canvas {self.shape.side}")
        self.views: list[View] = random_views(task, settings.views, seed, shuffle_pairs=False)
        self.learner: CanvasLearner = CanvasLearner(
            self._fresh().to(self.device), len(self.views), settings.learning_rate
        )
        self.model: CanvasViT = self.learner.model
        self.parameters: dict[str, torch.nn.Parameter] = self.learner.parameters
        self.averages: dict[str, torch.Tensor] = self.learner.averages
        self.given, self.wanted = self._shown()
        about = asdict(replace(settings, shared=None))
        self.about: dict[str, Any] = {"seed": seed, "task": task.content, "settings": about}
        self.step: int = 0
        self.losses: list[float] = []

    def _fresh(self) -> CanvasViT:
        """Return the network before its first step: shared, read from a file, or random."""
        if self.settings.shared is not None:
            model: CanvasViT = self.settings.shared.load(cached=False)
            return model
        if self.settings.weights is not None:
            return load_canvas(self.shape, self.settings.weights)
        with seeded(self.seed, self.device):
            return CanvasViT(self.shape)

    def _canvas(self, grids: list[Grid]) -> npt.NDArray[np.uint8]:
        return pad(grids, self.shape.side, self.shape.side)

    def _shown(self) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
        """Return the canvases of all inputs and outputs under every view, (pairs, views, side, side)."""
        pairs = [(p.input, p.output) for p in self.task.train if p.output is not None]
        given, wanted = (
            np.stack([self._canvas([view.apply(pair[part]) for view in self.views]) for pair in pairs])
            for part in (0, 1)
        )
        return given, wanted

    def one_step(self, share: float) -> None:
        """Take a step of AdamW on random views of random pairs; `share` of the training is done."""
        s = self.settings
        # Every random choice of a step depends on its number, so a resumed training needs no random state.
        rng = np.random.default_rng([self.seed, self.step])
        chosen = rng.integers((len(self.given), len(self.views)), size=(s.batch, 2))
        pair, view = chosen.T
        rate = s.learning_rate * min(1.0, (self.step + 1) / 20) * (1 - 0.95 * min(1.0, max(0.0, share)))
        self.step += 1
        decay = min(s.average, 1 - 1 / (self.step + 1))
        self.losses.append(self.learner.step(self.given[pair, view], self.wanted[pair, view], view, rate, decay))

    def progress(self, total: int) -> Progress:
        """Predict every test input under several views with the averaged weights, and count votes."""
        belief = UNFITTED + (FITTED - UNFITTED) * self._fit()
        answers = tuple(self._vote(pair.input, belief) for pair in self.task.test)
        return Progress(answers, "vit", self.step, min(1.0, self.step / total))

    def _fit(self) -> float:
        """Return the share of training pairs that the averaged weights reproduce in every cell."""
        pairs = [p for p in self.task.train if p.output is not None]
        made = self._predict([p.input for p in pairs], [0] * len(pairs))  # the first view shows them as they are
        return sum(p.output is not None and same(g, p.output) for p, (g, _) in zip(pairs, made, strict=True)) / len(
            pairs
        )

    @torch.no_grad()
    def _predict(self, inputs: list[Grid], followed: list[int]) -> list[tuple[Grid, float]]:
        """Return the predicted grid for each input under a view's rule, and the product of its cells' probabilities."""
        averages = dict(self.averages)
        rules = averages["rule"] + averages.pop("rules")[followed]
        with half_precision(self.device):
            canvases = torch.from_numpy(self._canvas(inputs)).to(self.device, torch.int64)
            logits = torch.func.functional_call(self.model, averages, (canvases, rules))
        probability, cells = torch.softmax(logits.float(), -1).max(-1)
        return [read_canvas(c, p) for p, c in zip(probability.cpu().numpy(), cells.cpu().numpy(), strict=True)]

    def _vote(self, given: Grid, belief: float) -> tuple[Candidate, ...]:
        votes: dict[bytes, tuple[Grid, list[float]]] = {}
        views = self.views[: self.settings.prediction_views]
        made = self._predict([v.apply(given) for v in views], list(range(len(views))))
        for view, (grid, sure) in zip(views, made, strict=True):
            seen = view.undo(grid)
            votes.setdefault(grid_bytes(seen), (seen, []))[1].append(sure)
        ranked = sorted(votes.values(), key=lambda v: (-len(v[1]), -max(v[1])))
        return tuple(
            Candidate(g, belief * len(v) / len(views), "vit", f"{len(v)} of {len(views)} views, step {self.step}")
            for g, v in ranked
        )

    def save(self, store: CheckpointStore) -> None:
        """Write the whole state; the two newest and the best versions stay."""
        state: Mapping[str, Any] = {"of": self.about, "step": self.step, "losses": self.losses}
        keep(store, pack(self.parameters, self.learner.optimizer, self.averages), state, score=-self.losses[-1])

    def resume(self, store: CheckpointStore) -> None:
        """Load the newest sound state of this training, if there is one."""
        saved = store.newest_sound()
        if saved is not None and saved.about.get("of") == self.about:
            unpack(saved.tensors, self.parameters, self.learner.optimizer)
            unpack_averages(saved.tensors, self.averages)
            self.step, self.losses = int(saved.about["step"]), list(saved.about["losses"])


def load_canvas(shape: CanvasShape, path: str) -> CanvasViT:
    """Load a network of a shape from a safetensors file.

    Example:
        >>> from safetensors.torch import save_file
        >>> from ttt.backends.vit import VitBackend, VitTraining, load_canvas
        >>> task = ttt.Task("t", (ttt.Pair(one, two),), (ttt.Pair(one, two),))
        >>> small = VitBackend({"side": 8, "patch": 2, "width": 32, "heads": 2, "depth": 1}, device="cpu")
        >>> training = VitTraining(small, task, seed=0)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_file(training.model.state_dict(), f"{folder}/weights.safetensors")
        ...     type(load_canvas(training.shape, f"{folder}/weights.safetensors")).__name__
        'CanvasViT'

    Raises:
        InvalidBackendError: The file cannot be read, or its weights are of another shape.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    with seeded(0, torch.device("cpu")):
        model = CanvasViT(shape)
    try:
        model.load_state_dict(load_file(path))
    except (OSError, SafetensorError, RuntimeError) as error:
        raise InvalidBackendError(f"vit: weights {path}: {str(error).splitlines()[0]}") from error
    return model


def read_canvas(cells: np.ndarray, probability: np.ndarray) -> tuple[Grid, float]:
    """Return the grid on a predicted canvas, and the product of its cells' probabilities.

    Its size is where rows and columns are mostly inside; a cell within that is predicted as outside counts as colour 0.
    """
    inside = cells != OUTSIDE
    rows = int(inside.any(1).sum()) and int((inside.mean(1) >= 0.5 * inside.mean(1).max()).sum())
    columns = int(inside.any(0).sum()) and int((inside.mean(0) >= 0.5 * inside.mean(0).max()).sum())
    rows, columns = (min(30, max(1, x)) for x in (rows, columns))
    part = cells[:rows, :columns]
    grid = as_grid(np.where(part == OUTSIDE, 0, part).astype(np.uint8))
    return grid, float(np.exp(np.log(np.maximum(probability[:rows, :columns], 1e-9)).sum()))
