"""The workers of a fleet as replicas of Ray Serve, on two nodes of a cluster that is started on this machine."""

from __future__ import annotations

import logging
import os
import socket
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import ray
from gateway import TRIES
from ray import serve
from ray.cluster_utils import Cluster
from worker import holdings

import zerocopy
from ternary import llm


@dataclass(eq=False)
class Address:
    """Where requests go, and how many of them are open."""

    port: int
    open: int = 0


def start_node(cluster: Cluster, cpus: int) -> Any:
    """Add a node to a cluster. Without a limit Ray would take 30 % of the memory for objects."""
    return cluster.add_node(num_cpus=cpus, object_store_memory=80 << 20, include_dashboard=False)


class RayWorkers:
    """Replicas that answer from one copy of the weights per node. It does for a gateway what a `Supervisor` does.

    Args:
        name: The name that the weights are published under.
        count: How many replicas there are.
        file: The first version of the model.
    """

    restarts = 0
    """Ray Serve does not tell how many replicas it has replaced."""

    def __init__(self, name: str, count: int, file: Path) -> None:
        self._name, self._count = name, count
        os.environ |= {"RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0", "RAY_USAGE_STATS_ENABLED": "0"}
        with ExitStack() as stack:
            self.cluster = Cluster()
            stack.callback(self.cluster.shutdown)
            _, self.second = (start_node(self.cluster, 2 * count) for _ in range(2))
            stack.callback(ray.shutdown)
            ray.init(address=self.cluster.address, logging_level=logging.ERROR, log_to_driver=False)
            logging.getLogger("ray.serve").setLevel(logging.WARNING)
            with socket.create_server(("127.0.0.1", 0)) as free:
                port = free.getsockname()[1]
            stack.callback(serve.shutdown)
            serve.start(proxy_location="HeadOnly", http_options={"host": "127.0.0.1", "port": port})
            # One proxy chooses among the replicas: the gateway's other tries go to it too.
            self.workers = [Address(port) for _ in range(TRIES)]
            self.publish(file)
            stack.callback(lambda: zerocopy.unpublish(self._ref))
            self._stack = stack.pop_all()

    def publish(self, file: Path) -> None:
        """Make a model file the newest version: Ray Serve replaces one replica after the other."""
        self._ref = llm.publish(file, name=self._name)
        application = llm.deployment(
            self._ref, name=file.stem, replicas=self._count, threads=1, ray_actor_options={"num_cpus": 0.5}
        )
        serve.run(application, route_prefix="/")

    def wait(self, count: int) -> None:
        """Return at once: `publish` waits until the replicas are ready."""

    @property
    def reports(self) -> dict[int, dict[str, Any]]:
        """What each replica holds now."""
        found = {}
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                if not process.name().startswith("ray::ServeRepl"):
                    continue
                held = holdings(process)
                if any(self._name in path for path in held["files"]):  # others may serve on this machine too
                    found[process.pid] = held
        return found

    def end(self) -> None:
        """End the replicas and the cluster."""
        self._stack.close()
