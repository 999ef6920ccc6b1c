"""A cluster of four raylets on one machine, and what may happen to a run of `ttt solve --ray` on it; prints JSON.

One node lacks ttt. A node is killed while tasks run, Ctrl-C ends the command, and the same command goes on; the disk of
its run folder fills up. Then the answers are compared with those of this machine alone.
"""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from ttt_test_commands import solve_command

import ttt

BLOCKER = """
import sys


class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name == "ttt" or name.startswith("ttt."):
            raise ModuleNotFoundError("No module named 'ttt'")


sys.meta_path.insert(0, Blocker())
"""


def tasks(n: int) -> list[ttt.Task]:
    """Small tasks, each of another content."""
    rng = np.random.default_rng(0)
    made = []
    for i in range(n):
        grid = ttt.as_grid(rng.integers(0, 10, (3, 3)).astype(np.uint8))
        made.append(ttt.Task(f"t{i:04d}", (ttt.Pair(grid, grid),), (ttt.Pair(grid),)))
    return made


SOLVE = ("--steps", "30", "--backend", "ttt_test_backends:Wanderer", "--json")


class Command:
    """One `ttt solve`: what it says and returns, and the share of a core that it takes while tasks run."""

    def __init__(self, folder: Path, chosen: list[ttt.Task], run: Path, *arguments: str) -> None:
        self._records = run / "records"
        self._said = folder / "said.txt"
        with self._said.open("w") as said:
            self.process = solve_command(folder, chosen, *SOLVE, "--run", str(run), *arguments, stderr=said)
        self._marks: list[tuple[float, float]] = []

    def follow(self, acts: dict[int, Callable[[], Any]]) -> dict[str, Any]:
        """Do each act once there are so many records, wait for the end, and return what the command printed."""
        waiting = sorted(acts.items())
        printed: list[str] = []
        reader = threading.Thread(target=lambda: printed.append(self.process.communicate()[0]))
        reader.start()
        while reader.is_alive():
            count = len(list(self._records.glob("*.json"))) if self._records.is_dir() else 0
            if count:
                self._look()
            while waiting and count >= waiting[0][0]:
                waiting.pop(0)[1]()
            reader.join(0.1)
        assert not waiting, (
            f"{count} records, {self.process.returncode}, {self._said.read_text()}, {printed[0][-2000:]}"
        )
        return {"status": self.process.returncode, "said": self._said.read_text(), **json.loads(printed[0])}

    def _look(self) -> None:
        try:
            used = psutil.Process(self.process.pid).cpu_times()
        except psutil.Error:
            return
        self._marks.append((time.monotonic(), used.user + used.system))

    def share(self) -> float:
        """Return the share of a core from the first record on."""
        (begun, before), (ended, after) = self._marks[0], self._marks[-1]
        return (after - before) / max(ended - begun, 1.0)


def fill(folder: Path) -> None:
    """Leave no byte on the disk of a folder."""
    try:
        with (folder / "fill").open("wb", buffering=0) as file:
            while True:
                file.write(bytes(1 << 12))
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise


def main(n: int, folder: Path, small_disk: Path) -> None:
    """Solve n tasks on the cluster on a bad day, and again on this machine.

    Args:
        n: How many tasks.
        folder: For everything else.
        small_disk: The folder of the run, on a disk of its own.
    """
    from ray.cluster_utils import Cluster

    lacking = folder / "lacking"
    lacking.mkdir()
    (lacking / "sitecustomize.py").write_text(BLOCKER)
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    cluster.add_node(num_cpus=1)
    path = os.environ["PYTHONPATH"]
    cluster.add_node(num_cpus=1, env_vars={"PYTHONPATH": f"{lacking}{os.pathsep}{path}"})
    doomed = cluster.add_node(num_cpus=1)
    os.environ["RAY_ADDRESS"] = cluster.address
    chosen, run = tasks(n), small_disk / "run"

    def kill_a_node() -> None:
        threading.Thread(target=cluster.remove_node, args=(doomed,), kwargs={"allow_graceful": False}).start()

    begun = time.monotonic()
    first = Command(folder, chosen, run, "--ray")
    cut = first.follow({n // 4: kill_a_node, n // 2: lambda: first.process.send_signal(signal.SIGINT)})
    second = Command(folder, chosen, run, "--ray")
    whole = second.follow({3 * n // 4: lambda: fill(small_disk)})
    wall = time.monotonic() - begun
    cluster.shutdown()
    del os.environ["RAY_ADDRESS"]
    far = json.loads(Path(whole["submission"]).read_text())
    near = alone(folder, chosen)
    figures = {
        "seconds": round(wall, 1),
        "interrupted": [
            cut["status"],
            sum(t["status"] == "stopped" and t["reason"] != "interrupt" for t in cut["tasks"]),
        ],
        "resumed": [whole["status"], sum(t["reused"] for t in whole["tasks"])],
        "answered": sum(t["status"] == "stopped" for t in whole["tasks"]),
        "same_bytes": far == near and len(far) == n,
        "said": [cut["said"], whole["said"]],
        "driver_share": round(max(first.share(), second.share()), 3),
    }
    print(json.dumps(figures))


def alone(folder: Path, chosen: list[ttt.Task]) -> Any:
    """Return the submission of this machine."""
    near = folder / "near"
    near.mkdir()
    done = solve_command(near, chosen, *SOLVE, "--workers", "2", stderr=subprocess.DEVNULL)
    done.communicate()
    return json.loads((near / "out.json").read_text())


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]))
