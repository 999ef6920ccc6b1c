"""The Ray pool gives the bytes that local workers give."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from ttt_test_backends import Misbehaving, Wanderer
from ttt_test_commands import solve_command

import ttt

pytestmark = [
    pytest.mark.xdist_group("ray"),
    pytest.mark.timeout(240),
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
        ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
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
    failed = finish(ttt.run(sample_arc_tasks[:1], backend=Misbehaving("raises"), budget=30, pool="ray"))
    assert failed.results["identity"].error is not None
    assert failed.results["identity"].answered


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
    child.communicate(timeout=30)
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
