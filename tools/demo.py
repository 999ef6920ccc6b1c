"""Show what the five libraries do, on real work, within two minutes on two cores.

    uv run tools/demo.py             all five, and a service that is made of them
    uv run tools/demo.py ttt         only these
    uv run tools/demo.py --budget 10s
    uv run tools/demo.py --report FILE   where the page with pictures goes

xfer hands an array to another process. zerocopy shares a model's weights among workers. isolate runs a plugin with
another numpy than the host's. ternary packs a network to 2 bits. ttt solves six real ARC tasks, drawn once at random
from the 400 of ARC-1 training. Last comes the fleet of examples/fleet: all five together serve a ternary language model
and change its version under load. The program measures every figure while it runs and writes one HTML page that opens
offline. Times vary from run to run: they stand below the figures, with their median and range. Ctrl-C leaves nothing
behind.
"""

from __future__ import annotations

import argparse
import base64
import importlib
import inspect
import json
import pickle
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from statistics import median
from typing import Any

from demo_page import Fact, drawing, page
from rich.console import Console
from rich.markup import escape
from rich.table import Table

FLEET = Path(__file__).resolve().parent.parent / "examples" / "fleet"
console = Console(highlight=False)

# random.Random(2026).sample(sorted ids of ARC-1 training, 6)
TASKS = "arcagi1:training/29ec7d0e,6d0aefbc,a699fb00,a87f7484,d406998b,25ff71a9"

NETWORK = """
model Net(width: int = 1024, classes: int = 10) {
  first = Linear(784, width)
  body = repeat(4) ternary Linear(width, width)
  head = Linear(width, classes)
  forward(x: float[N, 784]) -> float[N, classes] {
    return head(relu(body(relu(first(x)))))
  }
}
"""

ROUNDS = 9
"""How often what takes milliseconds is measured, in turn with what it is compared with."""


def megabytes(count: float) -> str:
    """Format a number of bytes."""
    return f"{count / 1e6:.1f} MB"


def milliseconds(seconds: float) -> str:
    """Format a time with two digits."""
    return f"{1e3 * seconds:.2g}" if seconds < 0.01 else f"{1e3 * seconds:.0f}"


def times(seconds: list[float]) -> str:
    """Format a median in milliseconds, with the shortest and the longest time."""
    return f"{milliseconds(median(seconds))} ms ({milliseconds(min(seconds))} to {milliseconds(max(seconds))})"


class Child:
    """A process that answers on its output what comes on its input.

    Args:
        code: Its program.
        arguments: Those of the program.
    """

    def __init__(self, code: str, *arguments: str) -> None:
        command = [sys.executable, "-c", code, *arguments]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def ask(self, sent: str | bytes) -> Any:
        """Return the answer to bytes, or to a line."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(sent if isinstance(sent, bytes) else f"{sent}\n".encode())
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())

    def end(self) -> None:
        """End the process."""
        self._process.communicate()


# Answers each handle of an array with its mean and the seconds until it was open, and "memory" with its own memory.
READER = """
import json, sys, time, psutil, xfer
for line in sys.stdin:
    if line.strip() == "memory":
        answer = psutil.Process().memory_full_info().uss
    else:
        start = time.perf_counter()
        array = xfer.get(bytes.fromhex(line))
        seconds = time.perf_counter() - start
        answer = float(array.mean()), seconds
    print(json.dumps(answer), flush=True)
"""

# Answers each pickled array with its mean. This is how arrays are sent without a library.
RECEIVER = """
import json, pickle, sys
while sys.stdin.buffer.peek(1):
    array = pickle.load(sys.stdin.buffer)
    print(float(array.mean()), flush=True)
