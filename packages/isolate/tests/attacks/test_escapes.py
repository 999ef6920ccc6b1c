"""Every escape fails, or the sandbox report names it: at two levels, with and without GPUs, for root and a user."""

from __future__ import annotations

import functools
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest

import isolate
from isolate._sandbox import available

HERE = Path(__file__).parent
ESCAPES = sorted(path.stem for path in (HERE / "escapes").glob("*.py"))
NOBODY = 65534


@functools.cache
def command(user: str) -> tuple[list[str], str]:
    """Return how to start an interpreter as that user; and why not, if so."""
    if user == "root":
        return ([sys.executable], "") if os.getuid() == 0 else ([], "the tests do not run as root")
    if os.getuid() != 0:
        return [sys.executable], ""
    setpriv = shutil.which("setpriv")
    if setpriv is None:
        return [], "setpriv is not installed, so root cannot run a test as another user"
    prefix = [setpriv, "--reuid", str(NOBODY), "--regid", str(NOBODY), "--clear-groups"]
    resolve = "import os, sys; os.stat(os.path.realpath(sys.executable))"  # environments are built from it
    for python in (f"/usr/bin/python3.{sys.version_info[1]}", sys.executable):
        try:
            subprocess.run([*prefix, python, "-c", resolve], check=True, capture_output=True)
        except (OSError, subprocess.CalledProcessError):
            continue
        return [*prefix, python], ""
    return [], f"an ordinary user can run no Python 3.{sys.version_info[1]} on this machine"


@pytest.fixture(scope="module")
def outcomes() -> dict[tuple[str, str], Any]:
    """The outcomes by user and level, each set found once."""
    return {}


def outcome(found: dict[tuple[str, str], Any], user: str, level: str) -> dict[str, Any]:
    """Run all escapes as that user at that level."""
    start, why = command(user)
    why = why or available()[level.partition("+")[0]]
    if why:
        pytest.skip(why)
    if (user, level) not in found:
        with tempfile.TemporaryDirectory(prefix="isolate-attacks-") as name:
            folder, home = Path(name, "work"), Path(name, "home")
            for place in (folder, home):
                place.mkdir()
                if user != "root" and os.getuid() == 0:
                    os.chown(place, NOBODY, NOBODY)
            Path(name).chmod(0o755)
            paths = [str(Path(isolate.__file__).parents[1]), *(path for path in sys.path if "site-packages" in path)]
            done = subprocess.run(
                [*start, str(HERE / "run_attacks.py"), level, str(folder)],
                capture_output=True,
                text=True,
                env={
                    "PATH": os.environ["PATH"],
                    "HOME": str(home),
                    "PYTHONPATH": os.pathsep.join(paths),
                    "PYTHONDONTWRITEBYTECODE": "1",
                    "ATTACK_SECRET": "1",
                },
                cwd=name,
            )
        assert done.returncode == 0, done.stderr
        found[user, level] = json.loads(done.stdout)
    result: dict[str, Any] = found[user, level]
    return result


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.xdist_group("escapes")
@pytest.mark.parametrize("escape", ESCAPES)
@pytest.mark.parametrize("level", ["landlock", "bwrap", "landlock+gpus", "bwrap+gpus"])
@pytest.mark.parametrize("user", ["root", "ordinary"])
def test_escape(outcomes: dict[tuple[str, str], Any], user: str, level: str, escape: str) -> None:
    """It fails; or it is of a kind that the worker's own attempt has found possible, and the report says so."""
    result = outcome(outcomes, user, level)[escape]
    assert not result["evidence"] or result["named"], result


def test_there_are_enough() -> None:
    """The set does not shrink."""
    assert len(ESCAPES) >= 60
