"""Shows the fleet at work: train, serve, roll out a new version while clients ask, measure, and write a page.

    python examples/fleet/show.py
    python examples/fleet/show.py --workers 4 --seconds 20
    python examples/fleet/show.py --json           the figures as JSON
    python examples/fleet/show.py --ray            the workers as replicas of Ray Serve, on two nodes of this machine

The model does little sums in words, and every answer is checked. Beside it ttt adapts the first version to two ARC
tasks, over the bytes that the workers serve, and solves two tasks by search. Ctrl-C ends everything and leaves nothing.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from statistics import median
from typing import Any

from fleet import Fleet
from trial import model
from trial.adapt import Adapting, Published, whole_node
from trial.clients import Clients, Outcome
from trial.page import write_page

import xfer


def newest_report(fleet: Fleet) -> list[dict[str, Any]]:
    """Wait for the next report about the weights on the fleet's topic, as any process of this machine may."""
    with xfer.Topic(fleet.name).subscribe() as reader:
        found: list[dict[str, Any]] = reader.recv(timeout=60)
        return found


def alike(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Return whether two reports see the same processes, and as many copies but for a page."""
    return bool(one["processes"] == other["processes"] and abs(one["copies"] - other["copies"]) <= 0.02)


def while_adapting(fleet: Fleet, beside: Adapting) -> dict[str, Any]:
    """Wait until ttt has mapped the weights and they are in memory; return how the processes of this machine hold them.

    A process that maps them while a report is made has the others' shares counted too high, so two must agree. From a
    disk, pages come as they are used.
    """
    before = None
    with xfer.Topic(fleet.name).subscribe() as reader:
        while beside.is_alive():
            adapted = beside.adapted_one.is_set()
            found = whole_node(reader.recv(timeout=60), fleet.ref.nbytes)
            if found and before and alike(found, before) and (adapted or found["copies"] > 0.95):
                return found
            if adapted and not found:
                break
            before = found
    raise ChildProcessError("ttt ended before it had mapped the weights")


def summary(outcomes: list[Outcome]) -> dict[str, Any]:
    """Count the answers: failed ones, those that are wholly of one version, and each version's right ones."""
    found: dict[str, Any] = {"requests": len(outcomes), "failed": sum(bool(outcome.error) for outcome in outcomes)}
    found["of one version"] = sum(outcome.whole for outcome in outcomes)
    for version in sorted({outcome.version for outcome in outcomes} - {""}):
        own = [outcome for outcome in outcomes if outcome.version == version]
        found[version] = {"answers": len(own), "right": sum(outcome.right for outcome in own)}
        found[version]["median ms"] = round(1000 * median(outcome.seconds for outcome in own), 1)
    return found


def serve(folder: Path, workers: int, seconds: float, ray: bool = False) -> tuple[dict[str, Any], list[Outcome]]:
    """Run the fleet under load, roll out the second version in the middle; return the figures and all outcomes."""
    files = model.train(folder / "model")
    found: dict[str, Any] = {"workers": workers, "weights": files[2].stat().st_size}
    with Fleet(folder, files[1], workers, ray=ray) as fleet:
        found["numpy"] = fleet.host["counter"].call.version()
        beside = Adapting(Published(fleet.ref), folder, "ray" if ray else "local")
        beside.start()
        clients = None
        try:
            found["beside"] = while_adapting(fleet, beside)
            clients = Clients(fleet.gateway.port, list(files.values()), count=2 * workers)
            time.sleep(seconds / 2)
            fleet.publish(files[2])
            beside.rolled_out.set()
            rolled_out = time.monotonic()
            time.sleep(seconds / 2)
            views = [view for view in newest_report(fleet) if view["segment"].startswith(f"{fleet.name}@2-")]
            outcomes = clients.stop()
            beside.join()
        finally:
            if clients:
                clients.close()
            beside.stop()
            beside.join()
        if not beside.found.get("tasks"):
            raise ChildProcessError(f"ttt adapted no task: {beside.found.get('errors')}")
        found["adapted"] = beside.found
        found["bytes"], found["picture"] = dict(fleet.gateway.bytes), clients.picture
    found["rolled out at"] = round(rolled_out - outcomes[0].at, 2)
    found["held"] = sum(view["proportional"] for view in views)
    found["written"] = sum(view["private"] for view in views)
    found["memory"] = found["held"] + sum(view["private_elsewhere"] for view in views)
    return found | summary(outcomes), outcomes


def main(argv: list[str] | None = None) -> int:
    """Run the fleet, print what happened, and write the page; return 0 if every answer was right."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, default=3, metavar="N", help="processes that answer (%(default)s)")
    parser.add_argument("--seconds", type=float, default=8, metavar="S", help="how long clients ask (%(default)s)")
    parser.add_argument("--folder", type=Path, default=Path("fleet-out"), help="models, plugins, page (%(default)s)")
    parser.add_argument("--ray", action="store_true", help="the workers as replicas of Ray Serve on two nodes")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    args = parser.parse_args(argv)
    try:
        found, outcomes = serve(args.folder.absolute(), args.workers, args.seconds, args.ray)
        write_page(args.folder, found, outcomes)
    except KeyboardInterrupt:
        print("stopped; nothing is left behind", file=sys.stderr)
        return 130
    except OSError as error:
        print(f"show: {error}", file=sys.stderr)
        return 2
    del found["picture"]
    if args.json:
        print(json.dumps(found, indent=2))
    else:
        for name, value in found.items():
            print(f"{name}: {value}")
        print(f"with a picture: {args.folder / 'fleet.html'}")
    return 0 if found["failed"] == 0 and found["of one version"] == found["requests"] else 1


if __name__ == "__main__":
    sys.exit(main())
