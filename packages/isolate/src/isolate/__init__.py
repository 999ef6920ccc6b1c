"""Run plugins each in its own virtual environment and process."""

from isolate.errors import IsolateError

__all__ = ["IsolateError"]