"""


def show_xfer(_args: argparse.Namespace) -> list[Fact]:
    """An array of 64 MiB, read by a process that gets its handle as one line of text."""
    import numpy as np

    import xfer

    reader, receiver = Child(READER), Child(RECEIVER)
    opened, whole, pickled = [], [], []
    try:
        with xfer.Pool("256MiB") as pool:
            loan = pool.loan((8, 1024, 1024), np.float64)
            with loan as array:
                array[:] = np.arange(8)[:, None, None]
                expected, size = float(array.mean()), array.nbytes
                plain = array.copy()
            del array
            handle = bytes(loan.handle)
            before = reader.ask("memory")
            mean, first = reader.ask(handle.hex())
            own = reader.ask("memory") - before
            assert mean == expected, "the reader saw another array"
            for _ in range(ROUNDS):
                start = time.perf_counter()
                opened.append(reader.ask(handle.hex())[1])
                whole.append(time.perf_counter() - start)
                start = time.perf_counter()
                assert receiver.ask(pickle.dumps(plain)) == expected
                pickled.append(time.perf_counter() - start)
            pool.release(loan.handle)
    finally:
        reader.end()
        receiver.end()
    return [
        Fact(
            "xfer",
            f"bytes sent to let another process read {megabytes(size)} that were filled in place",
            f"{len(handle)}",
            f"open after {milliseconds(first)} ms, and later after {times(opened)}; its mean: {times(whole)}; "
            f"pickled through a pipe, its mean: {times(pickled)}",
        ),
        Fact(
            "xfer",
            "memory that reading all of it added to the reader",
            megabytes(own),
            bars={"the reader's own memory, MB": own / 1e6, "the array, MB": size / 1e6},
        ),
    ]


def proportional_memory() -> int:
    """Return the bytes of this process's memory, of a page that n processes share an n-th; program files do not count.

    Those are shared with whatever else runs on the machine, and change with it.
    """
    with open("/proc/self/smaps_rollup") as file:
        return 1024 * sum(int(line.split()[1]) for line in file if line.startswith(("Pss_Anon:", "Pss_Shmem:")))


# Answers each line of stdin: "load" with an answer of the model, or "memory" with its memory.
SERVER = """
import json, pickle, sys, torch
torch.set_num_threads(1)
ref, model = pickle.loads(bytes.fromhex(sys.argv[1])), None
torch.nn.Linear(2048, 2048)(torch.ones(1, 2048))
for line in sys.stdin:
    if line.strip() == "load":
        model = ref.load()
        answer = model(torch.ones(1, 2048))[0, :4].tolist()
    else:
        answer = proportional_memory()
    print(json.dumps(answer), flush=True)
"""


def show_zerocopy(_args: argparse.Namespace) -> list[Fact]:
    """A model of 134 MB in four worker processes that share one copy of its weights."""
    import torch

    import zerocopy

    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = torch.nn.Sequential(*(torch.nn.Linear(2048, 2048) for _ in range(8))).eval()
    size = sum(p.nbytes for p in model.parameters())
    ref = zerocopy.publish(model, name="demo")
    workers = [Child(inspect.getsource(proportional_memory) + SERVER, pickle.dumps(ref).hex()) for _ in range(4)]

    def memory() -> float:
        # All processes at the same time, this one too: each shared page counts once in the sum.
        return float(sum(worker.ask("memory") for worker in workers) + proportional_memory())

    try:
        with torch.no_grad():
            expected = model(torch.ones(1, 2048))[0, :4].tolist()
        before = memory()
        answers = [worker.ask("load") for worker in workers]
        added = memory() - before
    finally:
        for worker in workers:
            worker.end()
        zerocopy.unpublish(ref)
    assert all(answer == expected for answer in answers), "a worker's answer differs"
    return [
        Fact("zerocopy", f"4 workers answer from one copy of {megabytes(size)}, bit for bit as the original", "yes"),
        Fact(
            "zerocopy",
            f"memory added when all four have loaded ({megabytes(4 * size)} with a copy each)",
            megabytes(added),
            bars={
                "added by four workers, MB": added / 1e6,
                "one copy, MB": size / 1e6,
                "a copy for each, MB": 4 * size / 1e6,
            },
        ),
    ]


PLUGIN = """
import numpy

def private():
    with open("/proc/self/smaps_rollup") as file:
        return 1024 * sum(int(line.split()[1]) for line in file if line.startswith("Private_"))

class Extension:
    def version(self):
        return numpy.__version__

    def mean(self, array):
        return float(array.mean())

    def memory_that_reading_takes(self, array):
        before = private()
        array.mean()
        return private() - before
