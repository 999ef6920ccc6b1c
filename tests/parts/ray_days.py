"""A cluster of two raylets on this machine, and what happens to it while it works; prints the figures as JSON.

    PYTHONPATH=examples/fleet python tests/parts/ray_days.py serving FOLDER
    PYTHONPATH=examples/fleet python tests/parts/ray_days.py tasks FOLDER --count 10000

`serving` is the fleet on Ray Serve: a node dies under load, another one joins, and a new version is rolled out to it.
`tasks` runs small tasks with a published model. On the way a node dies and another one joins; then a model is loaded
whose publisher was on the node that died. The figures include the memory of this process, the driver, on the way.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import ray
import torch
from fleet import Fleet
from on_ray import start_node
from ray.cluster_utils import Cluster
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
from show import newest_report
from trial import model
from trial.clients import Clients

import zerocopy
from zerocopy.errors import SegmentGoneError

WINDOW = 100
"""Tasks that are open at a time."""
MARKS = 20
"""How often the driver's memory is looked at."""


PATIENCE = 150
"""Seconds that what a busy machine puts off is waited for."""


def until(condition: Callable[[], bool]) -> None:
    """Wait for a condition, which the figures show."""
    end = time.monotonic() + PATIENCE
    while not condition() and time.monotonic() < end:
        time.sleep(0.2)


def replicas(fleet: Fleet) -> list[dict[str, Any]]:
    """Return the next report about the replicas."""
    return [view for view in newest_report(fleet) if view["command"].startswith("ray::ServeRepl")]


def serving(folder: Path, seconds: float) -> dict[str, Any]:
    """Serve while a node dies and another joins.

    Args:
        folder: For the models and the plugins' environments.
        seconds: How long clients ask in each of three phases.
    """
    files = model.train(folder / "model")
    with Fleet(folder, files[1], 2, ray=True) as fleet:
        workers = fleet.workers
        clients = Clients(fleet.gateway.port, list(files.values()), count=2)
        begun = time.monotonic()
        try:
            time.sleep(seconds)
            died = time.monotonic()
            workers.cluster.remove_node(workers.second, allow_graceful=False)
            time.sleep(2 * seconds)
            start_node(workers.cluster, 4)
            fleet.publish(files[2])
            time.sleep(seconds)
            # A busy machine starts the second replica and moves to the new version later.
            until(lambda: len({view["pid"] for view in replicas(fleet)}) == 2)
            until(lambda: all(clients.ask(2, 3).version == "sums-2" for _ in range(4)))
            outcomes = clients.stop()
            held = replicas(fleet)
            last = [clients.ask(2, 3) for _ in range(10)]
        finally:
            clients.close()
    answers = [outcome for outcome in outcomes if not outcome.error]
    longest = max((outcome.seconds for outcome in answers), default=0.0)
    return {
        "seconds": round(time.monotonic() - begun, 1),
        "answers": len(answers),
        "answers after the death": sum(outcome.at > died for outcome in answers),
        "not whole": [str(outcome) for outcome in answers if not outcome.whole],
        "errors": Counter(outcome.error for outcome in outcomes if outcome.error),
        "longest answer": round(longest, 2),
        "last": [outcome.version for outcome in last if outcome.whole],
        "replicas": len({view["pid"] for view in held}),
        "nodes with a copy": len({view["segment"] for view in held}),
        "written": sum(view["private"] for view in held),
    }


def published_elsewhere() -> zerocopy.ModelRef:
    """Publish a model from the process that this runs in."""
    return zerocopy.publish(torch.nn.Linear(4, 4), name="on-the-second-node")


class Publisher:
    """An actor that has published a model and lives on."""

    def publish(self) -> zerocopy.ModelRef:
        """Publish a model."""
        return published_elsewhere()


def tasks(count: int, nodes: int) -> dict[str, Any]:
    """Run tasks with one published model, a window of them at a time.

    Args:
        count: How many tasks.
        nodes: How many nodes there are at first.
    """
    cluster = Cluster()
    second = [start_node(cluster, 2) for _ in range(nodes)][1]
    ray.init(address=cluster.address, logging_level=logging.ERROR, log_to_driver=False)
    network = torch.nn.Linear(8, 8)
    ref = zerocopy.publish(network, name="of-many-tasks")
    call = ray.remote(num_cpus=1)(zerocopy.call_model)
    there = NodeAffinitySchedulingStrategy(second.node_id, soft=False)
    publisher = ray.remote(Publisher).options(num_cpus=0, scheduling_strategy=there).remote()
    lost = ray.get(publisher.publish.remote())
    wanted: dict[Any, torch.Tensor] = {}
    right, begun, memory, process = 0, time.monotonic(), [], psutil.Process()
    processor = process.cpu_times()
    for number in range(count + WINDOW):
        if number < count:
            given = torch.full((1, 8), float(number % 97))
            with torch.no_grad():
                wanted[call.remote(ref, "__call__", (given,), None)] = network(given)
        if wanted and (len(wanted) == WINDOW or number >= count):
            done, _ = ray.wait(list(wanted), num_returns=1)
            right += int(torch.allclose(ray.get(done[0]), wanted.pop(done[0]), atol=1e-5))
        if number == count // 3:
            cluster.remove_node(second, allow_graceful=False)
        if number == count // 2:
            late = start_node(cluster, 2)
        if number % (count // MARKS) == 0:
            memory.append(process.memory_info().rss)
    used = process.cpu_times()
    seconds = time.monotonic() - begun

    def copies() -> int:
        return sum(late.node_id[:8] in path.name for path in Path(ref.path).parent.glob("of-many-tasks@*.zc"))

    # The processes of the late node may still be starting when the other one has done all tasks.
    until(lambda: bool(ray.get([call.remote(ref, "__call__", (given,), None) for _ in range(WINDOW)])) and copies() > 0)
    try:
        lost.load(cached=False)
        said = "loaded"
    except SegmentGoneError:
        said = "SegmentGoneError"
    late_copies = copies()
    zerocopy.unpublish(ref)
    ray.shutdown()
    cluster.shutdown()
    return {
        "tasks": count,
        "nodes": nodes,
        "right": right,
        "seconds": round(seconds, 1),
        "driver ms per task": round(1000 * (used.user + used.system - processor.user - processor.system) / count, 2),
        "driver MB": [round(size / 1e6, 1) for size in memory],
        "late node's copies": late_copies,
        "lost model": said,
    }


def main() -> None:
    """Run one of the two."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["serving", "tasks"])
    parser.add_argument("folder", type=Path, help="models, wheels and environments, kept from run to run")
    parser.add_argument("--count", type=int, default=1000, help="how many tasks")
    parser.add_argument("--nodes", type=int, default=2, help="nodes at first, for tasks")
    parser.add_argument("--seconds", type=float, default=4, help="how long clients ask in each phase")
    args = parser.parse_args()
    os.environ |= {"RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0", "RAY_USAGE_STATS_ENABLED": "0"}
    found = serving(args.folder, args.seconds) if args.what == "serving" else tasks(args.count, args.nodes)
    print("FIGURES", json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
