"""Serve one model from several processes, publish a new version while they work, and print what they share.

python packages/zerocopy/examples/many_workers.py [WORKERS]
"""

from __future__ import annotations

import multiprocessing
import os
import sys
from typing import Any

import torch
from torch import nn

import zerocopy


def work(name: str, answers: Any) -> None:
    """Answer with the current version until that is the second one, then wait for the end."""
    torch.set_num_threads(1)
    live = zerocopy.follow(name)
    seen: list[int] = []
    with torch.no_grad():
        while 2 not in seen:
            ref, model = live.get()
            model(torch.ones(1, 1024))
            if ref.version not in seen:
                seen.append(ref.version)
                answers.send(seen)
    answers.recv()


def main(workers: int = 4) -> None:
    """Publish, start workers, publish again after all have answered, and print what they share."""
    model = nn.Sequential(*[nn.Linear(1024, 1024) for _ in range(8)])
    name = f"example-{os.getpid()}"  # names are machine-wide, and two of these programs may run side by side
    zerocopy.publish(model, name=name)
    context = multiprocessing.get_context("spawn")
    pipes, processes = [], []
    for _ in range(workers):
        ours, theirs = context.Pipe()
        pipes.append(ours)
        processes.append(context.Process(target=work, args=(name, theirs)))
        processes[-1].start()
    for pipe in pipes:
        pipe.recv()
    with torch.no_grad():
        model[0].bias.add_(1)
    second = zerocopy.publish(model, name=name)
    for pipe in pipes:
        print("versions seen:", pipe.recv())
    for view in zerocopy.report(pids=[process.pid for process in processes]).views:
        if second.path.endswith(view.segment):
            print(f"{view.pid}: share {view.proportional >> 20} MiB, private {view.private >> 10} KiB")
    for pipe, process in zip(pipes, processes, strict=True):
        pipe.send("end")
        process.join()


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
