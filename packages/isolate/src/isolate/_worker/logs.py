"""Sends what the extension logs as lines of stderr that the host recognises, within the budget of all its output."""

from __future__ import annotations

import json
import logging
import os
import sys

PREFIX = "\x1eisolate-record "
_LIMIT = 6000


class _Handler(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        try:
            message = self.format(record)
            if len(message) > _LIMIT:
                message = f"{message[:_LIMIT]} … (cut, {len(message)} characters)"
            name = os.path.basename(record.pathname)
            line = json.dumps([record.levelno, record.name, message, name, record.lineno], ensure_ascii=False)
            sys.stderr.write(f"{PREFIX}{line}\n")
        except Exception:
            self.handleError(record)


def install(level: int) -> None:
    """Handle all records of this process from a level on, which the host wants to see."""
    root = logging.getLogger()
    root.addHandler(_Handler())
    root.setLevel(max(1, level))
