"""The five libraries in one service: a fleet of workers that answer from one copy of a ternary language model.

    python examples/fleet/fleet.py MODEL.ternary              serve it; each line of input is the file of a new version
    python examples/fleet/fleet.py MODEL.ternary --workers 4 --folder fleet-out
    python examples/fleet/fleet.py MODEL.ternary --ray        the workers as replicas of Ray Serve, on two nodes

ternary serves the model by OpenAI's protocol. zerocopy holds one copy of its weights for all workers, which change to a
new version while requests run. Two plugins with an older numpy, each in a process of its own by isolate, turn a photo
into a question and the answer into a picture. xfer carries photos, pictures and reports about the workers. ttt can
solve ARC tasks beside it. The first line of output is the address. The end of the input, or Ctrl-C, ends everything.
`show.py` trains a model, sends requests and measures.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from gateway import Gateway

import isolate
import xfer
import zerocopy
from ternary import TernaryError, llm

HERE = Path(__file__).parent


class Workers:
    """Processes of this machine that answer with the newest version of a published model.

    Args:
        name: The name that the weights are published under.
        count: How many processes.
        file: The first version of the model.
    """

    def __init__(self, name: str, count: int, file: Path) -> None:
        self._name = name
        self.publish(file)
        self.processes = llm.serve(zerocopy.follow(name), workers=count, threads=1)
        self.port = self.processes.port

    def publish(self, file: Path) -> None:
        """Make a model file the newest version. Workers use it from their next request on."""
        self._ref = llm.publish(file, name=self._name)

    def end(self) -> None:
        """End the processes and give the weights up."""
        self.processes.close()
        zerocopy.unpublish(self._ref)


@dataclass(frozen=True)
class Fleet:
    """A running fleet.

    Attributes:
        name: The name of the published weights, and of the topic that reports about the workers.
        workers: Answer the gateway: `Workers`, or `on_ray.Workers`.
        host: Has loaded the plugins.
        gateway: Answers the clients.
    """

    name: str
    workers: Any
    host: isolate.Host
    gateway: Gateway


@contextmanager
def running(
    folder: Path, file: Path, count: int, plugins: Path = HERE / "plugins", ray: bool = False
) -> Iterator[Fleet]:
    """Run the service for a block.

    Args:
        folder: Where models, environments and wheels are kept from run to run.
        file: The first version of the model.
        count: How many workers.
        plugins: The folder with the plugins `counter` and `painter`.
        ray: Whether the workers are replicas of Ray Serve.
    """
    name, wheels = f"fleet-{os.getpid()}", folder / "wheels"
    if not list(wheels.glob("*.whl")):  # the plugins install xfer from it
        command = [sys.executable, "-m", "uv", "build", "--quiet", "--wheel", "-o", str(wheels)]
        subprocess.run([*command, str(HERE.parent.parent / "packages" / "xfer")], check=True)
    with ExitStack() as stack:
        workers = (import_module("on_ray").Workers if ray else Workers)(name, count, file)
        stack.callback(workers.end)
        policy = isolate.Policy(find_links=(str(wheels),))
        host = stack.enter_context(isolate.Host(folder / "environments", policy=policy))
        for plugin in ("counter", "painter"):
            host.load(plugins / plugin)
        ending = threading.Event()
        reporting = threading.Thread(target=report, args=(name, ending))
        reporting.start()
        stack.callback(reporting.join)
        stack.callback(ending.set)
        gateway = Gateway(workers.port, host)
        stack.callback(gateway.close)
        if not ray:
            workers.processes.wait()
        yield Fleet(name, workers, host, gateway)


def report(name: str, ending: threading.Event) -> None:
    """Publish on a topic, twice a second, what each worker holds."""
    with xfer.Pool("4MiB") as pool, xfer.Topic(name, pool=pool) as topic:
        while not ending.wait(0.5):
            topic.publish(holdings(name))
        topic.remove()


def holdings(name: str) -> list[dict[str, Any]]:
    """Return what each process but this one holds of the weights that are published under a name, by bytes."""
    views = zerocopy.report().views
    return [asdict(view) for view in views if view.segment.startswith(f"{name}@") and view.pid != os.getpid()]


def main(argv: list[str] | None = None) -> int:
    """Serve until the input ends."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, metavar="MODEL", help="the first version of the model")
    parser.add_argument("--workers", type=int, default=3, metavar="N", help="processes that answer (%(default)s)")
    parser.add_argument("--folder", type=Path, default=Path("fleet-out"), help="plugins' environments (%(default)s)")
    parser.add_argument("--ray", action="store_true", help="the workers as replicas of Ray Serve on two nodes")
    args = parser.parse_args(argv)
    try:
        with running(args.folder.absolute(), args.file, args.workers, ray=args.ray) as fleet:
            print(f"http://127.0.0.1:{fleet.gateway.port}/v1/completions", flush=True)
            for line in sys.stdin:
                try:
                    fleet.workers.publish(Path(line.strip()))
                except (TernaryError, OSError) as error:
                    print(f"refused: {error}", file=sys.stderr)
    except KeyboardInterrupt:
        print("stopped; nothing is left behind", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