"""


def show_isolate(_args: argparse.Namespace) -> list[Fact]:
    """A plugin that needs numpy 1 beside a host with numpy 2."""
    import numpy as np

    import isolate

    plain = np.arange(4_000_000.0)
    called, pickled = [], []
    receiver = Child(RECEIVER)
    with tempfile.TemporaryDirectory() as folder:
        plugin = Path(folder) / "legacy"
        plugin.mkdir()
        version = f"{sys.version_info.major}.{sys.version_info.minor}"
        (plugin / "manifest.yaml").write_text(f'name: legacy\npython: "{version}"\ndependencies: ["numpy<2"]\n')
        (plugin / "main.py").write_text(PLUGIN)
        try:
            with isolate.Host(Path(folder) / "environments") as host:
                start = time.perf_counter()
                legacy = host.load(plugin)
                ready = time.perf_counter() - start
                theirs = legacy.call.version()
                array = isolate.share(plain)
                legacy.call.memory_that_reading_takes(np.ones(9))  # what a first call takes is no part of the reading
                own = legacy.call.memory_that_reading_takes(array)
                for _ in range(ROUNDS):
                    start = time.perf_counter()
                    mean = legacy.call.mean(array)
                    called.append(time.perf_counter() - start)
                    start = time.perf_counter()
                    assert receiver.ask(pickle.dumps(plain)) == mean, "the plugin saw another array"
                    pickled.append(time.perf_counter() - start)
        finally:
            receiver.end()
    return [
        Fact(
            "isolate",
            f"host with numpy {np.__version__}, plugin with numpy",
            theirs,
            f"environment built and plugin ready in {ready:.1f} s",
        ),
        Fact(
            "isolate",
            f"memory that reading {megabytes(plain.nbytes)} of the host's added to the plugin",
            megabytes(own),
            f"a call for their mean: {times(called)}; pickled through a pipe, their mean: {times(pickled)}",
            bars={"the plugin's own memory, MB": own / 1e6, "the array, MB": plain.nbytes / 1e6},
        ),
    ]


def show_ternary(_args: argparse.Namespace) -> list[Fact]:
    """A network from its source to a packed file and back."""
    import torch

    import ternary

    compiled = []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        model = ternary.compile(NETWORK)()
        compiled.append(time.perf_counter() - start)
    floats = sum(p.nbytes for p in model.parameters())
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "net.safetensors"
        ternary.save(model, path)
        packed = path.stat().st_size
        again = ternary.load(path)
    x = torch.randn(4, 784, generator=torch.Generator().manual_seed(0))
    difference = (model.eval()(x) - again.eval()(x)).abs().max().item()
    return [
        Fact(
            "ternary",
            f"file of a 6-layer network of 8 lines, {megabytes(floats)} as float32",
            megabytes(packed),
            f"compiled and made in {times(compiled)}",
            bars={"packed, MB": packed / 1e6, "float32, MB": floats / 1e6},
        ),
        Fact("ternary", "largest difference after packing and loading", f"{difference:.1g}"),
    ]


HELD_OUT = (
    ". Held-out pairs are training pairs that were left out in turn and predicted from the others. The answer shown "
    "learned from all of them, and it equals the solution"
)


def show_ttt(args: argparse.Namespace) -> list[Fact]:
    """Six real ARC tasks, two at a time, each in its own process."""
    import ttt

    run = ttt.run(ttt.load(TASKS), budget=args.budget, workers=2)
    for event in run:
        if isinstance(event, ttt.Finished):
            console.print(f"{event.task_id}: finished in {event.result.seconds:.1f} s")
    solved = run.score().solved
    pictures = {}
    for task in run.tasks:
        if task.id in solved:
            result = run.results[task.id]
            examples = drawing([(pair.input, pair.output) for pair in task.train], "output")
            tests = [(pair.input, made.first.grid) for pair, made in zip(task.test, result.predictions, strict=True)]
            rule = result.predictions[0].first.why
            # A learner says how it fared on each training pair that it did not learn from.
            note = HELD_OUT if "held-out" in rule else ""
            caption = f"{task.id}: the examples, and the test, answered by: {rule}{note}"
            pictures[caption] = examples + drawing(tests, "prediction")
    peak = max(result.peak_memory for result in run.results.values())
    seconds = [result.seconds for result in run.results.values()]
    return [
        Fact(
            "ttt",
            f"ARC tasks solved pixel-perfect, of {len(run.tasks)}",
            str(len(solved)),
            f"within {args.budget} each, took {min(seconds):.1f} to {max(seconds):.1f} s",
            pictures=pictures,
        ),
        Fact("ttt", "largest task process", megabytes(peak)),
    ]


def show_fleet(args: argparse.Namespace) -> list[Fact]:
    """All five serve a ternary language model to clients, and change its version meanwhile."""
    sys.path.insert(0, str(FLEET))
    folder = args.report.parent.absolute() / "fleet"
    found, outcomes = importlib.import_module("show").serve(folder, workers=3, seconds=6)
    importlib.import_module("trial.page").write_page(folder, found, outcomes)
    assert found["of one version"] == found["requests"], "a request failed, or its answer mixes versions"
    weights, moved = found["weights"], found["bytes"]
    versions = " to ".join(f"{100 * found[name]['right'] // found[name]['answers']} %" for name in ("sums-1", "sums-2"))
    picture = base64.b64encode((folder / "fleet.png").read_bytes()).decode()
    image = f"<img width='940' alt='Versions, memory and one request' src='data:image/png;base64,{picture}'>"
    latest, adapted = found["sums-2"], found["adapted"]["tasks"]
    fell = ", ".join(f"{told['loss before']} to {told['loss after']}" for told in adapted.values())
    return [
        Fact(
            "fleet",
            "requests that failed, or were answered by two versions, while a new version was rolled out",
            "0",
            f"of {found['requests']:,} in 6 s on this machine; a median of {latest['median ms']} ms each",
        ),
        Fact("fleet", "right answers, before and after", versions, pictures={"The fleet in this run": image}),
        Fact(
            "fleet",
            f"bytes sent for a photo to a plugin with numpy {found['numpy']} and a picture back, "
            f"{megabytes(moved['arrays'] / found['requests'])}",
            f"{moved['handles'] / found['requests']:.0f}",
            f"in all {megabytes(moved['arrays'])} by {moved['handles'] / 1e3:.1f} kB of handles",
        ),
        Fact(
            "fleet",
            "weights in memory, three workers together",
            f"{found['held'] / 1e3:.0f} kB",
            bars={
                "three workers, kB": found["held"] / 1e3,
                "one copy, kB": weights / 1e3,
                "a copy for each, kB": 3 * weights / 1e3,
            },
        ),
        Fact(
            "fleet",
            "copies of the weights in memory, workers and the process in which ttt adapts them to ARC tasks together",
            f"{found['beside']['copies']:.2f}",
            f"loss on the pairs of two tasks, before and after their adapters: {fell}",
        ),
    ]


SHOWS: dict[str, Callable[[argparse.Namespace], list[Fact]]] = {
    "xfer": show_xfer,
    "zerocopy": show_zerocopy,
    "isolate": show_isolate,
    "ternary": show_ternary,
    "ttt": show_ttt,
    "fleet": show_fleet,
}


def main(argv: list[str] | None = None) -> int:
    """Show the chosen libraries, then one table; return 0 if all went well."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("libraries", nargs="*", metavar="LIBRARY", help=f"which: {', '.join(SHOWS)} (default: all)")
    parser.add_argument("--budget", default="30s", help="time per ARC task (default: %(default)s)")
    parser.add_argument("--report", type=Path, default=Path("demo-out/report.html"), metavar="FILE", help="%(default)s")
    args = parser.parse_args(argv)
    unknown = set(args.libraries) - SHOWS.keys()
    if unknown:
        parser.error(f"no library is called {sorted(unknown)}; there are {', '.join(SHOWS)}")

    start = time.perf_counter()
    facts: list[Fact] = []
    try:
        for name in args.libraries or SHOWS:
            console.rule(f"[bold]{name}[/]: {(SHOWS[name].__doc__ or '').splitlines()[0]}", align="left")
            # ttt prints a line for each task.
            with nullcontext() if name == "ttt" else console.status("working …"):
                facts += SHOWS[name](args)
    except KeyboardInterrupt:
        console.print("stopped; nothing is left behind")
        return 130
    seconds = time.perf_counter() - start
    table = Table("library", "what was done", "measured", title="Pentad")
    for fact in facts:
        detail = f"\n[dim]{escape(fact.detail)}[/]" if fact.detail else ""
        table.add_row(fact.library, escape(fact.what) + detail, fact.measured)
    console.print(table)
    args.report.parent.mkdir(parents=True, exist_ok=True)
    args.report.write_text(page(facts, seconds), encoding="utf-8")
    console.print(f"{seconds:.0f} s in all; with pictures: {args.report}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
