"""Test-time training for ARC, from any ARC JSON to a valid submission."""

from ttt.errors import TTTError

__all__ = ["TTTError"]
