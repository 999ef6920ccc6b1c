"""The work that the grid solver has done: counts units and says when to stop."""

from __future__ import annotations

from collections.abc import Callable


class Work:
    """Work units spent, with a limit in units and a stop signal.

    Args:
        stop: Called before each piece of work; true ends the work.
        limit: Work units after which no more is done, None for no limit.
        seconds_left: Returns the seconds until `stop` will be true; None where they are unknown or must not matter.
    """

    def __init__(
        self, stop: Callable[[], bool], limit: int | None = None, seconds_left: Callable[[], float] | None = None
    ) -> None:
        self.stop, self.limit, self.done, self.seconds_left = stop, limit, 0, seconds_left

    def spend(self, units: int = 1) -> None:
        """Count units as spent, up to the limit: a piece of work that costs more uses up what is left."""
        self.done += units
        if self.limit is not None:
            self.done = min(self.done, self.limit)

    @property
    def left(self) -> int | None:
        """Units that remain, None without a limit."""
        return None if self.limit is None else max(0, self.limit - self.done)

    @property
    def over(self) -> bool:
        """Whether to stop now."""
        return self.left == 0 or self.stop()
