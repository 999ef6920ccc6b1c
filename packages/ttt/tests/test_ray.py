"""The Ray pool gives the bytes that local workers give."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import psutil
import pytest
import ttt_test_cluster
from ttt_test_backends import Counting, KillsItsPlace, Misbehaving, Wanderer
from ttt_test_commands import solve_command

import ttt

pytestmark = [
    pytest.mark.xdist_group("ray"),
    pytest.mark.timeout(300),
    pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::ResourceWarning", "ignore::DeprecationWarning"),
]


@pytest.fixture(scope="module")
def ray_cluster() -> Iterator[object]:
    """One local cluster for this file."""
    ray = pytest.importorskip("ray", reason='needs the extra "ray"')
    if ray.is_initialized():
        yield ray
        return
    with pytest.MonkeyPatch.context() as patch:
        # Under "uv run" Ray would start its workers in an environment of their own, made anew.
        patch.setenv("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
        for more_tries in (2, 1, 0):
            try:
                ray.init(
                    address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR"
                )
                break
            except Exception:  # Ray gives its processes 30 s to start, whatever else the machine does
                ray.shutdown()
                if not more_tries:
                    raise
        yield ray
        ray.shutdown()


def finish(run: ttt.Run) -> ttt.Run:
    """Make a run go to its end."""
    for _ in run:
        pass
    return run


def test_ray_gives_the_same_bytes(ray_cluster: object, sample_arc_tasks: list[ttt.Task]) -> None:
    """With a budget in work units, a Ray cluster and one local worker answer alike, and failures are contained."""
    chosen = sample_arc_tasks[2:]
    far = finish(ttt.run(chosen, backend=Wanderer(), budget="30 steps", workers=2, pool="ray"))
    near = finish(ttt.run(chosen, backend=Wanderer(), budget="30 steps"))
    assert {r.status for r in far.results.values()} == {"stopped"}
    assert far.submission() == near.submission()
    failed = finish(ttt.run(sample_arc_tasks[:1], backend=Misbehaving("raises"), budget=100, pool="ray"))
    assert failed.results["identity"].error is not None
    assert failed.results["identity"].answered


@pytest.mark.slow
@pytest.mark.parametrize("pool", ["local", "ray"])
def test_an_interrupt_hands_over_answers_and_checkpoints(
    request: pytest.FixtureRequest,
    sample_arc_tasks: list[ttt.Task],
    integration_test_dir: Path,
    monkeypatch: pytest.MonkeyPatch,
    pool: Literal["local", "ray"],
) -> None:
    """Both pools: after Ctrl-C running tasks have their last answers, and the same run goes on from its checkpoints.

    The run's folder is relative to a folder that the cluster knows nothing about.
    """
    if pool == "ray":
        request.getfixturevalue("ray_cluster")
    monkeypatch.chdir(integration_test_dir)
    chosen = sample_arc_tasks[:3]
    arguments: dict[str, Any] = {"backend": Counting(), "budget": "400 steps", "folder": "run", "pool": pool}
    first = ttt.run(chosen, workers=2, **arguments)
    improved = set()
    for event in first:
        if isinstance(event, ttt.Improved):
            improved.add(event.task_id)
            if len(improved) == 2:
                first.interrupt()
    reasons = {i: (r.status, r.reason, r.answered) for i, r in first.results.items()}
    assert reasons == {
        "identity": ("stopped", "interrupt", True),
        "mirror": ("stopped", "interrupt", True),
        "turn": ("skipped", "interrupt", False),
    }
    second = finish(ttt.run(chosen, **arguments))  # as many workers as there are slots
    begun = {i: int(r.predictions[0].first.why.split()[1]) for i, r in second.results.items()}
    assert begun["identity"] > 0
    assert begun["mirror"] > 0
    assert begun["turn"] == 0
    assert {r.steps for r in second.results.values()} == {400}
    assert second.folder is not None
    assert list((second.folder / "work").iterdir()) == [], "finished tasks leave no checkpoints"


def test_tasks_of_a_place_that_dies_go_elsewhere(
    ray_cluster: object, sample_arc_tasks: list[ttt.Task], integration_test_dir: Path
) -> None:
    """A task whose supervising process is killed is started again, and it is said."""
    backend = KillsItsPlace(str(integration_test_dir))
    run = finish(ttt.run(sample_arc_tasks[:1], backend=backend, budget=100, pool="ray"))
    result = run.results["identity"]
    assert (result.status, result.predictions[0].first.stage) == ("done", "second place"), result.error
    assert any("started again" in note for note in run.notes)


def test_a_cluster_that_cannot_solve_says_why(ray_cluster: object, sample_arc_tasks: list[ttt.Task]) -> None:
    """A backend that no node can use ends the run with the reason, before a task is touched."""
    from ttt_test_vit import SHAPE

    from ttt.backends.vit import VitBackend

    run = ttt.run(sample_arc_tasks, backend=VitBackend(shape=SHAPE, device="cud"), budget=5, pool="ray")
    with pytest.raises(ttt.TTTError, match=r"no node of the cluster can solve tasks: .*no such device"):
        finish(run)
    assert run.results == {}


CLUSTER_TASKS = int(os.environ.get("TTT_CLUSTER_TASKS", "40"))
"""How many tasks the cluster solves on its bad day; 1,000 in the nightly run."""


@pytest.mark.slow
@pytest.mark.timeout(300 + 3 * CLUSTER_TASKS)
def test_a_cluster_of_bad_days(integration_test_dir: Path) -> None:
    """Four raylets, one without ttt, one killed; Ctrl-C, the same command again, a full disk: every task is answered.

    The answers are those of this machine alone, byte by byte.
    """
    pytest.importorskip("ray", reason='needs the extra "ray"')
    disk = integration_test_dir / "disk"
    disk.mkdir()
    mount = 'mount -t tmpfs -o size=64m none "$0" && exec "$@"'
    alone = ["unshare", "-rm", "sh", "-c", mount, str(disk)]
    try:
        usable = subprocess.run([*alone, "true"], capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        usable = False
    if not usable:
        pytest.skip("this system lets no ordinary user mount a tmpfs of their own")
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p), "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0"}
    env["TTT_TEST_CLUSTER"] = str(integration_test_dir)  # tells these processes from those of other runs
    command = [sys.executable, ttt_test_cluster.__file__, str(CLUSTER_TASKS), str(integration_test_dir), str(disk)]
    done = subprocess.run(
        [*alone, *command], env=env, capture_output=True, text=True, check=False, timeout=250 + 3 * CLUSTER_TASKS
    )
    assert done.returncode == 0, done.stdout + done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    print(told)
    status, finished = told["interrupted"]
    assert status == 130
    assert CLUSTER_TASKS // 2 <= finished < CLUSTER_TASKS
    assert told["resumed"] == [0, finished]
    assert told["answered"] == CLUSTER_TASKS
    assert told["same_bytes"]
    first, second = told["said"]
    for said in (first, second):
        assert any("ModuleNotFoundError" in line and "left out" in line for line in said.splitlines()), said
    assert "No space left" in second
    assert told["driver_share"] < 0.2 or CLUSTER_TASKS < 500, told  # with few tasks it is the start that takes time
    _, left = psutil.wait_procs([p for p in psutil.process_iter() if _is_worker_of(p, integration_test_dir)], 30)
    assert left == []
    for folder in Path(tempfile.gettempdir()).glob("ttt-node-*"):  # of the killed node: its next start removes it
        assert not psutil.pid_exists(int(folder.name.split("-")[2]))
        shutil.rmtree(folder)


def _is_worker_of(process: psutil.Process, folder: Path) -> bool:
    try:
        ours = process.environ().get("TTT_TEST_CLUSTER") == str(folder)
        return ours and "ttt._runs.worker" in " ".join(process.cmdline())
    except psutil.Error:
        return False


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_all_stages_give_the_same_bytes_however_they_are_run(
    ray_cluster: object, real_tasks: ttt.TaskSet, integration_test_dir: Path
) -> None:
    """Search, trees and net on real tasks: one worker, two, another order, Ray, and killed -9 and resumed."""
    chosen = list(real_tasks.sample(3, seed=21))
    steps = 150
    whole = finish(ttt.run(chosen, budget=f"{steps} steps")).submission()
    assert any(
        r.stage in ("net", "done") for r in finish(ttt.run(chosen[:1], budget=f"{steps} steps")).results.values()
    )
    assert finish(ttt.run(chosen[::-1], budget=f"{steps} steps", workers=2)).submission() == whole
    assert finish(ttt.run(chosen, budget=f"{steps} steps", workers=2, pool="ray")).submission() == whole

    arguments = ["--steps", str(steps)]
    child = solve_command(integration_test_dir, chosen, *arguments)
    records = integration_test_dir / "out.run" / "records"
    deadline = time.monotonic() + 200
    while not list(records.glob("*.json")) and time.monotonic() < deadline:
        time.sleep(0.05)
    child.kill()
    child.communicate(timeout=200)
    again = solve_command(integration_test_dir, chosen, *arguments, "--json")
    out, _ = again.communicate(timeout=300)
    assert again.returncode == 0, out
    assert any(t["reused"] for t in json.loads(out)["tasks"])
    assert (integration_test_dir / "out.json").read_text() == whole


@pytest.mark.slow
def test_weights_are_shared_on_a_node(
    ray_cluster: object, sample_arc_tasks: list[ttt.Task], integration_test_dir: Path
) -> None:
    """Workers under Ray map the weights that the run put into shared memory, and answer as with their own."""
    pytest.importorskip("zerocopy", reason='needs the extra "zerocopy"')
    from ttt_test_vit import SHAPE, WhereWeightsLie

    torch = pytest.importorskip("torch")
    from safetensors.torch import save_file

    from ttt.backends._canvas import CanvasShape, CanvasViT

    save_file(CanvasViT(CanvasShape(**SHAPE)).state_dict(), integration_test_dir / "w.safetensors")
    assert torch.get_num_threads() == 1
    texts = []
    for pool, share in (("ray", True), ("local", False)):
        backend = WhereWeightsLie(
            shape=SHAPE, weights=str(integration_test_dir / "w.safetensors"), share=share, steps=2, prediction_views=2
        )
        run = finish(ttt.run(sample_arc_tasks[1:3], backend=backend, budget="2 steps", workers=2, pool=pool))  # type: ignore[arg-type]
        assert {r.error for r in run.results.values()} == {None}
        assert all(r.predictions[0].first.why.endswith(".zc") == share for r in run.results.values())
        texts.append(run.submission())
    assert texts[0] == texts[1]
