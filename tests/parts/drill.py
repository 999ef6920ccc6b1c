"""The failure drill: workers, extensions and readers are killed at random while all five libraries work.

    python tests/parts/drill.py --seconds 60 --seed 1

Every answer must be right or a typed error. The program prints a JSON object with the work done, the processes killed,
the answers and errors, and what was left behind.
"""

from __future__ import annotations

import argparse
import json
import os
import pickle
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from leftovers import leftovers, shared_files

import isolate
import ternary
import ttt
import xfer
import zerocopy

READER = """
import sys, xfer
for line in sys.stdin:
    print(float(xfer.get(bytes.fromhex(line)).sum()), flush=True)
"""

SERVER = """
import pickle, sys, torch
torch.set_num_threads(1)
model = pickle.loads(bytes.fromhex(sys.argv[1])).load()
for line in sys.stdin:
    print(model(torch.full((1, 64), float(line))).sum().item().hex(), flush=True)
"""

NETWORK = """
model Net(width: int = 64) {
  first = Linear(width, width)
  body = repeat(2) ternary Linear(width, width)
  forward(x: float[N, width]) -> float[N, width] { return body(relu(first(x))) }
}
"""

FAIR_GAME = ("drill-reader", "drill-server", "ttt._runs.worker", "isolate._worker", "isolate/_worker")
TASKS = "arcagi1:training/67a3c6ac,74dd1130,a416b8f3,3c9b0459,68b16354,6150a2bd"


class GoneError(Exception):
    """A child process of the drill was killed before it answered."""


class Line:
    """A child process that answers each line with a line and is restarted after it was killed."""

    def __init__(self, code: str, *arguments: str) -> None:
        self._command = [sys.executable, "-c", code, *arguments]
        self._process: subprocess.Popen[str] | None = None

    def ask(self, line: str) -> str:
        """Return the answer to one line.

        Raises:
            GoneError: the child was killed.
        """
        if self._process is None or self._process.poll() is not None:
            self.close()
            self._process = subprocess.Popen(
                self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
            )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(line + "\n")
            self._process.stdin.flush()
            answer = self._process.stdout.readline()
        except BrokenPipeError:
            answer = ""
        if not answer:
            self.close()
            raise GoneError("a child of the drill was killed")
        return answer.strip()

    def close(self) -> None:
        """End the child."""
        if self._process is not None:
            self._process.kill()
            with suppress(BrokenPipeError):
                self._process.communicate()
            self._process = None


class Killer(threading.Thread):
    """Kills a random process some time after a right answer, so that slow machines get right answers too."""

    def __init__(self, seed: int) -> None:
        super().__init__(daemon=True)
        self.killed: Counter[str] = Counter()
        self.fair_pids: dict[int, str] = {}
        self.went_right = threading.Event()
        self._ended = threading.Event()
        self._random = random.Random(seed)

    def run(self) -> None:
        """Kill processes until `stop` is called."""
        while True:
            self.went_right.wait()
            self.went_right.clear()
            if self._ended.wait(self._random.uniform(0, 1)):
                return
            victims = list(self._victims())
            if victims:
                pid, kind = self._random.choice(victims)
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
                    self.killed[kind] += 1

    def end(self) -> None:
        """Stop killing."""
        self._ended.set()
        self.went_right.set()
        self.join()

    def _victims(self) -> list[tuple[int, str]]:
        found = []
        for child in psutil.Process().children(recursive=True):
            with suppress(psutil.Error):
                command = " ".join(child.cmdline())
                kinds = [kind for kind in FAIR_GAME if kind in command]
                if child.pid in self.fair_pids:
                    kinds = [self.fair_pids[child.pid]]
                if kinds and child.status() != psutil.STATUS_ZOMBIE:
                    found.append((child.pid, kinds[0].replace("/", ".")))
        return found


def check(condition: bool, what: str) -> None:
    """End the drill at a wrong answer; `assert` could be switched off."""
    if not condition:
        raise RuntimeError(f"wrong answer: {what}")


def work(
    killer: Killer, stack: ExitStack, folder: Path, plugin: Path, wheels: Path, use_ray: bool
) -> dict[str, Callable[[random.Random], None]]:
    """Return the jobs to choose from, by name; their resources are entered into the stack."""
    torch.set_num_threads(1)
    pool = stack.enter_context(xfer.Pool("256MiB"))
    readers = [Line(READER, "drill-reader") for _ in range(2)]
    model = ternary.compile(NETWORK)().eval()
    ref = zerocopy.publish(model, name=f"drill-{os.getpid()}")
    stack.callback(zerocopy.unpublish, ref)
    servers = [Line(SERVER, pickle.dumps(ref).hex(), "drill-server") for _ in range(2)]
    for line in (*readers, *servers):
        stack.callback(line.close)
    policy = isolate.Policy(find_links=(str(wheels),))
    host = stack.enter_context(isolate.Host(folder / "environments", policy=policy))
    extension = host.load(plugin)
    tasks = ttt.load(TASKS)

    def read(rng: random.Random) -> None:
        array = np.full(rng.choice([10, 10_000, 1_000_000]), rng.randrange(100), np.float64)
        handle = pool.put(array)
        try:
            check(float(rng.choice(readers).ask(bytes(handle).hex())) == float(array.sum()), "a reader's sum")
        finally:
            pool.release(handle)

    def serve(rng: random.Random) -> None:
        value = rng.randrange(100)
        expected = model(torch.full((1, 64), float(value))).sum().item().hex()
        check(rng.choice(servers).ask(str(value)) == expected, "a server's answer")

    def plug_in(rng: random.Random) -> None:
        array = np.full(rng.choice([100, 100_000]), rng.randrange(100), np.float32)
        handle = pool.put(array)
        try:
            answer = extension.call(timeout=20).double(bytes(handle))
            with xfer.open(answer) as doubled:
                check(bool(np.array_equal(doubled, 2 * array)), "an extension's array")
            del doubled
            extension.call(timeout=20).release(answer)
        finally:
            pool.release(handle)

    def solve(rng: random.Random) -> None:
        run = ttt.run(rng.sample(list(tasks), 2), backend="grid", budget="2 steps", workers=2)
        for _ in run:
            pass
        for task_id, result in run.results.items():
            if result.status == "failed":
                check("WorkerDiedError" in (result.error or ""), f"{task_id}: {result.error}")
            else:
                check(task_id in run.score().solved, f"{task_id} is not solved")
        if any(result.status == "failed" for result in run.results.values()):
            raise GoneError("a task's process was killed")

    steps = {"read": read, "serve": serve, "plug in": plug_in, "solve": solve}
    if use_ray:
        steps["ray"] = with_ray(killer, stack, ref, model)
    return steps


