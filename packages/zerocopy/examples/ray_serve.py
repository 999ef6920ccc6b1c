"""Serve a model by HTTP from Ray Serve replicas that share its weights, and reload them without a restart.

python packages/zerocopy/examples/ray_serve.py [REPLICAS] [PORT]
"""

from __future__ import annotations

import json
import os
import sys
import urllib.request

from torch import nn

import zerocopy

os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")  # else `uv run` makes Ray build an environment per worker


def layer(value: float) -> nn.Module:
    """Return a model that multiplies the sum of its input."""
    made = nn.Linear(4, 1)
    nn.init.constant_(made.weight, value)
    nn.init.zeros_(made.bias)
    return made.eval()


def post(port: int) -> float:
    """Ask one of the replicas."""
    body, headers = json.dumps([[1.0, 1.0, 1.0, 1.0]]).encode(), {"Content-Type": "application/json"}
    with urllib.request.urlopen(
        urllib.request.Request(f"http://127.0.0.1:{port}/", body, headers), timeout=60
    ) as answer:
        return float(json.load(answer)[0][0])


def main(replicas: int = 2, port: int = 8000) -> None:
    """Serve the first version, then the second, by the same application."""
    import ray
    from ray import serve

    from zerocopy.on_ray import deployment

    ray.init(address="local", num_cpus=2, object_store_memory=80 << 20, include_dashboard=False, log_to_driver=False)
    serve.start(http_options={"port": port})
    name = f"serve-{os.getpid()}"
    options = {"num_replicas": replicas, "ray_actor_options": {"num_cpus": 0.1}}
    for value in (1.0, 2.0):
        ref = zerocopy.publish(layer(value), name=name)
        serve.run(deployment(ref, user_config={"ref": ref.as_dict()}, **options))
        answers = {post(port) for _ in range(20)}
        print(f"version {ref.version}: {sorted(answers)}")
    serve.shutdown()
    ray.shutdown()
    zerocopy.unpublish(ref)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
