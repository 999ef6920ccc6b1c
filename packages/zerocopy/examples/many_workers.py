"""Serve one model from several processes, publish a better version while they work, and see what they share.

python packages/zerocopy/examples/many_workers.py
"""

from __future__ import annotations

import multiprocessing
import time
from typing import Any

import torch
from torch import nn

import zerocopy

NAME = "example"


def work(seconds: float, results: Any) -> None:
    """Answer with whatever version is current, and tell which ones that were."""
    torch.set_num_threads(1)
    live = zerocopy.follow(NAME)
    seen = []
    end = time.monotonic() + seconds
    with torch.no_grad():
        while time.monotonic() < end:
            ref, model = live.get()
            model(torch.ones(1, 1024))
            if ref.version not in seen:
                seen.append(ref.version)
    results.put(seen)


def main() -> None:
    """Publish, start four workers, publish again, and print a report in between."""
    model = nn.Sequential(*[nn.Linear(1024, 1024) for _ in range(8)])
    zerocopy.publish(model, name=NAME)
    context = multiprocessing.get_context("spawn")
    results = context.SimpleQueue()
    workers = [context.Process(target=work, args=(8, results)) for _ in range(4)]
    for worker in workers:
        worker.start()
    time.sleep(8)
    with torch.no_grad():
        model[0].bias.add_(1)
    zerocopy.publish(model, name=NAME)
    time.sleep(1)
    for view in zerocopy.report().views:
        print(f"{view.pid}: {view.segment}, share {view.proportional >> 20} MiB, private {view.private >> 10} KiB")
    for worker in workers:
        print("versions seen:", results.get())
        worker.join()


if __name__ == "__main__":
    main()
