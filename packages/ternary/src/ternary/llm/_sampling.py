"""How the next token is chosen from the logits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["Sampler", "Sampling"]

Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Sampling:
    """How tokens are chosen, and when a text ends.

    Attributes:
        max_tokens: Most tokens to generate.
        temperature: Divides the logits; 0 takes the most likely token.
        top_k: How many of the most likely tokens are candidates.
        top_p: The smallest set of candidates whose probability reaches this is kept.
        min_p: Candidates below this times the largest probability are dropped.
        repetition_penalty: Divides positive logits of tokens that occurred already, and multiplies negative ones.
        seed: Makes choices repeatable; None draws another one each time.
        stop: Texts that end the generation; they are not part of the result.

    Example:
        >>> from ternary.llm import Sampling
        >>> Sampling(temperature=0.7, top_p=0.9, seed=1).top_k
        256
    """

    max_tokens: int = 512
    temperature: float = 0.0
    top_k: int = 256
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    seed: int | None = None
    stop: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Refuse values that mean nothing."""
        ranges: dict[str, tuple[Any, bool, str]] = {
            "max_tokens": (self.max_tokens, self.max_tokens >= 0, "0 or more"),
            "temperature": (self.temperature, 0 <= self.temperature < 1e6, "0 or more"),
            "top_k": (self.top_k, self.top_k >= 1, "1 or more"),
            "top_p": (self.top_p, 0 < self.top_p <= 1, "above 0 and at most 1"),
            "min_p": (self.min_p, 0 <= self.min_p <= 1, "from 0 to 1"),
            "repetition_penalty": (self.repetition_penalty, 1e-6 <= self.repetition_penalty <= 1e6, "from 1e-6 to 1e6"),
        }
        whole = {"max_tokens": self.max_tokens, "top_k": self.top_k, "seed": self.seed or 0}
        for name, number in whole.items():
            if type(number) is not int or number < 0:
                raise ValueError(f"got {name}={number!r}; wanted a whole number, 0 or more")
        for name, (value, legal, wanted) in ranges.items():
            if not legal:
                raise ValueError(f"got {name}={value}; wanted a number {wanted}")
        if isinstance(self.stop, str) or any(not isinstance(text, str) or not text for text in self.stop):
            raise ValueError(f"got stop={self.stop!r}; wanted texts that are not empty")


class Sampler:
    """Chooses tokens of one sequence; the same seed and logits give the same tokens on every kernel."""

    def __init__(self, sampling: Sampling):
        self._sampling = sampling
        self._random = np.random.default_rng(sampling.seed)

    @property
    def candidates(self) -> int:
        """How many of the largest logits `choose` looks at."""
        return 1 if self._sampling.temperature == 0 else self._sampling.top_k

    def choose(self, ids: NDArray[np.int64], logits: Floats) -> int:
        """Return one of the tokens; `logits` are in falling order."""
        sampling = self._sampling
        if sampling.temperature == 0 or len(ids) == 1:
            return int(ids[0])
        with np.errstate(over="ignore"):  # of tiny temperatures: the others' weight is 0
            weight = np.exp((logits.astype(np.float64) - float(logits[0])) / sampling.temperature)
        probability = weight / weight.sum()
        before = np.cumsum(probability) - probability
        kept = (before < sampling.top_p) & (probability >= sampling.min_p * probability[0])
        kept[0] = True
        probability = np.where(kept, probability, 0.0)
        ends = np.cumsum(probability)
        at = int(np.searchsorted(ends, self._random.random() * ends[-1], side="right"))
        return int(ids[min(at, int(np.flatnonzero(kept)[-1]))])
