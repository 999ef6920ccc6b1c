"""A package of the environment has the name of the worker's own, and reads the secret."""

from __future__ import annotations

from typing import Any

KIND = "read outside"


def attack(t: dict[str, Any]) -> Any:
    """Return evidence, if it worked."""
    import builtins

    return getattr(builtins, "shadowed", None)
