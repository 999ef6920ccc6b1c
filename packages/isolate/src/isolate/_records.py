"""The output of an extension as log records: plain lines, and what it logs with its own level and logger."""

from __future__ import annotations

import json
import logging

from isolate._worker.logs import PREFIX

_NAME_LIMIT = 200


class Records:
    """Logs the lines of one extension.

    Args:
        logger: The extension's logger in the host. Records of its own loggers get names below that of this one.
    """

    def __init__(self, logger: logging.Logger) -> None:
        self._logger = logger

    def out(self, line: str) -> None:
        """Log a line of stdout."""
        self._logger.info("%s", line)

    def err(self, line: str) -> None:
        """Log a line of stderr: a record if it is one, else a warning."""
        if not line.startswith(PREFIX) or not self._record(line[len(PREFIX) :]):
            self._logger.warning("%s", line)

    def _record(self, text: str) -> bool:
        try:
            level, name, message, module, number = json.loads(text)
        except (ValueError, TypeError, RecursionError):
            return False
        kinds = [type(part) for part in (level, name, message, module, number)]
        if kinds != [int, str, str, str, int] or not 0 < level <= logging.CRITICAL:
            return False
        # A record of a made name, no logger of that name: loggers are never freed, and the extension chooses the names.
        full = f"{self._logger.name}.{name[:_NAME_LIMIT]}" if name != "root" else self._logger.name
        if self._logger.isEnabledFor(level):
            self._logger.handle(self._logger.makeRecord(full, level, module, number, "%s", (message,), None))
        return True
