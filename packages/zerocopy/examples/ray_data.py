"""Predict a Ray Data set with a few workers that share one model.

python packages/zerocopy/examples/ray_data.py [WORKERS]
"""

from __future__ import annotations

import os
import sys

import numpy as np
import torch
from torch import nn

import zerocopy

os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")  # else `uv run` makes Ray build an environment per worker


def main(workers: int = 2) -> None:
    """Publish, map batches of a data set, and compare with the model's own answers."""
    import ray
    import ray.data

    from zerocopy.on_ray import BatchPredictor

    ray.init(address="local", num_cpus=2, object_store_memory=80 << 20, include_dashboard=False, log_to_driver=False)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 1024), nn.ReLU(), nn.Linear(1024, 2)).eval()
    ref = zerocopy.publish(model)
    rows = np.random.default_rng(0).standard_normal((200, 16)).astype(np.float32)
    predicted = ray.data.from_numpy(rows).map_batches(
        BatchPredictor,
        fn_constructor_args=(ref,),
        batch_size=20,
        num_cpus=0.1,
        compute=ray.data.ActorPoolStrategy(size=workers),
    )
    found = {tuple(row["data"]): row["prediction"] for row in predicted.take_all()}
    with torch.no_grad():
        wanted = model(torch.from_numpy(rows)).numpy()
    right = all(np.allclose(found[tuple(row)], answer, atol=1e-5) for row, answer in zip(rows, wanted, strict=True))
    print(f"{len(found)} rows by {workers} workers, as the model's: {right}")
    zerocopy.unpublish(ref)
    ray.shutdown()


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
