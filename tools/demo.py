"""Show what the five libraries do, on real work, within two minutes on two cores.

    uv run tools/demo.py             all five, and a service that is made of them
    uv run tools/demo.py ttt         only these
    uv run tools/demo.py --budget 10s
    uv run tools/demo.py --report FILE   where the page with pictures goes

xfer hands an array to another process. zerocopy shares a model's weights among workers. isolate runs a plugin with
another numpy than the host's. ternary packs a network to 2 bits. ttt solves six real ARC tasks, drawn once at random
from the 400 of ARC-1 training. Last comes the fleet of examples/fleet: all five together serve a ternary language model
and change its version under load. The program measures every figure while it runs and writes one HTML page that opens
offline. Ctrl-C leaves nothing behind.
"""

from __future__ import annotations

import argparse
import base64
import importlib
import json
import pickle
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

FLEET = Path(__file__).resolve().parent.parent / "examples" / "fleet"
console = Console(highlight=False)


@dataclass(frozen=True, slots=True)
class Fact:
    """One measurement.

    Attributes:
        library: The library.
        what: What was measured, in words.
        measured: The figure with its unit.
        bars: Values that the page draws side by side, by name; the figure first.
        pictures: SVG drawings for the page, by caption.
    """

    library: str
    what: str
    measured: str
    bars: dict[str, float] | None = None
    pictures: dict[str, str] | None = None


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


def megabytes(count: float) -> str:
    """Format a number of bytes."""
    return f"{count / 1e6:.1f} MB"


def python(code: str, *arguments: str) -> dict[str, object]:
    """Run code in a new interpreter and return the JSON object that it prints."""
    done = subprocess.run([sys.executable, "-c", code, *arguments], stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, object] = json.loads(done.stdout)
    return found


def show_xfer(_: argparse.Namespace) -> list[Fact]:
    """An array of 64 MiB, read by a process that gets its handle as one line of text."""
    import numpy as np

    import xfer

    reader = (
        "import json, sys, time, psutil, xfer; me = psutil.Process(); before = me.memory_full_info().uss;"
        "t = time.perf_counter(); a = xfer.get(bytes.fromhex(sys.argv[1])); ms = (time.perf_counter() - t) * 1e3;"
        "total = float(a.sum()); own = me.memory_full_info().uss - before;"
        "print(json.dumps({'sum': total, 'ms': ms, 'own': own}))"
    )
    with xfer.Pool("256MiB") as pool:
        loan = pool.loan((8, 1024, 1024), np.float64)
        with loan as array:
            array[:] = np.arange(8)[:, None, None]
            expected, expected_bytes = float(array.sum()), array.nbytes
        del array
        handle = bytes(loan.handle)
        answer = python(reader, handle.hex())
        pool.release(loan.handle)
    assert answer["sum"] == expected, "the reader saw another array"
    own = float(str(answer["own"]))
    return [
        Fact(
            "xfer", f"67 MB filled in place; time to open it elsewhere by {len(handle)} bytes", f"{answer['ms']:.2f} ms"
        ),
        Fact(
            "xfer",
            "memory that reading all of it added to the reader",
            megabytes(own),
            bars={"the reader's own memory, MB": own / 1e6, "the array, MB": expected_bytes / 1e6},
        ),
    ]


# Answers each line of stdin: "load", or "memory" with its memory, where a page shared by n processes counts as 1/n.
SERVER = """
import json, pickle, sys, psutil, torch
torch.set_num_threads(1)
ref, model = pickle.loads(bytes.fromhex(sys.argv[1])), None
torch.nn.Linear(2048, 2048)(torch.ones(1, 2048))
for line in sys.stdin:
    if line.strip() == "load":
        model = ref.load()
        answer = model(torch.ones(1, 2048))[0, :4].tolist()
    else:
        answer = psutil.Process().memory_full_info().pss
    print(json.dumps(answer), flush=True)
"""


