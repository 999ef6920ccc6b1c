"""A small language and compiler for ternary neural networks."""

from ternary.errors import TernaryError

__all__ = ["TernaryError"]
