"""A .pth file of the environment reads the secret in a thread while the interpreter starts."""

from __future__ import annotations

from typing import Any

KIND = "read outside"


def attack(t: dict[str, Any]) -> Any:
    """Return evidence, if it worked."""
    import builtins

    return getattr(builtins, "early", None)
