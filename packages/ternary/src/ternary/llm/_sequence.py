"""One sequence on its way through the decoder: which rows come next, which token follows, why it ends."""

from __future__ import annotations

from collections.abc import Sequence as Tokens
from typing import Literal

import numpy as np

from ternary.errors import ContextLengthError, NonFiniteActivationError
from ternary.llm._cache import Cache, Row
from ternary.llm._engine import Engine
from ternary.llm._sampling import Sampler, Sampling

__all__ = ["Finish", "Sequence", "check_prompt", "shared_beginning"]

Finish = Literal["stop", "length", "cancelled"]


class Sequence:
    """Prompt and generated tokens of one request, with the cache that they fill.

    Args:
        engine: The decoder.
        cache: Where its keys and values go.
        cached: Tokens whose keys and values the cache holds already; a shared beginning is not computed again.
        prompt: Tokens to start from, at least one.
        sampling: How to choose the next ones.
        ends: Tokens that end the text.

    Raises:
        ContextLengthError: The prompt leaves no room in the cache.
    """

    def __init__(
        self,
        engine: Engine,
        cache: Cache,
        cached: Tokens[int],
        prompt: Tokens[int],
        sampling: Sampling,
        ends: frozenset[int] = frozenset(),
    ):
        check_prompt(prompt, cache.limit, engine.vocabulary)
        self._engine, self.cache, self._sampling, self._ends = engine, cache, sampling, ends
        self.tokens = [int(t) for t in prompt]
        self.prompt_tokens = len(prompt)
        self.reused = shared_beginning(cached, self.tokens[:-1])
        self._done = self.reused
        self._sampler = Sampler(sampling)
        self.finish: Finish | None = "length" if sampling.max_tokens == 0 else None

    @property
    def cached(self) -> list[int]:
        """The tokens whose keys and values the cache holds."""
        return self.tokens[: self._done]

    def rows(self, most: int) -> list[Row]:
        """Return the next rows to run, up to `most`; the last one asks for logits if it is the newest token."""
        last = min(self._done + most, len(self.tokens))
        return [Row(self.tokens[at], at, self.cache, at + 1 == len(self.tokens)) for at in range(self._done, last)]

    def ran(self, rows: Tokens[Row]) -> None:
        """Note that these rows have run: their keys and values are in the cache."""
        self._done += len(rows)

    def forget(self) -> None:
        """Note that a step failed: nothing in the cache can be relied on."""
        self._done = 0

    def accept(self, logits: np.ndarray[tuple[int], np.dtype[np.float32]]) -> int | None:
        """Choose the token that follows; None if it ends the text. `finish` says why, once it has ended.

        Raises:
            NonFiniteActivationError: A logit is not a number.
        """
        penalty = self._sampling.repetition_penalty
        seen = np.array(sorted(set(self.tokens)) if penalty != 1.0 else [], np.int64)
        ids, values = self._engine.top(logits, seen, penalty, min(self._sampler.candidates, len(logits)))
        if not len(ids):
            raise NonFiniteActivationError("got logits that are not numbers; the weights or scales are damaged")
        token = self._sampler.choose(ids, values)
        if token in self._ends:
            self.finish = "stop"
            return None
        self.tokens.append(token)
        generated = len(self.tokens) - self.prompt_tokens
        if generated >= self._sampling.max_tokens or len(self.tokens) >= self.cache.limit:
            self.finish = "length"
        return token


def check_prompt(prompt: Tokens[int], context: int, vocabulary: int) -> None:
    """Refuse a prompt from which nothing can be generated.

    Args:
        prompt: Its tokens.
        context: Longest sequence, prompt included.
        vocabulary: How many tokens the model has.

    Raises:
        ContextLengthError: It leaves no room for a token.
        ValueError: It is empty, or has a token that the model does not have.
    """
    if not prompt:
        raise ValueError("got an empty prompt; generation starts from at least one token")
    if len(prompt) >= context:
        raise ContextLengthError(
            f"got a prompt of {len(prompt)} tokens for a context of {context}; shorten it or open the model "
            "with a larger context"
        )
    outside = [t for t in prompt if not 0 <= t < vocabulary]
    if outside:
        raise ValueError(f"got token {outside[0]}; the vocabulary ends at {vocabulary - 1}")


def shared_beginning(one: Tokens[int], other: Tokens[int]) -> int:
    """Return how many tokens two lists have in common from their start."""
    count = 0
    for a, b in zip(one, other, strict=False):
        if a != b:
            break
        count += 1
    return count
