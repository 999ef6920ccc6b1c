"""Merges the answers of several tries, backends or machines into two attempts per test input, by confidence."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from ttt.values import Attempt, Prediction, grid_bytes


def merged(several: Sequence[tuple[Prediction, ...]]) -> tuple[Prediction, ...]:
    """Return two distinct attempts per test input: those that the most confidence speaks for.

    The confidences of equal answers are combined as of independent witnesses to rank them; the confidence that is
    shown is the highest single one, since two tries of one solver are not independent.

    Args:
        several: At least one set of predictions, all of the same task.

    Example:
        >>> sure, unsure = ttt.Attempt(two, 0.7), ttt.Attempt(one, 0.2)
        >>> both = ttt.results.merged([(ttt.Prediction(unsure, unsure),), (ttt.Prediction(sure, unsure),)])
        >>> both[0].first.grid.tolist(), both[0].first.confidence
        ([[0, 1]], 0.7)
    """
    return tuple(_two([a for p in tests for a in (p.first, p.second)]) for tests in zip(*several, strict=True))


def _two(attempts: Iterable[Attempt]) -> Prediction:
    best: dict[bytes, Attempt] = {}
    doubt: dict[bytes, float] = {}
    for attempt in attempts:
        key = grid_bytes(attempt.grid)
        known = best.get(key)
        if known is None or _rank(attempt) > _rank(known):
            best[key] = attempt
        doubt[key] = doubt.get(key, 1.0) * (1 - min(1.0, max(0.0, attempt.confidence)))
    ranked = sorted(best, key=lambda k: (best[k].stage == "fallback", doubt[k], -best[k].confidence))
    first = best[ranked[0]]
    second = best[ranked[min(1, len(ranked) - 1)]]
    return Prediction(first, replace(second, confidence=min(second.confidence, max(0.0, 1 - first.confidence))))


def _rank(attempt: Attempt) -> tuple[bool, float]:
    return attempt.stage != "fallback", attempt.confidence
