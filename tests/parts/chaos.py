"""Chaos in the fleet of examples/fleet: each answer must be right or a typed error, and nothing may stay behind.

    PYTHONPATH=examples/fleet:tests/parts/jumping_clock JUMPING_CLOCK=1 python tests/parts/chaos.py FOLDER --seconds 60

Processes are killed, stopped and starved, plugins misbehave, the wall clock jumps, versions change, and the disk for
the page is full. One worker is left alone: its answers must not become slow. How slow the machine itself becomes is
measured by a worker of no fleet. Prints what happened as JSON.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from statistics import median
from typing import Any

import psutil
from fleet import HERE as FLEET
from fleet import Fleet
from gateway import post
from leftovers import leftovers, shared_files
from show import summary
from trial import model
from trial.clients import Clients, Outcome
from trial.page import write_page

from ternary import llm

HERE = Path(__file__).resolve().parent

TYPED = ("plugin_error:", "server_error:", "rate_limit_error:", "invalid_request_error:", "ProducerGoneError:")
LIMITS = "limits: {memory: 400MiB, open_files: 256, processes: 8}\n"
CODES = range(1, 13)
"""What the hostile plugin knows, see extensions/hostile.py."""


def hostile_plugins(folder: Path) -> Path:
    """Make a folder with the fleet's plugins, of which `counter` misbehaves when asked to."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(FLEET / "plugins", folder)
    (folder / "counter" / "main.py").rename(folder / "counter" / "counting.py")
    shutil.copy(HERE / "extensions" / "hostile.py", folder / "counter" / "main.py")
    with (folder / "counter" / "manifest.yaml").open("a") as manifest:
        manifest.write(LIMITS)
    return folder


def limit(pid: int, kind: int, value: int) -> None:
    """Set a limit of another process; the hard limit stays, because only root could raise it again."""
    resource.prlimit(pid, kind, (value, resource.prlimit(pid, kind)[1]))


