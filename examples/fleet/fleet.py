"""The five libraries in one service: a fleet of workers that answer from one copy of a ternary language model.

    python examples/fleet/fleet.py MODEL.ternary              serve it; each line of input is the file of a new version
    python examples/fleet/fleet.py MODEL.ternary --workers 4 --folder fleet-out
    python examples/fleet/fleet.py MODEL.ternary --ray        the workers as replicas of Ray Serve, on two nodes

ternary serves the model by OpenAI's protocol. zerocopy holds one copy of its weights for all workers and switches them
to a new version while requests run. Two plugins with an older numpy, each in a process of its own by isolate, turn a
photo into a question and the answer into a picture. xfer carries photos, pictures and the workers' reports. ttt can
solve ARC tasks beside it. The first line of output is the address. The end of the input, or Ctrl-C, ends everything.
`show.py` trains a model, sends requests and measures.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Self

from gateway import Gateway
from supervisor import HERE, Supervisor

import isolate

ROOT = HERE.parent.parent


class Fleet:
    """The running service, as a context manager.

    Args:
        folder: Where models, environments and wheels are kept from run to run.
        file: The first version of the model.
        workers: How many workers.
        plugins: The folder with the plugins `counter` and `painter`.
        ray: Whether the workers are replicas of Ray Serve.
    """

    def __init__(
        self, folder: Path, file: Path, workers: int, plugins: Path = HERE / "plugins", ray: bool = False
    ) -> None:
        self._folder, self._file, self._count, self._plugins, self._ray = folder, file, workers, plugins, ray

    def __enter__(self) -> Self:
        wheels = self._folder / "wheels"
        if not list(wheels.glob("*.whl")):  # the plugins install xfer from it
            command = [sys.executable, "-m", "uv", "build", "--quiet", "--wheel", "-o", str(wheels)]
            subprocess.run([*command, str(ROOT / "packages" / "xfer")], check=True)
        with ExitStack() as stack:
            self.supervisor = workers_class(self._ray)(f"fleet-{os.getpid()}", self._count, self._file)
            stack.callback(self.supervisor.end)
            policy = isolate.Policy(find_links=(str(wheels),))
            self.host = stack.enter_context(isolate.Host(self._folder / "environments", policy=policy))
            for plugin in ("counter", "painter"):
                self.host.load(self._plugins / plugin)
            self.gateway = Gateway(self.supervisor, self.host)
            stack.callback(self.gateway.close)
            self.supervisor.wait(self._count)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *raised: object) -> None:
        self._stack.close()


def workers_class(ray: bool) -> Any:
    """Return what starts the workers."""
    if not ray:
        return Supervisor
    from on_ray import RayWorkers

    return RayWorkers


def main(argv: list[str] | None = None) -> int:
    """Serve until the input ends."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, metavar="MODEL", help="the first version of the model")
    parser.add_argument("--workers", type=int, default=3, metavar="N", help="processes that answer (%(default)s)")
    parser.add_argument("--folder", type=Path, default=Path("fleet-out"), help="plugins' environments (%(default)s)")
    parser.add_argument("--ray", action="store_true", help="the workers as replicas of Ray Serve on two nodes")
    args = parser.parse_args(argv)
    try:
        with Fleet(args.folder.absolute(), args.file, args.workers, ray=args.ray) as fleet:
            print(f"http://127.0.0.1:{fleet.gateway.port}/v1/completions", flush=True)
            for line in sys.stdin:
                fleet.supervisor.publish(Path(line.strip()))
    except KeyboardInterrupt:
        print("stopped; nothing is left behind", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
