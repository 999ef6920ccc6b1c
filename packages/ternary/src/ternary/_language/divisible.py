"""Channel counts of scaled networks."""

from __future__ import annotations


def make_divisible(value: float, by: int) -> int:
    """Round to a multiple of `by` that is at least `by` and not more than 10 % below `value` (MobileNet's rule).

    Args:
        value: The scaled channel count.
        by: The multiple, at least 1.

    Returns:
        The rounded count.

    Example:
        >>> from ternary.nn import make_divisible
        >>> make_divisible(32 * 0.75, 8)
        24
    """
    rounded = max(by, int(value + by / 2) // by * by)
    return rounded + by if rounded < 0.9 * value else rounded
