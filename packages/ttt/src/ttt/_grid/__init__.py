"""The default solver: exact search, randomised trees and a small net, from scratch per task on one CPU thread."""

from __future__ import annotations

from ttt._grid.solve import solve

__all__ = ["solve"]
