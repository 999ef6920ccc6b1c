"""The workers of a fleet as replicas of Ray Serve, on two nodes of a cluster that is started on this machine."""

from __future__ import annotations

import logging
import os
import socket
from contextlib import ExitStack
from typing import Any

import ray
from ray import serve
from ray.cluster_utils import Cluster

import zerocopy
from ternary import llm


def start_node(cluster: Cluster, cpus: int) -> Any:
    """Add a node to a cluster. Without a limit Ray would take 30 % of the memory for objects."""
    return cluster.add_node(num_cpus=cpus, object_store_memory=80 << 20, include_dashboard=False)


class Replicas:
    """Processes of Ray Serve that answer from one copy of the weights per node.

    Args:
        count: How many processes.
    """

    def __init__(self, count: int) -> None:
        self._count = count
        os.environ |= {"RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0", "RAY_USAGE_STATS_ENABLED": "0"}
        with ExitStack() as stack:
            self.cluster = Cluster()
            stack.callback(self.cluster.shutdown)
            _, self.second = (start_node(self.cluster, 2 * count) for _ in range(2))
            stack.callback(ray.shutdown)
            ray.init(address=self.cluster.address, logging_level=logging.ERROR, log_to_driver=False)
            logging.getLogger("ray.serve").setLevel(logging.WARNING)
            with socket.create_server(("127.0.0.1", 0)) as free:
                self.port: int = free.getsockname()[1]
            stack.callback(serve.shutdown)
            serve.start(proxy_location="HeadOnly", http_options={"host": "127.0.0.1", "port": self.port})
            self.close = stack.pop_all().close

    def deploy(self, ref: zerocopy.ModelRef) -> None:
        """Answer with a version from now on, and return when it answers: one replica is replaced after the other."""
        options: dict[str, Any] = {"replicas": self._count, "ray_actor_options": {"num_cpus": 0.5}}
        serve.run(llm.deployment(ref, threads=1, **options), route_prefix="/")
