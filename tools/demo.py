"""What the five libraries do, shown on real work, in about two minutes on two cores.

    uv run tools/demo.py             all five
    uv run tools/demo.py ttt         only these
    uv run tools/demo.py --budget 10s

xfer hands an array to another process, zerocopy shares a model's weights among workers, isolate runs a plugin with
another numpy than the host's, ternary packs a network to 2 bits, and ttt solves six real ARC tasks, drawn once at
random from the 400 of ARC-1 training. Everything printed is measured while it runs. Ctrl-C leaves nothing behind.
"""

from __future__ import annotations

import argparse
import json
import pickle
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

from rich.console import Console
from rich.table import Table

Row = tuple[str, str, str]
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


def megabytes(count: float) -> str:
    """Bytes for people."""
    return f"{count / 1e6:.1f} MB"


def python(code: str, *arguments: str) -> dict[str, object]:
    """Run code in a fresh interpreter; the JSON object that it prints."""
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True)
    found: dict[str, object] = json.loads(done.stdout)
    return found


def show_xfer(_: argparse.Namespace) -> list[Row]:
    """An array of 64 MB, read by a process that knows nothing but a line of text."""
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
            expected = float(array.sum())
        del array
        handle = bytes(loan.handle)
        answer = python(reader, handle.hex())
        pool.release(loan.handle)
    assert answer["sum"] == expected, "the reader saw another array"
    return [
        ("xfer", f"67 MB filled in place; time to open it elsewhere by {len(handle)} bytes", f"{answer['ms']:.2f} ms"),
        ("xfer", "memory that reading all of it added to the reader", megabytes(float(str(answer["own"])))),
    ]


def show_zerocopy(_: argparse.Namespace) -> list[Row]:
    """A model of 134 MB in four worker processes, one copy of it in memory."""
    import torch

    import zerocopy

    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = torch.nn.Sequential(*(torch.nn.Linear(2048, 2048) for _ in range(8))).eval()
    size = sum(p.nbytes for p in model.parameters())
    worker = (
        "import json, pickle, sys, psutil, torch; torch.set_num_threads(1); me = psutil.Process();"
        "ref = pickle.loads(bytes.fromhex(sys.argv[1])); torch.nn.Linear(2048, 2048)(torch.ones(1, 2048));"
        "before = me.memory_full_info().uss; model = ref.load(); out = model(torch.ones(1, 2048));"
        "print(json.dumps({'out': out[0, :4].tolist(), 'own': me.memory_full_info().uss - before}), flush=True);"
        "sys.stdin.read()"
    )
    ref = zerocopy.publish(model, name="demo")
    token = pickle.dumps(ref).hex()
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", worker, token], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for _ in range(4)
    ]
    try:
        answers = [json.loads(process.stdout.readline()) for process in workers if process.stdout]
        with torch.no_grad():
            expected = model(torch.ones(1, 2048))[0, :4].tolist()
    finally:
        for process in workers:
            process.communicate()
        zerocopy.unpublish(ref)
    assert all(answer["out"] == expected for answer in answers), "a worker answered otherwise"
    own = sum(answer["own"] for answer in answers)
    return [
        ("zerocopy", f"4 workers answer from one copy of {megabytes(size)}, bit for bit as the original", "yes"),
        ("zerocopy", f"memory that the four added ({megabytes(4 * size)} with a copy each)", megabytes(own)),
    ]


def show_isolate(_: argparse.Namespace) -> list[Row]:
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
        ("isolate", f"host with numpy {np.__version__}, plugin with numpy", theirs),
        ("isolate", "environment built and plugin ready", f"{ready:.1f} s"),
        ("isolate", "a call with 32 MB as its argument", f"{call * 1e3:.1f} ms"),
    ]


def show_ternary(_: argparse.Namespace) -> list[Row]:
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
        ("ternary", "a 6-layer network compiled from 8 lines", f"{compiled * 1e3:.0f} ms"),
        ("ternary", f"its file, {megabytes(floats)} as float32", megabytes(packed)),
        ("ternary", "largest difference after packing and loading", f"{difference:.1g}"),
    ]


def show_ttt(args: argparse.Namespace) -> list[Row]:
    """Six real ARC tasks, two at a time, each in a process of its own."""
    import ttt
    from ttt.live import Display

    tasks = ttt.load(TASKS)
    run = ttt.run(tasks, budget=args.budget, workers=2)
    with Display(run.tasks, console) as display:
        for event in run:
            display.show(event)
    score = run.score()
    peak = max(result.peak_memory for result in run.results.values())
    return [
        ("ttt", f"ARC tasks solved pixel-perfect, of {len(run.tasks)}", str(len(score.solved))),
        ("ttt", "largest task process", megabytes(peak)),
    ]


SHOWS: dict[str, Callable[[argparse.Namespace], list[Row]]] = {
    "xfer": show_xfer,
    "zerocopy": show_zerocopy,
    "isolate": show_isolate,
    "ternary": show_ternary,
    "ttt": show_ttt,
}


def main(argv: list[str] | None = None) -> int:
    """Show what was asked for, then one table; 0 when all went well."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("libraries", nargs="*", metavar="LIBRARY", help=f"which: {', '.join(SHOWS)} (default: all)")
    parser.add_argument("--budget", default="30s", help="time per ARC task (default: %(default)s)")
    args = parser.parse_args(argv)
    unknown = set(args.libraries) - SHOWS.keys()
    if unknown:
        parser.error(f"no library is called {sorted(unknown)}; there are {', '.join(SHOWS)}")

    start = time.perf_counter()
    table = Table("library", "what was done", "measured", title="Pentad")
    try:
        for name in args.libraries or SHOWS:
            console.rule(f"[bold]{name}[/]: {(SHOWS[name].__doc__ or '').splitlines()[0]}", align="left")
            # ttt has a live display of its own.
            with nullcontext() if name == "ttt" else console.status("working …"):
                rows = SHOWS[name](args)
            for row in rows:
                table.add_row(*row)
    except KeyboardInterrupt:
        console.print("stopped; nothing is left behind")
        return 130
    console.print(table)
    console.print(f"{time.perf_counter() - start:.0f} s in all")
    return 0


if __name__ == "__main__":
    sys.exit(main())
