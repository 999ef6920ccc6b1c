"""A cluster of four raylets on one machine, one of them without ttt and one killed while tasks run; prints JSON."""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from pathlib import Path

import numpy as np
from ttt_test_backends import Wanderer

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


def main(n: int, folder: Path) -> None:
    """Solve n tasks on the cluster, killing a node on the way, and compare with this machine alone."""
    from ray.cluster_utils import Cluster

    lacking = folder / "lacking"
    lacking.mkdir()
    (lacking / "sitecustomize.py").write_text(BLOCKER)
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    cluster.add_node(num_cpus=1)
    path = os.environ["PYTHONPATH"]
    cluster.add_node(num_cpus=1, env_vars={"PYTHONPATH": f"{lacking}{os.pathsep}{path}"})
    doomed = cluster.add_node(num_cpus=1)
    import ray

    ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
    chosen = tasks(n)
    run = ttt.run(chosen, backend=Wanderer(), budget="30 steps", pool="ray", folder=folder / "run")
    begun, cpu = time.monotonic(), time.process_time()
    notes: list[str] = []
    killed = False
    for event in run:
        notes += [run.notes.pop(0) for _ in range(len(run.notes))]
        if isinstance(event, ttt.Finished) and len(run.results) >= n // 4 and not killed:
            killed = True
            threading.Thread(target=cluster.remove_node, args=(doomed,), kwargs={"allow_graceful": False}).start()
    wall, spent = time.monotonic() - begun, time.process_time() - cpu
    notes += run.notes
    ray.shutdown()
    cluster.shutdown()
    near = ttt.run(chosen[: min(n, 60)], backend=Wanderer(), budget="30 steps", workers=2)
    for _ in near:
        pass
    far, here = json.loads(run.submission()), json.loads(near.submission())
    figures = {
        "answered": sum(r.answered and r.status == "stopped" for r in run.results.values()),
        "same_bytes": all(far[i] == here[i] for i in here),
        "notes": notes,
        "seconds": round(wall, 1),
        "driver_cpu": round(spent, 2),
        "driver_share": round(spent / wall, 3),
    }
    print(json.dumps(figures))


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
