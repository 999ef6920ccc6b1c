"""Programs that the host runs and waits for: they end within a second when they are cancelled or take too long."""

from __future__ import annotations

import contextlib
import os
import platform
import signal
import subprocess
import threading
import time
import venv
from pathlib import Path
from types import SimpleNamespace

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


class _Bare(venv.EnvBuilder):
    """Writes nothing that has the path of the folder where it is built: no scripts that activate an environment."""

    def create_configuration(self, context: SimpleNamespace) -> None:
        """Write it; uv reads `relocatable`, and makes scripts that find their interpreter beside them."""
        (Path(context.env_dir) / "pyvenv.cfg").write_text(
            f"home = {context.python_dir}\ninclude-system-site-packages = false\n"
            f"version = {platform.python_version()}\nrelocatable = true\n",
            "utf-8",
        )

    def setup_scripts(self, context: SimpleNamespace) -> None:
        """Make none."""


def create_environment(folder: Path) -> None:
    """Create an empty environment for this interpreter; without a program, which would take longer."""
    _Bare(symlinks=True).create(folder)
    for path in (folder, *folder.rglob("*")):
        if not path.is_symlink():
            path.chmod(0o700 if path.is_dir() else 0o600)  # whatever the umask


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
        errors="replace",
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
