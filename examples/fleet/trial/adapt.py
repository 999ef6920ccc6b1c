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
SEARCHED = "arcagi1:training/67a3c6ac,25ff71a9"


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


class Adapting(threading.Thread):
    """Adapts a version to two ARC tasks, the second one when a newer version was rolled out, and solves two by search.

    Args:
        base: The version.
        folder: Where the submission is written.
        pool: Where ttt works.
        searched: The tasks to solve by search.

    Attributes:
        found: What was learned, and where the weights lay; not whole before the end.
        adapted_one: Set when the first task is done.
        rolled_out: To be set when there is a newer version.
    """

    def __init__(
        self, base: Published, folder: Path, pool: Literal["local", "ray"] = "local", searched: str = SEARCHED
    ) -> None:
        super().__init__()
        self.found: dict[str, Any] = {}
        self.adapted_one, self.rolled_out, self._ending = (threading.Event() for _ in range(3))
        self._folder = folder
        self._adapted = ttt.run(
            ttt.load(TASKS),
            backend=Beside(base=base, device="cpu", symbols=SYMBOLS, lora=LORA),
            budget=f"{STEPS} steps",
            workers=1,
            pool=pool,
        )
        self._searched = ttt.run(ttt.load(searched) if searched else (), budget="30s", workers=1, pool=pool)

    def stop(self) -> None:
        """End the runs if they have not ended."""
        self._ending.set()
        self.rolled_out.set()
        self._adapted.interrupt()
        self._searched.interrupt()

    def run(self) -> None:
        """Adapt, and search beside the second task; write the submission."""
        searching = threading.Thread(target=lambda: [*self._searched])
        for event in self._adapted:
            if isinstance(event, ttt.Finished) and searching.ident is None:
                searching.start()
                self.adapted_one.set()
                self.rolled_out.wait()  # ttt starts no task meanwhile
        if searching.ident is not None:
            searching.join()
        if self._ending.is_set():
            return
        self._adapted.write_submission(self._folder / "submission.json")
        self.found = {"tasks": {}, "errors": [each.error for each in self._adapted.results.values() if each.error]}
        for task, result in self._adapted.results.items():
            if result.error is None:
                self.found["tasks"][task] = _told(json.loads(result.predictions[0].first.why))
        self.found["solved by search"] = len(self._searched.score().solved)


def _told(told: dict[str, Any]) -> dict[str, Any]:
    """Return what an answer tells: the losses, and the version in the only segment that its process mapped."""
    first, last = re.findall(r"loss ([\d.]+) to ([\d.]+)", told.pop("why"))[0]
    (segment,) = told.pop("segments")
    told["version"] = "version " + segment.partition("@")[2].partition("-")[0]
    return {"loss before": float(first), "loss after": float(last), **told}


def whole_node(views: list[dict[str, Any]], nbytes: int) -> dict[str, Any] | None:
    """Return how the processes of a machine hold weights of so many bytes; None while ttt has not mapped them.

    Args:
        views: Those of a report of zerocopy, one for each process and segment.
        nbytes: The weights.
    """
    its = [view for view in views if _is_ttt(view["pid"])]
    held = Counter[str]()
    for view in views:
        held[view["segment"]] += view["proportional"]
    if not its:
        return None
    return {
        "processes": len(views),
        "copies": round(max(held.values()) / nbytes, 2),
        "ttt mapped": its[0]["resident"],
        "ttt wrote": its[0]["private"],
        "ttt elsewhere": its[0]["private_elsewhere"],
    }


def _is_ttt(pid: int) -> bool:
    """Return whether a process is one in which ttt solves tasks."""
    try:
        return b"ttt._runs.worker" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:  # it has just ended
        return False
