"""Small real solvers that the tests plug in; importable, since each task is solved in a fresh process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ttt import Candidate, Clock, Grid, Progress, Task, as_grid
from ttt._runs.child import in_child
from ttt._tasks.augment import SYMMETRIES
from ttt.errors import MemoryLimitError


@dataclass(frozen=True)
class ColourTable:
    """Solves tasks that are one symmetry of the square followed by one recolouring; claims less where it guesses."""

    name: str = "colour-table"

    def solve(self, task: Task, clock: Clock, workdir: Path | None) -> Iterator[Progress]:
        """Try the eight symmetries, each with the table that the training pairs give."""
        found: list[list[Candidate]] = [[] for _ in task.test]
        for view in SYMMETRIES:
            if clock.stop():
                return
            clock.spend()
            table = self._table(task, view.apply)
            if table is not None:
                for options, pair in zip(found, task.test, strict=True):
                    grid = as_grid(np.array(table, np.uint8)[view.apply(pair.input)])
                    options.append(Candidate(grid, 0.9, "table", f"turns {view.turns}, mirror {view.mirror}"))
            if all(found):
                yield Progress(tuple(map(tuple, found)), "table", clock.steps_done, clock.steps_done / 8)

    @staticmethod
    def _table(task: Task, look: object) -> list[int] | None:
        table = dict[int, int]()
        for pair in task.train:
            assert pair.output is not None
            seen = look(pair.input)  # type: ignore[operator]
            if seen.shape != pair.output.shape:
                return None
            for a, b in zip(seen.ravel().tolist(), pair.output.ravel().tolist(), strict=True):
                if table.setdefault(a, b) != b:
                    return None
        return [table.get(c, c) for c in range(10)]


@dataclass(frozen=True)
class Wanderer:
    """Random grids drawn from the task's seed, one per work unit: shows any difference in seeds or in steps."""

    seconds_per_step: float = 0.0
    name: str = "wanderer"

    def solve(self, task: Task, clock: Clock, workdir: Path | None) -> Iterator[Progress]:
        """Recolour a random cell per step until told to stop."""
        rng = np.random.default_rng(clock.seed)
        grids: list[Grid] = [p.input.copy() for p in task.test]
        while not clock.stop():
            for g in grids:
                g[rng.integers(g.shape[0]), rng.integers(g.shape[1])] = rng.integers(10)
            clock.spend()
            time.sleep(self.seconds_per_step)
            options = tuple((Candidate(as_grid(g), 0.1, "walk", f"step {clock.steps_done}"),) for g in grids)
            yield Progress(options, "walk", clock.steps_done, 0.5)


@dataclass(frozen=True)
class Misbehaving:
    """Answers once, then does what `how` says."""

    how: str
    name: str = "misbehaving"

    def solve(self, task: Task, clock: Clock, workdir: Path | None) -> Iterator[Progress]:
        """Answer each test input by itself, then misbehave."""
        yield Progress(tuple((Candidate(p.input, 0.3, "identity"),) for p in task.test), "identity", 1, 0.1)
        if task.id.startswith("good"):
            return
        if self.how == "ignores the clock":
            end = time.monotonic() + 300
            while time.monotonic() < end:
                pass
        elif self.how == "answers twice, then hangs":
            yield Progress(tuple((Candidate(p.input, 0.5, "second"),) for p in task.test), "second", 2, 0.2)
            time.sleep(300)
        elif self.how == "allocates":
            held = []
            for _ in range(256):  # a missing limit costs 1 GiB, and not the machine
                held.append(np.ones(4 << 20, np.uint8))
                time.sleep(0.002)
            time.sleep(60)
        elif self.how == "raises":
            raise RuntimeError("no idea <b>what</b> to do")
        elif self.how == "fills a GPU":
            raise MemoryLimitError("CUDA out of memory. Tried to allocate 2.00 GiB: raise gpu_memory")
        elif self.how == "exits":
            os._exit(7)
        elif self.how == "prints":
            print('{"kind": "done"}')
        elif self.how == "wrong count":
            yield Progress(((Candidate(task.test[0].input, 0.3),),) * (len(task.test) + 1))
        elif self.how == "wrong grid":
            yield Progress(((Candidate(np.full((2, 2), 17, np.uint8), 0.3),),) * len(task.test))


