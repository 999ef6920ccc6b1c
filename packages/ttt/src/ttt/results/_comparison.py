"""Compares two solvers on the same tasks: which tasks changed, and whether chance explains the difference."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from ttt.results._scoring import wilson


@dataclass(frozen=True, slots=True)
class Comparison:
    """The outcome of two runs on the tasks that both finished and whose outputs are known.

    Attributes:
        both: Tasks that both solved.
        only_a: Tasks that only the first solved.
        only_b: Tasks that only the second solved.
        neither: Tasks that neither solved.

    Example:
        >>> outcome = ttt.results.Comparison(both=("a",), only_a=(), only_b=("b",), neither=("c",))
        >>> outcome.total, round(outcome.difference, 2), outcome.p_value
        (3, 0.33, 1.0)
    """

    both: tuple[str, ...]
    only_a: tuple[str, ...]
    only_b: tuple[str, ...]
    neither: tuple[str, ...]

    @property
    def total(self) -> int:
        """Number of tasks."""
        return len(self.both) + len(self.only_a) + len(self.only_b) + len(self.neither)

    @property
    def difference(self) -> float:
        """Share solved by the second run minus that of the first."""
        return (len(self.only_b) - len(self.only_a)) / max(1, self.total)

    @property
    def p_value(self) -> float:
        """Two-sided p of McNemar's exact test (McNemar 1947): the tasks that changed, as tosses of a coin."""
        changed, fewer = len(self.only_a) + len(self.only_b), min(len(self.only_a), len(self.only_b))
        tail: int = sum(math.comb(changed, k) for k in range(fewer + 1))
        # Whole numbers until the last division: a float would overflow with a thousand changed tasks.
        return min(1.0, float(2 * tail / (1 << changed)))

    def interval(self) -> tuple[float, float]:
        """Return the 95 % interval of the difference for paired shares (Newcombe 1998, method 10)."""
        n = self.total
        if n == 0:
            return -1.0, 1.0
        a, b, c, d = (len(x) for x in (self.both, self.only_b, self.only_a, self.neither))
        second, first = (a + b) / n, (a + c) / n
        margins = (a + b) * (c + d) * (a + c) * (b + d)
        phi = (a * d - b * c) / math.sqrt(margins) if margins else 0.0
        low2, high2 = wilson(a + b, n)
        low1, high1 = wilson(a + c, n)

        def width(one: float, other: float) -> float:
            return math.sqrt(max(0.0, one * one - 2 * phi * one * other + other * other))

        return (
            max(-1.0, self.difference - width(second - low2, high1 - first)),
            min(1.0, self.difference + width(high2 - second, first - low1)),
        )

    def __str__(self) -> str:
        low, high = self.interval()
        return (
            f"{self.total} tasks: {len(self.both)} solved by both, {len(self.only_a)} only by the first, "
            f"{len(self.only_b)} only by the second, {len(self.neither)} by neither; difference "
            f"{100 * self.difference:+.1f} points, 95 % interval {100 * low:+.1f} to {100 * high:+.1f}; "
            f"exact McNemar test p = {self.p_value:.2g}"
        )


def compare(first: Mapping[str, bool], second: Mapping[str, bool]) -> Comparison:
    """Compare which tasks two runs solved; tasks that only one of them has are left out.

    Args:
        first: Task id to whether the first run solved it.
        second: The same of the second run.

    Example:
        >>> outcome = ttt.results.compare({"a": True, "b": True}, {"a": True, "b": False})
        >>> outcome.both, outcome.only_a
        (('a',), ('b',))
    """
    groups: dict[tuple[bool, bool], list[str]] = {(a, b): [] for a in (True, False) for b in (True, False)}
    for task_id in sorted(set(first) & set(second)):
        groups[first[task_id], second[task_id]].append(task_id)
    return Comparison(
        tuple(groups[True, True]), tuple(groups[True, False]), tuple(groups[False, True]), tuple(groups[False, False])
    )
