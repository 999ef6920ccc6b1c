"""The fleet of examples/fleet under attack: each answer is right or a typed error, and nothing stays behind."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

import psutil
import pytest

pytest.importorskip("uvicorn", reason="needs ternary's extra serve")
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="signals, limits and shared memory of Linux")

SECONDS = int(os.environ.get("CHAOS_SECONDS", "60"))  # ten minutes every night
ORDINARY = 64998


@pytest.fixture(scope="module")
def models(root: Path, prepared: Path) -> list[str]:
    """The files of both versions of the model; torch, which trains them, keeps files and folders of its own."""
    code = "import sys, pathlib; from trial import model; print(*model.train(pathlib.Path(sys.argv[1])).values())"
    command = [sys.executable, "-c", code, str(prepared / "model")]
    done = subprocess.run(command, env=environment(root), capture_output=True, text=True, check=True)
    return done.stdout.split()


def as_ordinary_user(root: Path) -> list[str]:
    """How root starts an interpreter as another user, who may also read root's folders if the interpreter is there."""
    if os.geteuid() != 0:
        pytest.skip("only root can act as another user, and the other test runs as this one")
    setpriv = shutil.which("setpriv")
    user = [str(setpriv), "--reuid", str(ORDINARY), "--regid", str(ORDINARY), "--clear-groups"]
    reading = ["--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search"]
    start = "import subprocess, sys, xfer; subprocess.run([sys.executable, '-c', ''], check=True)"
    for prefix in (user, [*user, *reading]):
        try:
            works = subprocess.run([*prefix, sys.executable, "-c", start], capture_output=True, cwd=root)
        except OSError:
            continue
        if works.returncode == 0:
            return prefix
    pytest.skip("another user can run no Python here")


def environment(root: Path) -> dict[str, str]:
    """The environment of the fleet's processes, whose wall clocks jump."""
    places = [root / "examples" / "fleet", root / "tests" / "parts" / "jumping_clock"]
    return os.environ | {"PYTHONPATH": os.pathsep.join(map(str, places)), "JUMPING_CLOCK": "1"}


def chaos(root: Path, folder: Path, tmp_path: Path, seconds: float, prefix: list[str], **more: str) -> dict[str, Any]:
    """Run the chaos and return what happened; the seed is in the command, which a failure shows."""
    report = tmp_path / "chaos.json"
    seed = str(time.time_ns() % 100_000)
    command = [*prefix, sys.executable, str(root / "tests" / "parts" / "chaos.py"), str(folder)]
    command += ["--seconds", str(seconds), "--seed", seed, "--json", str(report)]
    done = subprocess.run(command, cwd=folder, env=environment(root) | more, capture_output=True, text=True)
    assert done.returncode == 0, f"{command}\n{done.stderr[-6000:]}"
    found: dict[str, Any] = json.loads(report.read_text())
    assert found["wrong"] == [], command
    assert found["left"] == {"shared": [], "processes": [], "temporary": [], "descriptors": []}, command
    return found


