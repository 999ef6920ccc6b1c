"""ttt beside the fleet: it adapts the model that the workers serve to ARC tasks, over the same bytes of its weights.

Each task gets an adapter of its own; what lies under it is the published version, packed, mapped, never written.
"""

from __future__ import annotations

import json
import os
import re
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from trial.model import NUMBERS

import ttt
import zerocopy
from ternary import llm
from ttt.backends.lm import LmBackend

SYMBOLS = (*NUMBERS[:10], ".", "gets", "has", "Now", "more", "Anna")
"""The words that ttt writes grids in: the colours, then the end of a row, before an input, before an output, the end of
a grid, padding, and the beginning."""
TASKS, STEPS = "arcagi1:training/6150a2bd,25ff71a9", 60
LORA = {"rank": 8, "alpha": 16, "steps": STEPS, "micro_batch": 2, "learning_rate": 5e-3, "views": 1}
LORA |= {"prediction_views": 1, "max_symbols": 1280}


@dataclass(frozen=True)
class Published:
    """A version of the model that the fleet has published, as a base of ttt.

    Args:
        ref: The version. Its segment stays while this run goes on, also when a newer one is published.
    """

    ref: zerocopy.ModelRef

    def load(self) -> llm.FrozenForCausalLM:
        """Map the version in a process of ttt."""
        return llm.FrozenForCausalLM(llm.load(self.ref, threads=1))

    @contextmanager
    def on_this_node(self) -> Iterator[Published]:
        """Keep the version mapped on this node until the run ends."""
        with self.ref.on_this_node() as here:
            kept = here.load()
            yield replace(self, ref=here)
            del kept

    def identity(self) -> str:
        """Return what tells the weights from others."""
        return self.ref.digest


@dataclass(frozen=True)
class Beside(LmBackend):
    """Answers as `LmBackend` does; the reason of each answer also tells where the weights lie, as JSON."""

    @contextmanager
    def loaded(self) -> Iterator[Any]:
        """Yield the backend with the version mapped."""
        with super().loaded() as backend:
            yield _Telling(backend)


@dataclass(frozen=True)
class _Telling:
    backend: Any
    name: str = "lm"

    def solve(self, task: ttt.Task, clock: ttt.Clock, workdir: Path | None) -> Iterator[ttt.Progress]:
        for progress in self.backend.solve(task, clock, workdir):
            told = whereabouts(self.backend.service.model)
            answers = tuple(
                tuple(replace(each, why=json.dumps(told | {"why": each.why})) for each in row)
                for row in progress.answers
            )
            yield replace(progress, answers=answers)


def whereabouts(model: Any) -> dict[str, Any]:
    """Return the segments that this process maps, and how many bytes of a model lie in them, elsewhere, in adapters."""
    places = []
    for line in Path("/proc/self/maps").read_text().splitlines():
        addresses, _, _, _, _, *path = line.split(maxsplit=5)
        if path and ".zc" in path[0]:
            low, high = (int(each, 16) for each in addresses.split("-"))
            places.append((low, high, os.path.basename(path[0].removesuffix(" (deleted)"))))
    found = Counter({"shared": 0, "private": 0, "adapters": 0})
    for tensor in model.state_dict(keep_vars=True).values():
        there = any(low <= tensor.data_ptr() < high for low, high, _ in places)
        found["adapters" if tensor.requires_grad else "shared" if there else "private"] += tensor.nbytes
    return dict(found) | {"pid": os.getpid(), "segments": sorted({file for _, _, file in places})}


def to_the_end(run: ttt.Run, ending: threading.Event) -> bool:
    """Solve a run's tasks unless `ending` is set first; return whether all are solved."""
    threading.Thread(target=lambda: ending.wait() and run.interrupt(), daemon=True).start()
    for _ in run:
        pass
    return not run.interrupted


def adapt_beside(
    found: dict[str, Any], base: Published, folder: Path, ending: threading.Event, pool: Literal["local", "ray"]
) -> None:
    """Adapt the version to two ARC tasks, write their submission, and keep what was learned and where it lay."""
    backend = Beside(base=base, device="cpu", symbols=SYMBOLS, lora=LORA)
    run = ttt.run(ttt.load(TASKS), backend=backend, budget=f"{STEPS} steps", workers=1, pool=pool)
    if not to_the_end(run, ending):
        return
    run.write_submission(folder / "submission.json")
    adapted: dict[str, Any] = {"tasks": {}, "errors": [each.error for each in run.results.values() if each.error]}
    for task, result in run.results.items():
        if result.error is None:
            told = json.loads(result.predictions[0].first.why)
            first, last = re.findall(r"loss ([\d.]+) to ([\d.]+)", told.pop("why"))[0]
            adapted["tasks"][task] = {"loss before": float(first), "loss after": float(last), **told}
    found["adapted"] = adapted


def is_ttt(pid: int) -> bool:
    """Return whether a process is one in which ttt solves tasks."""
    try:
        return b"ttt._runs.worker" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:  # it has just ended
        return False