def with_ray(
    killer: Killer, stack: ExitStack, ref: zerocopy.ModelRef, model: torch.nn.Module
) -> Callable[[random.Random], None]:
    """A Ray actor that shares the model and is restarted after it was killed."""
    # Under `uv run`, Ray would start its workers by the same `uv run`. It reads this when it is imported.
    os.environ["RAY_ENABLE_UV_RUN_RUNTIME_ENV"] = "0"
    import ray

    from zerocopy.on_ray import ModelActor

    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    stack.callback(ray.shutdown)
    actors: list[Any] = []

    def ask(rng: random.Random) -> None:
        if not actors:
            actors.append(ray.remote(ModelActor).remote(ref))
            pid = ray.get(actors[0].__ray_call__.remote(lambda _: os.getpid()))
            killer.fair_pids[pid] = "ray actor"
        value = float(rng.randrange(100))
        try:
            answer = ray.get(actors[0].call.remote("__call__", (torch.full((1, 64), value),)), timeout=200)
        except ray.exceptions.RayActorError:
            actors.clear()
            raise
        check(torch.equal(answer, model(torch.full((1, 64), value))), "a Ray actor's answer")

    return ask


def typed(error: Exception) -> bool:
    """Whether the error is one that the libraries document, or the death of a child of the drill."""
    names = {cls.__name__ for cls in type(error).__mro__}
    return bool(names & {"XferError", "ZerocopyError", "IsolateError", "TTTError", "RayActorError", "GoneError"})


def descriptors() -> int:
    """Return the number of open descriptors of this process."""
    return len(os.listdir("/proc/self/fd"))


def drill(seconds: float, seed: int, plugin: Path, wheels: Path, use_ray: bool) -> dict[str, Any]:
    """Run the drill; return what happened and what was left behind."""
    rng = random.Random(seed)
    before = shared_files()
    killer = Killer(seed)
    right: Counter[str] = Counter()
    errors: Counter[str] = Counter()
    with tempfile.TemporaryDirectory(prefix="pentad-drill-") as temporary, ExitStack() as stack:
        folder = Path(temporary)
        # Leftovers of the five libraries in temporary folders are found here.
        tempfile.tempdir = str(folder / "tmp")
        (folder / "tmp").mkdir()
        steps = work(killer, stack, folder, plugin, wheels, use_ray)
        killer.start()
        # Run each job once first, so that descriptors that stay open are open before the count.
        names = list(steps)
        opened = 0
        start = time.monotonic()

        def enough() -> bool:
            """Whether each job went right, and kills of several kinds showed: on a busy machine that takes longer."""
            kills = sum(killer.killed.values()) >= seconds / 6 and len(killer.killed) >= 3
            return kills and set(right) == set(names) and bool(errors)

        while (took := time.monotonic() - start) < seconds or (not enough() and took < seconds + 200):
            name = names[sum(right.values()) + sum(errors.values())] if not opened else rng.choice(names)
            try:
                steps[name](rng)
                right[name] += 1
                killer.went_right.set()
            except Exception as error:
                if not typed(error):
                    raise
                errors[type(error).__name__] += 1
            if sum(right.values()) + sum(errors.values()) == len(names):
                opened = descriptors()
        killer.end()
        stack.close()
        tempfile.tempdir = None
        left = [str(path.relative_to(folder / "tmp")) for path in (folder / "tmp").rglob("*")]
    _, alive = psutil.wait_procs(psutil.Process().children(recursive=True), timeout=120)
    return {
        "right": right,
        "errors": errors,
        "killed": killer.killed,
        "left": {
            "shared": leftovers(before),
            "processes": [" ".join(process.cmdline()) for process in alive],
            "temporary": left,
            "descriptors": max(0, descriptors() - opened),
        },
    }


def main() -> int:
    """Run the drill and print its result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("plugin", type=Path, help="the folder of the extension `arrays`")
    parser.add_argument("wheels", type=Path, help="a folder with the wheel of pentad-xfer")
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--no-ray", action="store_true")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write it there; Ray prints to both streams")
    args = parser.parse_args()
    found = json.dumps(drill(args.seconds, args.seed, args.plugin, args.wheels, not args.no_ray), indent=1)
    print(found)
    if args.json:
        args.json.write_text(found)
    return 0


if __name__ == "__main__":
    sys.exit(main())