class Chaos:
    """What is done to a fleet.

    Args:
        fleet: The running fleet.
        clients: Its clients.
        files: The versions of the model.
        seed: For the choices.
    """

    def __init__(self, fleet: Fleet, clients: Clients, files: dict[int, Path], seed: int) -> None:
        self.fleet, self.clients, self.files, self.random = fleet, clients, files, random.Random(seed)
        self.sheltered, self.port = next(iter(fleet.workers.ready.items()))
        self.done: Counter[str] = Counter()
        self.asked: list[Outcome] = []
        self.refused: list[bool] = []
        self._asking: list[threading.Thread] = []
        self._publishing: list[threading.Thread] = []

    def act(self) -> None:
        """Do something at random."""
        deeds: list[Callable[[], None]] = [
            *(self.kill_worker, self.stop_worker, self.kill_publisher, self.stop_publisher, self.kill_plugin),
            *(self.few_descriptors, self.little_memory, self.no_files, self.roll_out),
            *[self.misbehave] * 6,
        ]
        deed = self.random.choice(deeds)
        # A worker that was killed before may go just now, or too much may be going on already.
        with suppress(ProcessLookupError, FileNotFoundError, psutil.NoSuchProcess):
            deed()
            self.done[deed.__name__] += 1

    def _victim(self) -> int:
        others = [pid for pid in self.fleet.workers.ready if pid != self.sheltered]
        if not others:
            raise ProcessLookupError
        return int(self.random.choice(others))

    def kill_worker(self) -> None:
        """Kill -9."""
        os.kill(self._victim(), signal.SIGKILL)

    def stop_worker(self) -> None:
        """Stop a worker; sometimes it goes on a second later."""
        pid = self._victim()
        os.kill(pid, signal.SIGSTOP)
        if self.random.random() < 0.5:
            time.sleep(1)
            os.kill(pid, signal.SIGCONT)

    def kill_publisher(self) -> None:
        """Publish the other version from a process that is killed -9 at once."""
        self._beside(lambda process: process.kill())

    def stop_publisher(self) -> None:
        """The same, but it is stopped for half a second first."""

        def stop(process: subprocess.Popen[str]) -> None:
            process.send_signal(signal.SIGSTOP)
            time.sleep(0.5)
            process.kill()

        self._beside(stop)

    def no_files(self) -> None:
        """Let a publisher write next to nothing: to it, shared memory is full. It says so and goes on."""

        def starve(process: subprocess.Popen[str]) -> None:
            limit(process.pid, resource.RLIMIT_FSIZE, 4096)
            said, _ = process.communicate(f"{self.files[2]}\n")
            self.refused.append(said.startswith("refused: "))

        self._beside(starve)

    def _beside(self, harm: Callable[[subprocess.Popen[str]], None]) -> None:
        """Publish a version of the model by `ternary share`, and do something to it, on a thread: it takes seconds.

        Two at a time at most: on a busy machine more would begin than end.
        """
        self._publishing = [thread for thread in self._publishing if thread.is_alive()]
        if len(self._publishing) == 2:
            raise ProcessLookupError
        command = [sys.executable, "-m", "ternary", "share", self.files[self.random.choice([1, 2])], "--name"]

        def work() -> None:
            with subprocess.Popen(
                [*map(str, command), self.fleet.name], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
            ) as process:
                assert process.stdout is not None
                if process.stdout.readline().startswith("version"):
                    with suppress(ProcessLookupError):  # it has ended by itself
                        harm(process)
                process.kill()

        thread = threading.Thread(target=work)
        thread.start()
        self._publishing.append(thread)
        self._asking.append(thread)

    def kill_plugin(self) -> None:
        """Kill -9 of a plugin's process."""
        pid = self.fleet.host[self.random.choice(["counter", "painter"])].pid
        if pid:
            os.kill(pid, signal.SIGKILL)

    def few_descriptors(self) -> None:
        """Leave a worker hardly a descriptor beyond those that it has."""
        pid = self._victim()
        count = len(os.listdir(f"/proc/{pid}/fd")) + self.random.randrange(4)
        limit(pid, resource.RLIMIT_NOFILE, count)

    def little_memory(self) -> None:
        """Leave a worker little address space beyond what it has."""
        pid = self._victim()
        size = psutil.Process(pid).memory_info().vms + self.random.randrange(1 << 24)
        limit(pid, resource.RLIMIT_AS, size)

    def roll_out(self) -> None:
        """Publish the other version."""
        self.fleet.publish(self.files[self.random.choice([1, 2])])

    def misbehave(self) -> None:
        """Send a photo that makes the plugin misbehave."""
        code = self.random.choice(CODES)
        thread = threading.Thread(target=lambda: self.asked.append(self.clients.ask(2, 3, code)))
        thread.start()
        self._asking.append(thread)

    def end(self) -> None:
        """Wait for what was begun, such as photos that make the plugin misbehave, and lift all limits."""
        for thread in self._asking:
            thread.join()
        for pid in self.fleet.workers.ready:
            for kind in (resource.RLIMIT_NOFILE, resource.RLIMIT_AS):
                with suppress(ProcessLookupError):
                    limit(pid, kind, resource.prlimit(pid, kind)[1])


class Probe(threading.Thread):
    """Asks one worker directly and keeps how long each answer took."""

    def __init__(self, port: int) -> None:
        super().__init__()
        self.seconds: list[float] = []
        self._port, self.stopping = port, threading.Event()

    def run(self) -> None:
        """Ask five times a second, and once at least."""
        while not (self.seconds and self.stopping.wait(0.2)):
            begin = time.monotonic()
            answer, _ = post(self._port, {"model": "sums", "prompt": model.prompt(2, 3), "max_tokens": 2}, timeout=30)
            if not answer["choices"][0]["text"]:
                raise RuntimeError("the worker that was left alone answered nothing")
            self.seconds.append(time.monotonic() - begin)


def full_disk(folder: Path, found: dict[str, Any], outcomes: list[Outcome]) -> str:
    """Write the page where no file may grow; return the error. No part of a page may be left."""
    folder.mkdir()
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        write_page(folder, found, outcomes)
    except OSError as error:
        left = list(folder.iterdir())
        return f"{type(error).__name__}{left or ''}"
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    return "no error"


def opened() -> Counter[str]:
    """Count this process's open descriptors by kind or file."""
    places = [os.path.realpath(f"/proc/self/fd/{number}") for number in os.listdir("/proc/self/fd")]
    return Counter(re.sub(r"^/proc/\d+/fd/|:\[\d+\]$", "", place) for place in places)


def owner(file: str) -> int | None:
    """Return the user that a file belongs to; None if it is gone."""
    with suppress(OSError):
        return os.stat(file).st_uid
    return None


def recovered(fleet: Fleet, clients: Clients) -> int:
    """Wait until all workers are ready, and return how many of twenty answers are right then."""
    fleet.workers.wait(240)
    end = time.monotonic() + 120
    while time.monotonic() < end and clients.ask(2, 3).error:  # a plugin may be starting again
        time.sleep(0.2)
    return sum(clients.ask(2, 3).whole for _ in range(20))


