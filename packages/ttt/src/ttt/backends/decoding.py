"""Depth-first decoding: every grid that a model gives at least a threshold of probability. Knows symbols, no task.

After the decoding of "The LLM ARChitect" (Franzen, Disselhoff, Hartmann 2024): a branch is followed while the product of
its symbols' probabilities stays above the threshold, so that likely grids are found without sampling.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from ttt.backends.celltext import GRID_END, Grammar
from ttt.backends.model_service import ModelService


@dataclass(frozen=True, slots=True)
class Decoded:
    """A finished grid as symbols, and the natural logarithm of its probability."""

    symbols: tuple[int, ...]
    log_probability: float


@torch.inference_mode()
def decode(
    service: ModelService, model: Any, prompt: list[int], *, threshold: float, limit: int, stop: Callable[[], bool]
) -> list[Decoded]:
    """Grids of at least ``threshold`` probability after a prompt, likeliest first; the greedy one at any rate.

    Args:
        service: device and symbols.
        model: the model to ask, with its adapter.
        prompt: symbols.
        threshold: in (0, 1]; at most 1 / threshold grids can pass it.
        limit: most symbols that are read, over all branches; the greedy branch may exceed it.
        stop: asked at every symbol; what was found by then is returned.
    """
    from transformers import DynamicCache

    ids = service.symbols[torch.tensor([prompt], device=service.device)]
    cache = DynamicCache()
    floor = float(torch.log(torch.tensor(threshold)))
    found: list[Decoded] = []

    def read(tokens: torch.Tensor) -> torch.Tensor:
        logits = model(input_ids=tokens, past_key_values=cache, use_cache=True).logits[0, -1]
        return service.log_probabilities(logits)

    # A branch: symbols written, grammar, log probability, and what follows the last symbol where it is known.
    first = read(ids)
    branches: list[tuple[tuple[int, ...], Grammar, float, torch.Tensor | None]] = [((), Grammar(), 0.0, first)]
    reads = 0
    while branches and not stop():
        written, grammar, sofar, following = branches.pop()
        if following is None:
            if found and reads >= limit:
                break
            # The cache holds the branch that was followed last; cut it back to what this branch shares with it.
            cache.crop(len(prompt) + len(written) - 1)
            following = read(service.symbols[torch.tensor([[written[-1]]], device=service.device)])
            reads += 1
        masked = following.masked_fill(~torch.from_numpy(grammar.allowed()).to(following.device), float("-inf"))
        options = []
        for p, s in zip(*(t.tolist() for t in masked.sort(stable=True)), strict=True):
            if sofar + p >= floor:
                options.append((p, s))
        if not options and not found:  # nothing passes: follow the likeliest, so that there is one answer
            best = int(masked.argmax())
            options = [(float(masked[best]), best)]
        for p, s in options:  # ascending, so the likeliest is taken next
            if s == GRID_END:
                found.append(Decoded((*written, s), sofar + p))
            else:
                branches.append(((*written, s), grammar.after(s), sofar + p, None))
    return sorted(found, key=lambda d: -d.log_probability)


@torch.inference_mode()
def log_probability(service: ModelService, model: Any, prompt: list[int], symbols: list[int]) -> float:
    """Natural logarithm of the probability that a model gives to these symbols after a prompt."""
    ids = service.symbols[torch.tensor([[*prompt, *symbols]], device=service.device)]
    logits = model(input_ids=ids, use_cache=False).logits[0, len(prompt) - 1 : -1]
    chosen = torch.tensor(symbols, device=service.device)
    return float(service.log_probabilities(logits).gather(-1, chosen[:, None]).sum())
