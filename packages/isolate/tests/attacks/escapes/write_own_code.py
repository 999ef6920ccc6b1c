"""Changes its own code, which is started again later."""

from __future__ import annotations

from typing import Any

KIND = "write outside"


def attack(t: dict[str, Any]) -> Any:
    """Return evidence, if it worked."""
    with open(__file__, "a") as file:
        file.write("\n")
    return True