def started(
    root: Path, processes: int, program: str, *arguments: str
) -> tuple[subprocess.Popen[str], list[psutil.Process]]:
    """Start one of the fleet's programs and wait until it has so many child processes."""
    process = subprocess.Popen(
        [sys.executable, str(root / "examples" / "fleet" / program), *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        # Background jobs of a shell ignore Ctrl-C, and their children inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    end = time.monotonic() + 250
    while len(family := psutil.Process(process.pid).children(recursive=True)) < processes:
        assert time.monotonic() < end, "the fleet did not start"
        time.sleep(0.2)
    return process, family


def version(address: str) -> str:
    """Ask for a sum and return the version that answered."""
    body = {"model": "sums", "prompt": "Anna has two . Anna gets three more . Now Anna has", "max_tokens": 2}
    asked = urllib.request.Request(address, json.dumps(body).encode(), {"content-type": "application/json"})
    with urllib.request.urlopen(asked, timeout=60) as answer:
        said: str = json.load(answer)["model"]
    return said


def survived(found: dict[str, Any]) -> None:
    """What must hold after any chaos."""
    assert found["right"] > 0
    assert found["recovered"] == 20
    assert found["sheltered"]
    assert found["full disk"] == "OSError"


def unhurt(latency: dict[str, float]) -> None:
    """The worker that is left alone answers as fast as before; only the longer tests measure long enough to say so.

    A worker of no fleet shows what restarts of the others, and what else runs here, do to everything on the machine. It
    answers nobody else. The sheltered worker's own answers to the clients are what the floor is for.
    """
    assert latency["chaos"] <= max(2 * max(latency["calm"], latency["bystander"]), 0.1), latency


@pytest.mark.timeout(600)
def test_the_fleet_survives_a_bad_moment(root: Path, prepared: Path, tmp_path: Path) -> None:
    """Some seconds of kills, stops, limits and hostile photos."""
    survived(chaos(root, prepared, tmp_path, 5, []))


@pytest.mark.slow
@pytest.mark.timeout(SECONDS + 900)
def test_the_fleet_survives_chaos(root: Path, prepared: Path, tmp_path: Path) -> None:
    """The same for longer: many kinds of harm are done, and some of them show as typed errors."""
    found = chaos(root, prepared, tmp_path, SECONDS, [])
    survived(found)
    unhurt(found["latency"])
    assert len(found["done"]) >= 6
    assert found["restarts"] >= SECONDS / 30
    assert found["errors"]


@pytest.mark.slow
@pytest.mark.timeout(SECONDS + 900)
def test_an_ordinary_users_fleet_survives_chaos(root: Path, prepared: Path, tmp_path: Path) -> None:
    """The same as a user who is not root."""
    prefix = as_ordinary_user(root)
    home = Path("/tmp") / f"pentad-fleet-{os.getpid()}"
    try:
        shutil.copytree(prepared, home / "fleet", symlinks=True, ignore=shutil.ignore_patterns("environments"))
        for place in (home, *home.rglob("*")):
            os.chown(place, ORDINARY, ORDINARY, follow_symlinks=False)
        more = {"HOME": str(home), "UV_CACHE_DIR": str(home / "uv"), "ZEROCOPY_DIRECTORY": str(home / "zerocopy")}
        found = chaos(root, home / "fleet", home, SECONDS / 2, prefix, **more)
        survived(found)
        unhurt(found["latency"])
    finally:
        shutil.rmtree(home, ignore_errors=True)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("processes", [1, 7])
def test_ctrl_c_leaves_nothing(root: Path, prepared: Path, processes: int) -> None:
    """Ctrl-C while the fleet starts, and while it answers: the exit status is 130, and all processes end."""
    process, family = started(root, processes, "show.py", "--folder", str(prepared), "--seconds", "60")
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=120)
    assert process.returncode == 130
    _, alive = psutil.wait_procs(family, timeout=60)
    assert not alive


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_command_serves_and_leaves_no_process(root: Path, prepared: Path, models: list[str]) -> None:
    """It answers and rolls out the file that it is told. After kill -9 workers, publisher and plugins end too."""
    process, family = started(root, 7, "fleet.py", models[0], "--folder", str(prepared))
    assert process.stdin is not None
    assert process.stdout is not None
    address = process.stdout.readline().strip()
    assert version(address) == "sums-1"
    process.stdin.write(models[1] + "\n")
    process.stdin.flush()
    end = time.monotonic() + 60
    while version(address) != "sums-2":
        assert time.monotonic() < end, "the second version was not rolled out"
    family = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    process.communicate()
    _, alive = psutil.wait_procs(family, timeout=60)  # those that are still importing find out afterwards
    assert not alive
    subprocess.run([sys.executable, "-m", "xfer", "reap"], check=True, capture_output=True)  # the topic's name


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_command_ends_with_its_input(root: Path, prepared: Path, models: list[str]) -> None:
    """The end of the input ends all processes, and the exit status is 0."""
    process, _ = started(root, 7, "fleet.py", models[1], "--folder", str(prepared))
    said, _ = process.communicate(timeout=120)
    assert process.returncode == 0
    assert said.startswith("http://127.0.0.1:")
