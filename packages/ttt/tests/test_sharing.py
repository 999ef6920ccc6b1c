"""One copy of a base model's weights for all workers: mapped from one file, and not a byte of the answers changes."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from ttt_test_vit import SHAPE, WhereWeightsLie

import ttt
from ttt._budget import Budget, Clock
from ttt.backends._canvas import CanvasShape, CanvasViT
from ttt.backends.vit import VitBackend
from ttt.errors import MissingExtraError
from ttt.values import same

torch = pytest.importorskip("torch")


@pytest.fixture
def weights(integration_test_dir: Path) -> str:
    """Weights of a small canvas transformer in a file."""
    from safetensors.torch import save_file

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        model = CanvasViT(CanvasShape(**SHAPE))
    path = integration_test_dir / "base.safetensors"
    save_file(model.state_dict(), path)
    return str(path)


def backend_of(weights: str, *, share: bool) -> VitBackend:
    """A vit backend that tells where its weights lie."""
    return WhereWeightsLie(shape=SHAPE, weights=weights, share=share, device="cpu", steps=2, prediction_views=2)


@pytest.mark.timeout(300)
@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="reads the kernel's list of mappings")
def test_workers_map_one_copy_and_answer_alike(sample_arc_tasks: list[ttt.Task], weights: str) -> None:
    """Two workers map the same shared file; a single process with weights of its own gives the same submission."""
    pytest.importorskip("zerocopy", reason='needs the extra "zerocopy"')
    tasks = sample_arc_tasks[1:3]
    run = ttt.run(tasks, backend=backend_of(weights, share=True), budget="2 steps", workers=2)
    for _ in run:
        pass
    assert {r.error for r in run.results.values()} == {None}
    (file,) = {r.predictions[0].first.why for r in run.results.values()}
    assert file.endswith(".zc")
    assert not Path(file).exists(), "the segment outlived its run"
    for task in tasks:
        clock = Clock(Budget(seconds=None, steps=2), task.seed(0))
        (alone,) = backend_of(weights, share=False).solve(task.without_solutions(), clock, None)
        assert not alone.answers[0][0].why.endswith(".zc")
        assert same(alone.answers[0][0].grid, run.results[task.id].predictions[0].first.grid)
        assert alone.answers[0][0].confidence == run.results[task.id].predictions[0].first.claimed


def test_without_the_extra_the_error_names_it(
    sample_arc_tasks: list[ttt.Task], weights: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sharing without zerocopy is refused with what to install, before a task is started."""
    monkeypatch.setitem(sys.modules, "zerocopy", None)
    with pytest.raises(MissingExtraError, match=r"pentad-ttt\[zerocopy\]"):
        next(iter(ttt.run(sample_arc_tasks[:1], backend=backend_of(weights, share=True))))