@dataclass(frozen=True)
class HoldsMemory:
    """Holds a known amount of memory for a moment, so that what is reported can be compared with what was held."""

    megabytes: int
    name: str = "holds-memory"

    def solve(self, task: Task, clock: Clock, workdir: Path | None) -> Iterator[Progress]:
        """Allocate, touch, answer; the kernel's own peak is left in the answer's `why`."""
        held = np.ones(self.megabytes * 1_000_000, np.uint8)
        time.sleep(0.1)
        peak = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
        del held
        yield Progress(tuple((Candidate(p.input, 0.3, "identity", peak.split()[1]),) for p in task.test))


@dataclass(frozen=True)
class StartsAChild:
    """Lets another process hold the memory."""

    megabytes: int
    name: str = "starts-a-child"

    def solve(self, task: Task, clock: Clock, workdir: Path | None) -> Iterator[Progress]:
        """Answer, then wait for a child that holds memory until the clock says stop."""
        yield Progress(tuple((Candidate(p.input, 0.3, "identity"),) for p in task.test))
        code = f"held = bytearray(b'1') * {self.megabytes * 1_000_000}; print(flush=True); input()"
        with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
            assert child.stdout is not None
            child.stdout.readline()
            while not clock.stop():
                time.sleep(0.05)
            child.communicate(b"\n")


def squares(n: int) -> Iterator[tuple[int, np.ndarray]]:
    """Yields arrays, made elsewhere."""
    for i in range(n):
        print("what a generator prints is no message")
        yield os.getpid(), np.full(i + 1, i * i)


def fails() -> Iterator[int]:
    """Yields once, then raises."""
    yield 1
    raise ZeroDivisionError("by design")


def exits() -> Iterator[int]:
    """Yields once, then is gone."""
    yield 1
    os._exit(7)


def burns(megabytes: int, seconds: float) -> Iterator[int]:
    """Holds memory for a moment, then uses CPU."""
    held = np.ones(megabytes * 1_000_000, np.uint8)
    del held
    while time.process_time() < seconds:
        pass
    yield 1


def pids_then_work(megabytes: int) -> Iterator[int]:
    """Holds memory, uses a second of CPU, gives this process's id and keeps a core busy for five minutes."""
    held = np.ones(megabytes * 1_000_000, np.uint8)
    while time.process_time() < 1.0:
        pass
    yield os.getpid()
    end = time.monotonic() + 300
    while time.monotonic() < end:
        held[0] += 1


@dataclass(frozen=True)
class WorksApart:
    """Lets a generator in a process of its own do the work, and heeds the clock or not."""

    megabytes: int
    heeds: bool = True
    name: str = "works-apart"

    def solve(self, task: Task, clock: Clock, workdir: Path | None) -> Iterator[Progress]:
        """Answer with the other process's id in `why`, then wait for what does not come."""
        stop = clock.stop if self.heeds else lambda: False
        for pid in in_child("ttt_test_backends:pids_then_work", (self.megabytes,), stop, clock.count_helper):
            yield Progress(tuple((Candidate(p.input, 0.3, "identity", str(pid)),) for p in task.test))


@dataclass(frozen=True)
class Holding:
    """Solves nothing, and holds whatever it was given."""

    what: object
    name: str = "holding"

    def solve(self, task: Task, clock: Clock, workdir: Path | None) -> Iterator[Progress]:
        """Yield nothing."""
        yield from ()


@dataclass(frozen=True)
class Silent:
    """Finds nothing."""

    name: str = "silent"

    def solve(self, task: Task, clock: Clock, workdir: Path | None) -> Iterator[Progress]:
        """End at once."""
        yield from ()


@dataclass(frozen=True)
class Counting:
    """Counts steps in its work folder; each answer says from which count this process went on."""

    seconds_per_step: float = 0.01
    name: str = "counting"

    def solve(self, task: Task, clock: Clock, workdir: Path | None) -> Iterator[Progress]:
        """Go on counting until told to stop."""
        file = None if workdir is None else workdir / "count"
        begun = count = int(file.read_text()) if file is not None and file.exists() else 0
        clock.spend(begun)
        while not clock.stop():
            count += 1
            clock.spend()
            if file is not None:
                file.write_text(str(count))
            time.sleep(self.seconds_per_step)
            why = f"from {begun}"
            yield Progress(tuple((Candidate(p.input, 0.3, "count", why),) for p in task.test), "count", count, 0.5)


