"""How uvicorn runs a server: no client keeps a connection without a request, and none keeps the server from ending."""

from __future__ import annotations

import asyncio
import sys
from contextlib import suppress
from typing import Any

import uvicorn
from uvicorn.protocols.http.auto import AutoHTTPProtocol

__all__ = ["PatientProtocol", "configuration"]

PATIENCE = 30.0
"""Seconds after which a connection that has begun no request is closed, or those that are between two requests."""
GRACE = 3
"""Seconds that running requests get when the server ends."""


class PatientProtocol(AutoHTTPProtocol):  # type: ignore[misc, valid-type] # one of two classes, by what is installed
    """A connection that is closed if its client sends no whole head of a request."""

    _look: asyncio.TimerHandle
    _seen: Any = None  # the request at the last look

    def connection_made(self, transport: Any) -> None:
        """Begin to look at the connection from time to time."""
        super().connection_made(transport)
        self._look = self.loop.call_later(PATIENCE, self._close_if_silent)

    def connection_lost(self, exc: Exception | None) -> None:
        """Look no more."""
        self._look.cancel()
        super().connection_lost(exc)

    def _close_if_silent(self) -> None:
        idle = self.cycle is None or self.cycle.response_complete
        if idle and self.cycle is self._seen:
            self.transport.close()
            return
        self._seen = self.cycle
        self._look = self.loop.call_later(PATIENCE, self._close_if_silent)


def configuration(application: Any, **options: Any) -> uvicorn.Config:
    """Return how uvicorn serves an application; this process may then open as many files as the system allows it.

    Args:
        application: The ASGI application.
        **options: Of `uvicorn.Config`.
    """
    if sys.platform != "win32":
        import resource

        _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        with suppress(ValueError, OSError):  # macOS names no limit and has one
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    return uvicorn.Config(application, http=PatientProtocol, timeout_graceful_shutdown=GRACE, **options)
