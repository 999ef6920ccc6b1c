"""The backends that come with ttt; each module is imported only when its backend is used."""

from __future__ import annotations

__all__: list[str] = []
