"""Depth-first decoding: every grid that a model considers at least as likely as a threshold.

After the decoding of "The LLM ARChitect" (Franzen, Disselhoff, Hartmann 2024): a branch is followed while the product
of its symbols' probabilities stays above the threshold, so that likely grids are found without sampling.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from ttt.backends._celltext import GRID_END, Grammar
from ttt.backends._model_service import ModelService


@dataclass(frozen=True, slots=True)
class Decoded:
    """A finished grid as symbols, and the natural logarithm of its probability."""

    symbols: tuple[int, ...]
    log_probability: float


def _cache_argument(model: Any) -> str:
    """Return the name that a model's `forward` has for its cache: `cache` from transformers 5.24 on."""
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    return "cache" if "cache" in inspect.signature(base.forward).parameters else "past_key_values"


class _Reader:
    """Asks the model what follows, with a key-value cache that is cut back when another branch is taken up."""

    def __init__(self, service: ModelService, model: Any, prompt: list[int]) -> None:
        from transformers import DynamicCache

        self._service, self._model, self._prompt = service, model, prompt
        self._cache = DynamicCache()
        self._keywords = {_cache_argument(model): self._cache, "use_cache": True}
        self.first = self._read(prompt)
        self.reads = 0

    def _read(self, symbols: list[int]) -> torch.Tensor:
        ids = self._service.symbols[torch.tensor([symbols], device=self._service.device)]
        logits = self._model(input_ids=ids, **self._keywords).logits[0, -1]
        return self._service.log_probabilities(logits)

    def after(self, written: tuple[int, ...]) -> torch.Tensor:
        """Log probabilities of the symbol after these; all but the last of them have been read on the way here."""
        if not written:
            return self.first
        surplus = self._cache.get_seq_length() - (len(self._prompt) + len(written) - 1)
        if surplus:
            self._cache.crop(-surplus)
        self.reads += 1
        return self._read([written[-1]])


def _legal(following: torch.Tensor, grammar: Grammar) -> torch.Tensor:
    return following.masked_fill(~torch.from_numpy(grammar.allowed()).to(following.device), float("-inf"))


@torch.inference_mode()
def decode(
    service: ModelService, model: Any, prompt: list[int], *, threshold: float, limit: int, stop: Callable[[], bool]
) -> list[Decoded]:
    """Return the grids of at least `threshold` probability after a prompt, likeliest first; perhaps none.

    Args:
        service: Device and symbols.
        model: The model with its adapter.
        prompt: Symbols.
        threshold: In (0, 1]; at most 1 / threshold grids can pass it.
        limit: Most symbols that are read, over all branches.
        stop: Called at every symbol; once true, the grids found so far are returned.
    """
    reader = _Reader(service, model, prompt)
    floor = math.log(threshold)
    found: list[Decoded] = []
    branches: list[tuple[tuple[int, ...], Grammar, float]] = [((), Grammar(), 0.0)]
    while branches and reader.reads < limit and not stop():
        written, grammar, sofar = branches.pop()
        options = _legal(reader.after(written), grammar).sort(stable=True)
        # Ascending, so that the likeliest is on top of the stack and followed next.
        for p, s in zip(options.values.tolist(), options.indices.tolist(), strict=True):
            if sofar + p < floor:
                continue
            if s == GRID_END:
                found.append(Decoded((*written, s), sofar + p))
            else:
                branches.append(((*written, s), grammar.after(s), sofar + p))
    return sorted(found, key=lambda d: -d.log_probability)


@torch.inference_mode()
def greedy(service: ModelService, model: Any, prompt: list[int], *, stop: Callable[[], bool]) -> Decoded | None:
    """Decode the likeliest legal symbol at each place; None if stopped before the grid ends."""
    reader = _Reader(service, model, prompt)
    written: tuple[int, ...] = ()
    grammar = Grammar()
    sofar = 0.0
    while not stop():
        legal = _legal(reader.after(written), grammar)
        s = int(legal.argmax())
        written, sofar = (*written, s), sofar + float(legal[s])
        if s == GRID_END:
            return Decoded(written, sofar)
        grammar = grammar.after(s)
    return None


@torch.inference_mode()
def log_probability(service: ModelService, model: Any, prompt: list[int], symbols: list[int]) -> float:
    """Return the natural logarithm of a model's probability for these symbols after a prompt."""
    ids = service.symbols[torch.tensor([[*prompt, *symbols]], device=service.device)]
    logits = model(input_ids=ids, use_cache=False).logits[0, len(prompt) - 1 : -1]
    chosen = torch.tensor(symbols, device=service.device)
    return float(service.log_probabilities(logits).gather(-1, chosen[:, None]).sum())
