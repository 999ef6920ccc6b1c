"""The default solver: exact search, randomised trees and a small net, from scratch per task on one CPU thread."""

from ttt.grid.answers import Candidate, Grid, Progress
from ttt.grid.solve import solve

__all__ = ["Candidate", "Grid", "Progress", "solve"]
