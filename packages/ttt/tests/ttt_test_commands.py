"""Starts the command line as its users do, for tests that send signals to it or kill it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import ttt
from ttt._tasks.loader import task_json


def solve_command(
    folder: Path, tasks: list[ttt.Task], *arguments: str, stderr: Any = subprocess.STDOUT
) -> subprocess.Popen[str]:
    """Start `ttt solve` on tasks as its users do, in a process of its own."""
    (folder / "tasks.json").write_text(json.dumps({t.id: task_json(t) for t in tasks}))
    command = [
        sys.executable,
        "-m",
        "ttt",
        "solve",
        str(folder / "tasks.json"),
        "--out",
        str(folder / "out.json"),
    ]
    return subprocess.Popen(
        [*command, *arguments],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        stdout=subprocess.PIPE,
        stderr=stderr,
        text=True,
    )