@dataclass(frozen=True)
class KillsItsPlace:
    """Ends the process that supervises it, as the end of a node would, the first time that a task is tried."""

    marker: str
    name: str = "kills-its-place"

    def solve(self, task: Task, clock: Clock, workdir: Path | None) -> Iterator[Progress]:
        """Kill the supervisor if the marker is not there yet, else answer."""
        try:
            Path(self.marker, task.id).touch(exist_ok=False)
        except FileExistsError:
            yield Progress(tuple((Candidate(p.input, 0.3, "second place"),) for p in task.test))
            return
        os.kill(os.getppid(), 9)
        time.sleep(60)


@dataclass(frozen=True)
class LeavesAChild:
    """Starts another process, names it in its answer, and hangs."""

    name: str = "leaves-a-child"

    def solve(self, task: Task, clock: Clock, workdir: Path | None) -> Iterator[Progress]:
        """Answer with the ids of this process and of the one that it has started."""
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(300)"])
        why = f"{os.getpid()} {child.pid}"
        yield Progress(tuple((Candidate(p.input, 0.3, "identity", why),) for p in task.test))
        time.sleep(300)


@dataclass(frozen=True)
class Needs:
    """Solves a task by `ColourTable` after the seconds that it needs, and says how sure it is."""

    seconds: dict[str, float]
    name: str = "needs"

    def solve(self, task: Task, clock: Clock, workdir: Path | None) -> Iterator[Progress]:
        """Wait, then answer; answer badly at first."""
        yield Progress(tuple((Candidate(p.input, 0.01, "guess"),) for p in task.test), "guess", 0, 0.0)
        end = time.monotonic() + self.seconds[task.id]
        while time.monotonic() < end:
            if clock.stop():
                return
            time.sleep(0.02)
        yield from ColourTable().solve(task, clock, workdir)


@dataclass(frozen=True)
class Resident:
    """Stays loaded in its process, and writes down each load and each task with the process's id.

    What a task's id says: `crowded`: answers, then dies, where the process has solved other tasks. `dies`: answers,
    then dies. `waits`: waits for the end of its time.
    """

    folder: str
    service: bool = True
    name: str = "resident"

    def stays_loaded(self) -> bool:
        """Return whether one process solves several tasks."""
        return self.service

    @contextmanager
    def loaded(self) -> Iterator[ResidentLoaded]:
        """Write down the load."""
        self.note(f"load {os.getpid()}")
        yield ResidentLoaded(self)

    def note(self, line: str) -> None:
        """Add a line to the folder's file."""
        with Path(self.folder, "log").open("a") as file:
            file.write(line + "\n")

    def solve(self, task: Task, clock: Clock, workdir: Path | None) -> Iterator[Progress]:
        """Load, solve one task."""
        with self.loaded() as loaded:
            yield from loaded.solve(task, clock, workdir)


class ResidentLoaded:
    """A loaded `Resident`, which counts its tasks."""

    name = "resident"

    def __init__(self, backend: Resident) -> None:
        self.backend, self.solved = backend, 0

    def solve(self, task: Task, clock: Clock, workdir: Path | None) -> Iterator[Progress]:
        """Answer with random cells; then another answer, unless the task's id says otherwise."""
        self.backend.note(f"{task.id} {os.getpid()}")
        others, self.solved = self.solved, self.solved + 1
        rng = np.random.default_rng(clock.seed)
        for n in (1, 2):
            clock.spend()
            grid = as_grid(rng.integers(0, 10, (3, 3)).astype(np.uint8))
            yield Progress(tuple((Candidate(grid, 0.1 * n, f"answer {n}"),) for _ in task.test), f"answer {n}", n, 0.5)
            if task.id == "dies" or (task.id == "crowded" and others):
                os.kill(os.getpid(), signal.SIGKILL)
        while task.id == "waits" and not clock.stop():
            time.sleep(0.05)


@dataclass(frozen=True)
class SeesGpu:
    """Names the GPU that its process may use; takes half a second."""

    name: str = "sees-gpu"

    def uses_gpu(self) -> bool:
        """Return that it does."""
        return True

    def solve(self, task: Task, clock: Clock, workdir: Path | None) -> Iterator[Progress]:
        """Answer with the GPU's name in `why`."""
        gpu = os.environ.get("CUDA_VISIBLE_DEVICES", "none")
        yield Progress(tuple((Candidate(p.input, 0.3, "identity", gpu),) for p in task.test))
        time.sleep(0.5)