class Server:
    """A worker process of the zerocopy demo."""

    def __init__(self, token: str) -> None:
        command = [sys.executable, "-c", SERVER, token]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def ask(self, line: str) -> Any:
        """Return the answer to a line."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(line, file=self._process.stdin, flush=True)
        return json.loads(self._process.stdout.readline())

    def end(self) -> None:
        """End the process."""
        self._process.communicate()


def show_zerocopy(_: argparse.Namespace) -> list[Fact]:
    """A model of 134 MB in four worker processes that share one copy of its weights."""
    import psutil
    import torch

    import zerocopy

    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = torch.nn.Sequential(*(torch.nn.Linear(2048, 2048) for _ in range(8))).eval()
    size = sum(p.nbytes for p in model.parameters())
    ref = zerocopy.publish(model, name="demo")
    workers = [Server(pickle.dumps(ref).hex()) for _ in range(4)]

    def memory() -> float:
        # All processes at the same time, this one too: each shared page counts once in the sum.
        return float(sum(worker.ask("memory") for worker in workers) + psutil.Process().memory_full_info().pss)

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


def show_isolate(_: argparse.Namespace) -> list[Fact]:
    """A plugin that needs numpy 1 beside a host with numpy 2."""
    import numpy as np

    import isolate

    with tempfile.TemporaryDirectory() as folder:
        plugin = Path(folder) / "legacy"
        plugin.mkdir()
        version = f"{sys.version_info.major}.{sys.version_info.minor}"
        (plugin / "manifest.yaml").write_text(f'name: legacy\npython: "{version}"\ndependencies: ["numpy<2"]\n')
        (plugin / "main.py").write_text(
            "import numpy\n\n\nclass Extension:\n    def mean(self, array):\n"
            "        return numpy.__version__, float(array.mean())\n"
        )
        with isolate.Host(Path(folder) / "environments") as host:
            start = time.perf_counter()
            legacy = host.load(plugin)
            ready = time.perf_counter() - start
            array = isolate.share(np.arange(4_000_000.0))
            theirs, mean = legacy.call.mean(array)
            start = time.perf_counter()
            legacy.call.mean(array)
            call = time.perf_counter() - start
    assert mean == float(np.arange(4_000_000.0).mean()), "the plugin saw another array"
    return [
        Fact("isolate", f"host with numpy {np.__version__}, plugin with numpy", theirs),
        Fact("isolate", "environment built and plugin ready", f"{ready:.1f} s"),
        Fact("isolate", "a call with 32 MB as its argument", f"{call * 1e3:.1f} ms"),
    ]


def show_ternary(_: argparse.Namespace) -> list[Fact]:
    """A network from its source to a packed file and back."""
    import torch

    import ternary

    start = time.perf_counter()
    model = ternary.compile(NETWORK)()
    compiled = time.perf_counter() - start
    floats = sum(p.nbytes for p in model.parameters())
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "net.safetensors"
        ternary.save(model, path)
        packed = path.stat().st_size
        again = ternary.load(path)
    x = torch.randn(4, 784, generator=torch.Generator().manual_seed(0))
    difference = (model.eval()(x) - again.eval()(x)).abs().max().item()
    return [
        Fact("ternary", "a 6-layer network compiled from 8 lines", f"{compiled * 1e3:.0f} ms"),
        Fact(
            "ternary",
            f"its file, {megabytes(floats)} as float32",
            megabytes(packed),
            bars={"packed, MB": packed / 1e6, "float32, MB": floats / 1e6},
        ),
        Fact("ternary", "largest difference after packing and loading", f"{difference:.1g}"),
    ]


PALETTE = ("#000", "#0074d9", "#ff4136", "#2ecc40", "#ffdc00", "#aaa", "#f012be", "#ff851b", "#7fdbff", "#870c25")
CELL, GAP = 9, 24


def drawing(pairs: Sequence[tuple[Any, Any]], second: str) -> str:
    """Draw pairs of grids as SVG, one pair a row, under the headings "input" and `second`."""
    left = max(given.shape[1] for given, _ in pairs) * CELL + GAP
    parts, y = [f"<text x='0' y='10'>input</text><text x='{left}' y='10'>{escape(second)}</text>"], 16
    for pair in pairs:
        for x, grid in zip((0, left), pair, strict=True):
            for (row, column), colour in np_cells(grid):
                place = f"x='{x + column * CELL}' y='{y + row * CELL}' width='{CELL}' height='{CELL}'"
                parts.append(f"<rect {place} fill='{PALETTE[colour]}' stroke='#555' stroke-width='0.5'/>")
        y += max(grid.shape[0] for grid in pair) * CELL + GAP // 2
    width = left + max(made.shape[1] for _, made in pairs) * CELL + 1
    label = f"Grids: input and {escape(second)}"
    return f"<svg role='img' aria-label='{label}' width='{max(width, left + 70)}' height='{y}'>{''.join(parts)}</svg>"


def np_cells(grid: Any) -> Iterator[tuple[tuple[int, int], int]]:
    """Yield the place and colour of each cell of a grid."""
    for row, line in enumerate(grid.tolist()):
        for column, colour in enumerate(line):
            yield (row, column), colour


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
            pictures[f"{task.id}: the examples"] = drawing([(pair.input, pair.output) for pair in task.train], "output")
            tests = [(pair.input, made.first.grid) for pair, made in zip(task.test, result.predictions, strict=True)]
            rule = result.predictions[0].first.why
            # A learner says how it fared on each training pair that it did not learn from.
            note = HELD_OUT if "held-out" in rule else ""
            pictures[f"{task.id}: the test, answered by: {rule}{note}"] = drawing(tests, "prediction")
    peak = max(result.peak_memory for result in run.results.values())
    return [
        Fact("ttt", f"ARC tasks solved pixel-perfect, of {len(run.tasks)}", str(len(solved)), pictures=pictures),
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
    return [
        Fact("fleet", f"requests that failed, of {found['requests']}, while a new version was rolled out", "0"),
        Fact("fleet", "right answers, before and after", versions, pictures={"The fleet in this run": image}),
        Fact("fleet", f"photos to and from plugins with numpy {found['numpy']}", megabytes(moved["arrays"])),
        Fact("fleet", "bytes of the handles that were sent for them", f"{moved['handles'] / 1e3:.1f} kB"),
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
    ]


SHOWS: dict[str, Callable[[argparse.Namespace], list[Fact]]] = {
    "xfer": show_xfer,
    "zerocopy": show_zerocopy,
    "isolate": show_isolate,
    "ternary": show_ternary,
    "ttt": show_ttt,
    "fleet": show_fleet,
}


STYLE = """
body { margin: 0 auto; max-width: 1000px; padding: 32px 24px 60px; font: 15px/1.5 system-ui, sans-serif }
h1 { margin: 0 } h2 { margin: 36px 0 8px } .soft, figcaption { color: #667085; font-size: 13px }
table { border-collapse: collapse; width: 100% } td { border-top: 1px solid #e3e6eb; padding: 6px 8px 6px 0 }
td:last-child { text-align: right; font-weight: 600; white-space: nowrap }
.bar { display: grid; grid-template-columns: 220px 1fr; gap: 12px; align-items: center; font-size: 13px; margin: 3px 0 }
.bar i { display: block; height: 14px; border-radius: 3px; background: #b8c0cc; min-width: 1px }
.bar.first i { background: #3f51b5 }
.tasks { display: flex; flex-wrap: wrap; gap: 22px } figure { margin: 0 } figcaption { max-width: 460px }
svg { max-width: 460px; font-size: 11px; fill: #667085 }
"""


def page(facts: list[Fact], seconds: float) -> str:
    """Render the measurements as one HTML document without scripts and without other files."""
    parts = [f"<!doctype html><html lang=en><meta charset=utf-8><title>Pentad</title><style>{STYLE}</style>"]
    parts.append(f"<h1>Pentad</h1><p class=soft>Measured on this machine within {seconds:.0f} s.</p>")
    for library in dict.fromkeys(fact.library for fact in facts):
        own = [fact for fact in facts if fact.library == library]
        rows = "".join(f"<tr><td>{escape(f.what)}</td><td>{escape(f.measured)}</td></tr>" for f in own)
        parts.append(f"<h2>{library}</h2><table>{rows}</table>")
        for fact in own:
            parts.append(_bars(fact.bars or {}))
            parts.append("<div class=tasks>")
            for caption, data in (fact.pictures or {}).items():
                parts.append(f"<figure>{data}<figcaption>{escape(caption)}</figcaption></figure>")
            parts.append("</div>")
    return "".join(parts)


def _bars(values: dict[str, float]) -> str:
    longest = max(values.values(), default=0) or 1
    bars = []
    for number, (name, value) in enumerate(values.items()):
        kind = "bar first" if number == 0 else "bar"
        width = f"{100 * max(value, 0) / longest:.2f}%"
        bars.append(f"<div class='{kind}'><span>{escape(name)}: {value:.1f}</span><i style='width:{width}'></i></div>")
    return "".join(bars)


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
        table.add_row(fact.library, fact.what, fact.measured)
    console.print(table)
    args.report.parent.mkdir(parents=True, exist_ok=True)
    args.report.write_text(page(facts, seconds), encoding="utf-8")
    console.print(f"{seconds:.0f} s in all; with pictures: {args.report}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
