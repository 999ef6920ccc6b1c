"""A .pth file reads the host's variables while the interpreter starts."""

from __future__ import annotations

from typing import Any

KIND = "host's environment variables"


def attack(t: dict[str, Any]) -> Any:
    """Return evidence, if it worked."""
    import builtins

    return getattr(builtins, "early_environ", None)
