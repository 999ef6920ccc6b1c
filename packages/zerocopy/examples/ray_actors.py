"""Share one model among several Ray actors and tasks, and switch the actors to a new version between two calls.

python packages/zerocopy/examples/ray_actors.py [ACTORS]
"""

from __future__ import annotations

import os
import sys

import torch
from torch import nn

import zerocopy

os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")  # else `uv run` makes Ray build an environment per worker


def main(actors: int = 3) -> None:
    """Publish, call from actors and from a task, reload, and print what the actors share."""
    import ray

    from zerocopy.on_ray import ModelActor

    ray.init(address="local", num_cpus=2, object_store_memory=80 << 20, include_dashboard=False, log_to_driver=False)
    model = nn.Sequential(*[nn.Linear(1024, 1024) for _ in range(8)]).eval()
    inputs = torch.ones(1, 1024)
    name = f"example-{os.getpid()}"  # names are machine-wide, and two of these programs may run side by side
    ref = zerocopy.publish(model, name=name)
    pool = [ray.remote(ModelActor).options(num_cpus=0.1).remote(ref) for _ in range(actors)]
    with torch.no_grad():
        expected = model(inputs)
    answers = ray.get([actor.call.remote("forward", (inputs,)) for actor in pool])
    answers.append(ray.get(ray.remote(zerocopy.call_model).remote(ref, "forward", (inputs,))))
    print("answers are the model's:", all(torch.allclose(answer, expected) for answer in answers))

    with torch.no_grad():
        model[7].bias.add_(1)
    second = zerocopy.publish(model, name=name)
    print("versions:", ray.get([actor.reload.remote(second) for actor in pool]))
    for view in zerocopy.report().views:
        if second.path.endswith(view.segment):
            print(f"{view.pid}: share {view.proportional >> 20} MiB, private {view.private >> 10} KiB")
    ray.shutdown()


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
