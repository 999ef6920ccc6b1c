"""The five libraries in one service: a fleet of workers that answer from one copy of a ternary language model.

    python examples/fleet/fleet.py MODEL.ternary              serve it; each line of input is the file of a new version
    python examples/fleet/fleet.py MODEL.ternary --workers 4 --folder fleet-out
    python examples/fleet/fleet.py MODEL.ternary --ray        the workers as replicas of Ray Serve, on two nodes

ternary serves the model by OpenAI's protocol. zerocopy holds one copy of its weights for all workers, which change to a
new version while requests run. Two plugins with an older numpy, each in a process of its own by isolate, turn a photo
into a question and the answer into a picture. xfer carries photos, pictures and reports about the weights. ttt can
adapt the same copy to ARC tasks beside it. The first line of output is the address. The end of the input, or Ctrl-C,
ends everything.
`show.py` trains a model, sends requests and measures.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import threading
from contextlib import ExitStack, closing
from dataclasses import asdict
from importlib import import_module
from pathlib import Path
from typing import Self

from gateway import Gateway

import isolate
import xfer
import zerocopy
from ternary import TernaryError, llm

HERE = Path(__file__).parent


class Fleet:
    """The running service, until the end of a `with` block.

    Args:
        folder: Where the plugins' environments and wheels are kept from run to run.
        file: The first version of the model.
        count: How many workers.
        plugins: The folder with the plugins `counter` and `painter`.
        ray: Whether the workers are replicas of Ray Serve.

    Attributes:
        name: The name of the published weights, and of the topic that reports about them.
        ref: The newest version.
        workers: What answers the gateway: processes of ternary, or `on_ray.Replicas`.
        host: Has loaded the plugins.
        gateway: Answers the clients.
    """

    def __init__(
        self, folder: Path, file: Path, count: int, plugins: Path = HERE / "plugins", ray: bool = False
    ) -> None:
        self.name, self._replicas = f"fleet-{os.getpid()}", None
        policy = isolate.Policy(find_links=(str(wheel_of_xfer(folder / "wheels")),))
        with ExitStack() as stack:
            if ray:
                self._replicas = stack.enter_context(closing(import_module("on_ray").Replicas(count)))
            self.publish(file)
            stack.callback(lambda: zerocopy.unpublish(self.ref))
            self.workers = self._replicas or stack.enter_context(
                llm.serve(zerocopy.follow(self.name), workers=count, threads=1)
            )
            self.host = stack.enter_context(isolate.Host(folder / "environments", policy=policy))
            for plugin in ("counter", "painter"):
                self.host.load(plugins / plugin)
            ending = threading.Event()
            reporting = threading.Thread(target=report, args=(self.name, ending))
            reporting.start()
            stack.callback(reporting.join)
            stack.callback(ending.set)
            self.gateway = stack.enter_context(closing(Gateway(self.workers.port, self.host)))
            if not ray:
                self.workers.wait()
            self.close = stack.pop_all().close

    def publish(self, file: Path) -> None:
        """Make a model file the newest version. Workers use it from their next request on."""
        self.ref = llm.publish(file, name=self.name)
        if self._replicas:
            self._replicas.deploy(self.ref)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *raised: object) -> None:
        self.close()


def wheel_of_xfer(folder: Path) -> Path:
    """Build a wheel of xfer, which the plugins install, unless the folder has one; return the folder."""
    if not list(folder.glob("*.whl")):
        command = [sys.executable, "-m", "uv", "build", "--quiet", "--wheel", "-o", str(folder)]
        subprocess.run([*command, str(HERE.parent.parent / "packages" / "xfer")], check=True)
    return folder


def report(name: str, ending: threading.Event) -> None:
    """Publish on a topic, twice a second, how many bytes of the weights each process holds."""
    with xfer.Pool("4MiB") as pool, xfer.Topic(name, pool=pool) as topic:
        while not ending.wait(0.5):
            views = [view for view in zerocopy.report().views if view.segment.startswith(f"{name}@")]
            topic.publish([asdict(view) for view in views])
        topic.remove()


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
                try:
                    fleet.publish(Path(line.strip()))
                except (TernaryError, OSError) as error:
                    print(f"refused: {error}", file=sys.stderr)
    except KeyboardInterrupt:
        print("stopped; nothing is left behind", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