def run(folder: Path, files: dict[int, Path], seconds: float, seed: int) -> dict[str, Any]:
    """Run the fleet under chaos and return what happened."""
    plugins = hostile_plugins(folder / "hostile")
    # A worker of no fleet: its latency says how busy the machine is.
    with llm.serve(files[1], workers=1, threads=1) as bystander, Fleet(folder, files[1], 3, plugins) as fleet:
        bystander.wait()
        clients = Clients(fleet.gateway.port, list(files.values()), count=3)
        chaos = Chaos(fleet, clients, files, seed)
        calm = Probe(chaos.port)
        calm.start()
        time.sleep(2)
        calm.stopping.set()
        calm.join()
        probe, beside = Probe(chaos.port), Probe(bystander.port)
        probe.start()
        beside.start()
        end = time.monotonic() + seconds
        try:
            while time.monotonic() < end:
                time.sleep(chaos.random.uniform(0, 1.2))
                chaos.act()
        finally:
            chaos.end()
            outcomes = clients.stop()
            for each in (probe, beside):
                each.stopping.set()
                each.join()
        again = recovered(fleet, clients)
        clients.close()
        sheltered = chaos.sheltered in fleet.workers.ready
        restarts = fleet.workers.restarts
    errors = Counter(outcome.error.split(" ")[0] for outcome in [*outcomes, *chaos.asked] if outcome.error)
    answers = [outcome for outcome in outcomes if not outcome.error]
    wrong = [outcome.error for outcome in outcomes if outcome.error and not outcome.error.startswith(TYPED)]
    wrong += [str(outcome) for outcome in answers if not outcome.whole]
    wrong += [o.error for o in chaos.asked if o.error and not o.error.startswith(TYPED)]
    wrong += ["a full publisher did not say so" for said in chaos.refused if not said]
    return {
        "done": chaos.done,
        "right": len(answers),
        "wrong": wrong,
        "errors": errors,
        "restarts": restarts,
        "recovered": again,
        "sheltered": sheltered,
        "latency": {
            "calm": median(calm.seconds),
            "chaos": median(probe.seconds),
            "bystander": median(beside.seconds),
        },
        "outcomes": outcomes,
    }


def main() -> int:
    """Run the chaos and print what happened and what was left behind."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="models, wheels and environments, kept from run to run")
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write it there too")
    args = parser.parse_args()
    logging.getLogger("isolate").addHandler(logging.NullHandler())  # what plugins print
    # Where a file may not grow, Python keeps what it wrote of a compiled module: the next import would fail.
    os.environ["PYTHONDONTWRITEBYTECODE"], sys.dont_write_bytecode = "1", True
    files = model.train(args.folder / "model")  # torch keeps files and folders of its own
    before, descriptors = shared_files(), opened()
    with tempfile.TemporaryDirectory(prefix="pentad-chaos-") as temporary:
        (Path(temporary) / "tmp").mkdir()
        os.environ["TMPDIR"] = tempfile.tempdir = str(Path(temporary) / "tmp")
        found = run(args.folder, files, args.seconds, args.seed)
        outcomes = found.pop("outcomes")
        end = time.monotonic() + 120
        while (new := opened() - descriptors) and time.monotonic() < end:
            time.sleep(0.1)
        # Before the page: matplotlib keeps its fonts open.
        figures = {
            "workers": 3,
            "weights": 1,
            "held": 1,
            "memory": 1,
            "written": 0,
            "numpy": "",
            "rolled out at": 0.0,
        }
        figures |= {"bytes": Counter(), "picture": [[0]], **summary(outcomes)}
        found["full disk"] = full_disk(Path(temporary) / "page", figures, outcomes)
        tempfile.tempdir = None
        left = [str(path.relative_to(temporary)) for path in (Path(temporary) / "tmp").rglob("*")]
    _, alive = psutil.wait_procs(psutil.Process().children(recursive=True), timeout=120)
    found["left"] = {
        # Who is not root cannot see whether another user's programs use a file.
        "shared": [file for file in leftovers(before) if owner(file) == os.geteuid()],
        "processes": [" ".join(process.cmdline()) for process in alive],
        "temporary": left,
        "descriptors": sorted(new.elements()),
    }
    print(json.dumps(found, indent=1))
    if args.json:
        args.json.write_text(json.dumps(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
