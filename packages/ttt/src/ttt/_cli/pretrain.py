"""The command `pretrain`."""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from rich.console import Console

from ttt._cli.arguments import Commands, add_json, add_tasks, backends_of, positive, print_json, seconds, warn_rejected
from ttt._tasks.sources import load
from ttt.errors import InvalidBackendError


def add_commands(sub: Commands) -> None:
    """Add the command."""
    p = sub.add_parser(
        "pretrain",
        help="train the vit backend's network on many tasks",
        description="Train the network of the vit backend on all pairs of some tasks, such as a folder that re-arc "
        "wrote. OUT gets weights.safetensors and checkpoints; the same command goes on where it was stopped. "
        "Use ttt leaks to compare the tasks with those that you evaluate on.",
    )
    add_tasks(p)
    p.add_argument("--out", type=Path, required=True, help="a folder for the weights and the checkpoints")
    p.add_argument("--steps", type=positive, default=10_000, metavar="N", help="training steps (default 10000)")
    p.add_argument("--time", type=seconds, default=float("inf"), metavar="TIME", help="stop after it: 90min, 40h")
    p.add_argument("--checkpoint-every", type=positive, default=500, metavar="N", help="steps (default 500)")
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--recipe", choices=["vit"], help="the settings of a recipe; --set changes them")
    p.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="a setting of vit, as JSON")
    add_json(p)
    p.set_defaults(function=pretrain_command, backend=["vit"])


def pretrain_command(args: argparse.Namespace) -> int:
    """`ttt pretrain`."""
    # Imported here: PyTorch takes seconds to load.
    from ttt.backends._pretraining import Pretraining, lessons
    from ttt.backends.vit import VitBackend
    from ttt.checkpoint import CheckpointStore

    (backend,) = backends_of(args)
    if not isinstance(backend, VitBackend) or backend.weights is not None:
        raise InvalidBackendError("pretrain starts from random weights: leave out the setting weights")
    tasks = load(*args.tasks, solutions=args.solutions)
    warn_rejected(tasks)
    console = Console(highlight=False, stderr=args.json)
    args.out.mkdir(parents=True, exist_ok=True)
    store = CheckpointStore(args.out / "checkpoints", kind="vit-pretraining")
    given = lessons(tasks, int(backend.shape.get("side", 32)))
    training = Pretraining(backend, given, args.steps, args.seed)
    if training.resume(store):
        console.print(f"goes on at step {training.step}")
    size = sum(p.numel() for p in training.learner.model.parameters())
    console.print(f"{len(given)} rules, {sum(len(x.pairs) for x in given)} pairs, {size / 1e6:.2f} million weights")
    begun, first = time.monotonic(), training.step
    while training.step < args.steps and time.monotonic() - begun < args.time:
        training.one_step()
        if training.step % args.checkpoint_every == 0:
            training.save(store)
            console.print(f"step {training.step}: loss {sum(training.losses[-50:]) / len(training.losses[-50:]):.4f}")
    if training.step > first:
        training.save(store)
    weights = args.out / "weights.safetensors"
    training.write(weights)
    if args.json:
        print_json({"weights": str(weights), "step": training.step, "loss": training.losses[-1], "rules": len(given)})
    else:
        console.print(f"{weights}: after {training.step} of {args.steps} steps")
    return 0
