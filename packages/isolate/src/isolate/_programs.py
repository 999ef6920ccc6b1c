"""Programs that the host runs and waits for: they end within a second when they are cancelled or take too long."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading
import time
from pathlib import Path

from isolate.errors import EnvironmentBuildError


class Stop:
    """When a build must end.

    Args:
        seconds: It may take so long from now on.
        cancel: Set when it must end at once.
    """

    def __init__(self, seconds: float, cancel: threading.Event | None = None) -> None:
        self._seconds = seconds
        self._deadline = time.monotonic() + seconds
        self._cancel = cancel

    def check(self) -> None:
        """Go on, or not.

        Raises:
            EnvironmentBuildError: It was cancelled, or its time is over.
        """
        if self._cancel is not None and self._cancel.is_set():
            raise EnvironmentBuildError("the build was cancelled; nothing half built is left in use")
        if time.monotonic() > self._deadline:
            raise EnvironmentBuildError(f"the build took longer than {self._seconds:g} s (Policy.build_seconds)")


def run_program(
    command: list[str], environment: dict[str, str], folder: Path, stdin: str | None, stop: Stop
) -> tuple[int, str, str]:
    """Run a program to its end; return its exit status, output and error output.

    Args:
        command: Program and arguments.
        environment: All its variables.
        folder: Its working folder.
        stdin: What it reads.
        stop: When it must end; it is killed then with all that it started in its session.

    Raises:
        EnvironmentBuildError: It had to end.
    """
    process = subprocess.Popen(
        command,
        stdin=subprocess.PIPE if stdin is not None else subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=folder,
        env=environment,
        start_new_session=True,
        umask=0o077,
    )
    try:
        while True:
            try:
                out, err = process.communicate(stdin, timeout=0.1)
            except subprocess.TimeoutExpired:
                stop.check()
                stdin = None
            else:
                return process.returncode, out, err
    except BaseException:
        with contextlib.suppress(OSError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        raise
