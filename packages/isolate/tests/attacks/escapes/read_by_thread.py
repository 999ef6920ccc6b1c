"""Reads it in another thread."""

from __future__ import annotations

import threading
from typing import Any

KIND = "read outside"


def attack(t: dict[str, Any]) -> Any:
    """Return evidence, if it worked."""
    got: list[str] = []

    def read() -> None:
        with open(t["secret"]) as file:
            got.append(file.read())

    thread = threading.Thread(target=read)
    thread.start()
    thread.join()
    return got
