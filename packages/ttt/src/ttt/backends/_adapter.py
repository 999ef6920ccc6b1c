"""Test-time training of a language model: a LoRA adapter per task, trained on its pairs and removed afterwards."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, get_args

import numpy as np
import torch

from ttt._budget import Clock
from ttt._tasks.augment import View, leave_one_out, random_views
from ttt.backends._celltext import IGNORED, PAD, SYMBOLS, example, grid_symbols, shorten, symbols_grid
from ttt.backends._decoding import decode, greedy, log_probability
from ttt.backends._model_service import ModelService, seeded
from ttt.backends._training_state import keep, pack, unpack
from ttt.checkpoint import CheckpointStore
from ttt.errors import MissingExtraError
from ttt.values import Candidate, Grid, Pair, Task, grid_bytes

Schedule = Literal["constant", "cosine"]
ENDS = 8
"""Training steps at the beginning and at the end whose mean loss an answer tells."""


@dataclass(frozen=True)
class LoraSettings:
    """Settings of an adapter's training and decoding.

    Example:
        >>> from ttt.backends.lm import LoraSettings
        >>> LoraSettings(steps=8).rank
        16

    Attributes:
        rank: Rank of the LoRA matrices; `alpha` is their scale (both as in Hu et al. 2021).
        steps: Training steps at most; the clock may end it earlier.
        batch: Examples per step, in micro-batches of `micro_batch`.
        learning_rate: Learning rate of AdamW, after ten warm-up steps.
        schedule: `constant`, or `cosine`, which falls to a tenth of it at the last step.
        rslora: Whether the scale is `alpha` by the root of the rank (Kalajdzievski 2023), not by the rank.
        embeddings: Whether the tokens' vectors are adapted too, at the input and at the output.
        views: Symmetries, colour and pair orders drawn for training.
        prediction_views: Views that are decoded and scored.
        threshold: Grids below this probability are not decoded.
        max_symbols: Longest sequence; the first pairs are left out of longer ones.
        training_share: Share of the time budget for training; decoding takes the rest.
        checkpoint_every: Steps between checkpoints, where there is a folder for them.
    """

    rank: int = 16
    alpha: int = 32
    steps: int = 64
    batch: int = 2
    micro_batch: int = 1
    learning_rate: float = 1e-3
    schedule: Schedule = "constant"
    rslora: bool = False
    embeddings: bool = False
    views: int = 32
    prediction_views: int = 4
    threshold: float = 0.1
    max_symbols: int = 4096
    training_share: float = 0.6
    checkpoint_every: int = 16

    def __post_init__(self) -> None:
        """Refuse a schedule that is not known."""
        if self.schedule not in get_args(Schedule):
            raise TypeError(f"schedule: got {self.schedule!r}, wanted one of {', '.join(get_args(Schedule))}")

    def rate(self, step: int) -> float:
        """Return the learning rate of a step, counted from 0."""
        warm = self.learning_rate * min(1.0, (step + 1) / 10)
        if self.schedule == "constant":
            return warm
        return warm * (0.1 + 0.45 * (1 + math.cos(math.pi * min(1.0, step / max(1, self.steps - 1)))))


@dataclass
class Adaptation:
    """A model adapted to one task; valid inside the `adapted` block.

    Example:
        >>> from ttt.backends.lm import Adaptation, LoraSettings, ModelService
        >>> task = ttt.Task("t", (ttt.Pair(one, two),), (ttt.Pair(one, two),))
        >>> with ModelService(saved_model) as service:  # as `TTTAdapter.adapted` makes it, before its first step
        ...     print(Adaptation(task, service, service.model, LoraSettings(), seed=0, steps_done=0).losses)
        []
    """

    task: Task
    service: ModelService
    model: Any
    settings: LoraSettings
    seed: int
    steps_done: int
    losses: list[float] = field(default_factory=list)

    def predict(self, clock: Clock) -> Iterator[tuple[tuple[Candidate, ...], ...]]:
        """Yield candidates for every test input after each view that was decoded; later ones are better.

        Candidates of all views are scored under all views by a product of experts: the geometric mean of the
        probabilities of the whole grid under each view.
        """
        views = random_views(self.task, self.settings.prediction_views, self.seed + 1)
        found: list[dict[bytes, Grid]] = [{} for _ in self.task.test]
        for n, view in enumerate(views, 1):
            for options, pair in zip(found, self.task.test, strict=True):
                for grid in self._decode(view, pair, clock, at_least_one=not options):
                    options.setdefault(grid_bytes(grid), grid)
            if all(found):
                yield tuple(
                    self._ranked(options.values(), pair, views[:n])
                    for options, pair in zip(found, self.task.test, strict=True)
                )
            if clock.must_end():
                return

    def _decode(self, view: View, pair: Pair, clock: Clock, *, at_least_one: bool) -> Iterator[Grid]:
        prompt, s = self._prompt(view, pair), self.settings
        common = (self.service, self.model, prompt)
        found = decode(*common, threshold=s.threshold, limit=4 * s.max_symbols, stop=clock.must_end)
        if not found and at_least_one and (likeliest := greedy(*common, stop=clock.must_end)) is not None:
            found = [likeliest]
        for d in found:
            yield view.undo(symbols_grid(d.symbols))

    def _prompt(self, view: View, pair: Pair) -> list[int]:
        seen = view.apply_task(self.task)
        return shorten(seen.train, view.apply(pair.input), self.settings.max_symbols - 31 * 30 - 1)

    def _ranked(self, grids: Any, pair: Pair, views: list[View]) -> tuple[Candidate, ...]:
        scored = []
        for grid in grids:
            logs = [
                log_probability(self.service, self.model, self._prompt(v, pair), grid_symbols(v.apply(grid)))
                for v in views
            ]
            scored.append((math.exp(sum(logs) / len(logs)), grid))
        scored.sort(key=lambda s: -s[0])
        why = f"{len(views)} views, {self.steps_done} steps{_fall(self.losses)}"
        return tuple(Candidate(g, min(1.0, p), "lm", why) for p, g in scored)


def _fall(losses: list[float]) -> str:
    """Return from where to where the loss of a training fell, as the mean of its first and of its last steps."""
    count = min(ENDS, len(losses) // 2)
    if not count:
        return ""
    return f", loss {sum(losses[:count]) / count:.2f} to {sum(losses[-count:]) / count:.2f}"


class TTTAdapter:
    """Adapts one model to one task after another; the base weights stay as they were loaded.

    Example:
        >>> from ttt.backends.lm import LoraSettings, ModelService, TTTAdapter
        >>> with ModelService(saved_model) as service:
        ...     print(TTTAdapter(service, LoraSettings(rank=4)).settings.rank)
        4
    """

    def __init__(self, service: ModelService, settings: LoraSettings | None = None) -> None:
        self.service = service
        self.settings: LoraSettings = settings or LoraSettings()

    @contextmanager
    def adapted(self, task: Task, clock: Clock, store: CheckpointStore | None = None) -> Iterator[Adaptation]:
        """Train an adapter on the task's leave-one-out set, yield the adapted model, and remove the adapter afterwards.

        Args:
            task: The task; training uses only its training pairs.
            clock: Counts one work unit per training step.
            store: Where the training is saved and resumed; None saves nothing.
        """
        try:
            from peft import LoraConfig, get_peft_model
        except ImportError as error:
            raise MissingExtraError('the lm backend needs peft: pip install "pentad-ttt[lm]"') from error
        s = self.settings
        with seeded(clock.seed, self.service.device):
            config = LoraConfig(
                r=s.rank,
                lora_alpha=s.alpha,
                target_modules=self.service.layers() if s.embeddings else "all-linear",
                lora_dropout=0.0,
                use_rslora=s.rslora,
            )
            model = get_peft_model(self.service.model, config)
        try:
            adaptation = Adaptation(task, self.service, model, s, clock.seed, 0)
            with self.service.training():
                self._train(adaptation, clock, store)
            yield adaptation
        finally:
            self.service.model = model.unload()
            # peft leaves its description on the model; another adapter would warn about it.
            if hasattr(self.service.model, "peft_config"):
                del self.service.model.peft_config

    def _train(self, adaptation: Adaptation, clock: Clock, store: CheckpointStore | None) -> None:
        s, task = self.settings, adaptation.task
        parameters = {k: p for k, p in adaptation.model.named_parameters() if p.requires_grad}
        optimizer = torch.optim.AdamW(parameters.values(), lr=s.learning_rate, weight_decay=0.0)
        # A task of one pair has nothing to leave out, so the pair itself is the example.
        held_out = list(leave_one_out(task)) or [Task(task.id, (), task.train)]
        views = random_views(held_out[0], s.views, clock.seed, shuffle_pairs=True)
        about = {"seed": clock.seed, "task": task.content, "settings": asdict(s)}
        if store is not None and (saved := store.newest_sound()) is not None and saved.about.get("of") == about:
            unpack(saved.tensors, parameters, optimizer)
            adaptation.steps_done = int(saved.about["step"])
            adaptation.losses = list(saved.about["losses"])
            clock.spend(adaptation.steps_done)
        reserve = (1 - s.training_share) * clock.seconds_left if clock.seconds_left < float("inf") else 0.0
        while adaptation.steps_done < s.steps and not clock.stop() and clock.seconds_left > reserve:
            step = adaptation.steps_done
            # Every random choice of a step depends on its number, so a resumed training needs no random state.
            rng = np.random.default_rng([clock.seed, step])
            chosen = []
            for _ in range(s.batch):
                one = held_out[int(rng.integers(len(held_out)))]
                view = views[int(rng.integers(len(views)))]
                chosen.append(example(view.apply_task(one), s.max_symbols))
            for group in optimizer.param_groups:
                group["lr"] = s.rate(step)
            with seeded(clock.seed + step, self.service.device):
                loss = self._step(adaptation.model, chosen)
            torch.nn.utils.clip_grad_norm_(parameters.values(), 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            adaptation.losses.append(loss)
            adaptation.steps_done += 1
            clock.spend()
            if store is not None and adaptation.steps_done % s.checkpoint_every == 0:
                state = {"of": about, "step": adaptation.steps_done, "losses": adaptation.losses}
                keep(store, pack(parameters, optimizer), state, score=-loss)

    def _step(self, model: Any, chosen: list[tuple[list[int], list[int]]]) -> float:
        """Accumulate the gradient of a batch in micro-batches; return the mean loss per learned symbol."""
        learned = sum(label != IGNORED for _, labels in chosen for label in labels)
        total = 0.0
        for at in range(0, len(chosen), self.settings.micro_batch):
            part = chosen[at : at + self.settings.micro_batch]
            length = max(len(text) for text, _ in part)
            text = torch.tensor([t + [PAD] * (length - len(t)) for t, _ in part], device=self.service.device)
            labels = torch.tensor([x + [IGNORED] * (length - len(x)) for _, x in part], device=self.service.device)
            mask = torch.tensor([[1] * len(t) + [0] * (length - len(t)) for t, _ in part], device=self.service.device)
            logits = model(input_ids=self.service.symbols[text], attention_mask=mask, use_cache=False).logits
            logs = self.service.log_probabilities(logits[:, :-1])
            loss = torch.nn.functional.nll_loss(
                logs.reshape(-1, SYMBOLS), labels[:, 1:].reshape(-1), ignore_index=IGNORED, reduction="sum"
            )
            torch.autograd.backward(loss / learned)
            total += float(loss.detach())
        return total / learned
