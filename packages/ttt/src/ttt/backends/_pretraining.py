"""Trains the network of the `vit` backend on many tasks at once: weights that test-time training starts from."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.torch import save_file

from ttt._tasks.augment import SYMMETRIES
from ttt._tasks.batching import pad
from ttt.backends._canvas import CanvasShape, CanvasViT
from ttt.backends._learner import CanvasLearner
from ttt.backends._model_service import choose_device, seeded
from ttt.backends._training_state import keep, pack, unpack, unpack_averages
from ttt.backends.vit import VitBackend
from ttt.checkpoint import CheckpointStore
from ttt.errors import InvalidTaskError
from ttt.values import Pair, Task

GENERATED = re.compile(r"(.+)-\d+")
"""Tasks cut from a file of generated pairs, `NAME-0`, `NAME-1` and so on: they follow one rule."""


@dataclass(frozen=True)
class Lesson:
    """The pairs of one rule."""

    name: str
    pairs: tuple[Pair, ...]


def lessons(tasks: Iterable[Task], largest: int) -> list[Lesson]:
    """Return the pairs of each rule, those with a grid of more than `largest` rows or columns left out.

    Args:
        tasks: Tasks; those cut from one file of generated pairs become one lesson.
        largest: Side of the canvas.

    Raises:
        InvalidTaskError: No pair is left.
    """
    by_rule: dict[str, list[Pair]] = {}
    for task in tasks:
        generated = GENERATED.fullmatch(task.id)
        pairs = by_rule.setdefault(generated[1] if generated else task.id, [])
        for pair in (*task.train, *task.test):
            if pair.output is not None and max(*pair.input.shape, *pair.output.shape) <= largest:
                pairs.append(pair)
    found = [Lesson(name, tuple(pairs)) for name, pairs in sorted(by_rule.items()) if pairs]
    if not found:
        raise InvalidTaskError(f"no pair has an output and fits on a canvas of {largest} x {largest} cells")
    return found


class Pretraining:
    """A network in training on lessons; each lesson has a rule of its own under each symmetry of the square.

    Args:
        settings: Shape, device, batch, learning rate and average of the network.
        given: The lessons.
        total: Steps over which the learning rate rises and falls.
        seed: Of the first weights and of every batch.
    """

    def __init__(self, settings: VitBackend, given: list[Lesson], total: int, seed: int = 0) -> None:
        self.settings, self.lessons, self.total, self.seed = settings, given, total, seed
        self.device = choose_device(settings.device)
        self.shape = CanvasShape(**settings.shape)
        with seeded(seed, self.device):
            model = CanvasViT(self.shape).to(self.device)
        self.learner = CanvasLearner(model, len(given) * len(SYMMETRIES), settings.learning_rate)
        self.parameters, self.averages = self.learner.parameters, self.learner.averages
        self.about: dict[str, Any] = {
            "seed": seed,
            "total": total,
            "lessons": [[lesson.name, len(lesson.pairs)] for lesson in given],
            "settings": asdict(replace(settings, shared=None)),
        }
        self.step = 0
        self.losses: list[float] = []

    def one_step(self) -> None:
        """Take a step of AdamW on pairs of random lessons under random symmetries."""
        s = self.settings
        # Every random choice of a step depends on its number, so a resumed training needs no random state.
        rng = np.random.default_rng([self.seed, self.step])
        inputs, outputs, followed = [], [], []
        for _ in range(s.batch):
            number, turn = int(rng.integers(len(self.lessons))), int(rng.integers(len(SYMMETRIES)))
            pairs = self.lessons[number].pairs
            pair = pairs[int(rng.integers(len(pairs)))]
            assert pair.output is not None
            inputs.append(SYMMETRIES[turn].apply(pair.input))
            outputs.append(SYMMETRIES[turn].apply(pair.output))
            followed.append(number * len(SYMMETRIES) + turn)
        share = min(1.0, self.step / self.total)
        rate = s.learning_rate * min(1.0, (self.step + 1) / 100) * (1 - 0.95 * share)
        shown, wanted = (pad(grids, self.shape.side, self.shape.side) for grids in (inputs, outputs))
        self.step += 1
        decay = min(s.average, 1 - 1 / (self.step + 1))
        self.losses.append(self.learner.step(shown, wanted, followed, rate, decay))

    def save(self, store: CheckpointStore) -> None:
        """Write the whole state; the two newest and the best versions stay."""
        about: Mapping[str, Any] = {"of": self.about, "step": self.step, "losses": self.losses[-100:]}
        keep(store, pack(self.parameters, self.learner.optimizer, self.averages), about, score=-self.losses[-1])

    def resume(self, store: CheckpointStore) -> bool:
        """Load the newest sound state of this training; return whether there was one."""
        saved = store.newest_sound()
        if saved is None or saved.about.get("of") != self.about:
            return False
        unpack(saved.tensors, self.parameters, self.learner.optimizer)
        unpack_averages(saved.tensors, self.averages)
        self.step, self.losses = int(saved.about["step"]), list(saved.about["losses"])
        return True

    def write(self, path: Path) -> None:
        """Write the averaged weights for `VitBackend(weights=...)`; a new task starts from the mean of all rules."""
        weights = {k: v.cpu().contiguous() for k, v in self.averages.items() if k != "rules"}
        weights["rule"] = weights["rule"] + self.averages["rules"].mean(0, keepdim=True).cpu()
        temporary = path.with_suffix(".tmp")
        save_file(weights, temporary)
        temporary.replace(path)
