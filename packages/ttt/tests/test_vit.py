"""The vit backend on small canvases: it learns, resumes exactly, and refuses what does not fit."""

from __future__ import annotations

import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import ttt
from ttt._budget import Budget, Clock
from ttt.checkpoint import CheckpointStore
from ttt.errors import InvalidBackendError

torch = pytest.importorskip("torch")

from ttt.backends._canvas import CLASSES, CanvasShape, CanvasViT  # noqa: E402 after the skip
from ttt.backends.vit import VitBackend, VitTraining, read_canvas  # noqa: E402 after the skip

SHAPE = {"side": 8, "patch": 2, "width": 32, "heads": 2, "depth": 2}
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.cuda)]


def task(side: int = 4) -> ttt.Task:
    """Recolour 1 to 2 and 2 to 1."""
    rng = np.random.default_rng(0)
    table = np.array([0, 2, 1, 3, 4, 5, 6, 7, 8, 9], np.uint8)
    grids = [rng.integers(0, 3, (side, side)).astype(np.uint8) for _ in range(5)]
    pairs = tuple(ttt.Pair(ttt.as_grid(g), ttt.as_grid(table[g])) for g in grids)
    return ttt.Task("swap", pairs[:4], pairs[4:])


@pytest.mark.parametrize("device", DEVICES)
def test_it_learns(device: str) -> None:
    """The loss falls far, and the answer has the output's size with a vote share as confidence."""
    backend = VitBackend(shape=SHAPE, device=device, steps=120, prediction_views=4, learning_rate=3e-3)
    training = VitTraining(backend, task(), 0)
    for i in range(120):
        training.one_step(i / 120)
    assert training.losses[-1] < training.losses[0] / 2
    progress = training.progress(120)
    best = progress.answers[0][0]
    assert best.grid.shape == (4, 4)
    assert 0 < best.confidence <= 1
    claimed = sum(c.confidence for c in progress.answers[0])
    assert min(abs(claimed - b) for b in (0.04 + 0.71 * k / 4 for k in range(5))) < 1e-6, "a share of the pairs fitted"


def test_patches_come_back_where_they_were() -> None:
    """Logits of a cell depend on the place of its patch: a canvas of the right shape for each patch size."""
    for patch in (1, 2, 4):
        shape = CanvasShape(side=8, patch=patch, width=16, heads=2, depth=1)
        out = CanvasViT(shape)(torch.full((3, 8, 8), 10))
        assert out.shape == (3, 8, 8, CLASSES)


def test_a_resumed_training_is_the_uninterrupted_one(integration_test_dir: Path) -> None:
    """Ten steps, a checkpoint, ten more in a new object: every weight, average and moment equal to the bit."""
    backend = VitBackend(shape=SHAPE, device="cpu")
    store = CheckpointStore(integration_test_dir, kind="vit")
    whole = VitTraining(backend, task(), 5)
    for i in range(20):
        if i == 10:
            whole.save(store)
        whole.one_step(i / 20)
    again = VitTraining(backend, task(), 5)
    again.resume(store)
    assert again.step == 10
    for i in range(10, 20):
        again.one_step(i / 20)
    assert again.losses == whole.losses
    for k in whole.parameters:
        assert torch.equal(again.parameters[k], whole.parameters[k])
        assert torch.equal(again.averages[k], whole.averages[k])
    other = VitTraining(backend, task(), 6)
    other.resume(store)
    assert other.step == 0


def test_solve_obeys_work_units_and_saves(integration_test_dir: Path) -> None:
    """Ten work units are ten steps; a second call goes on from the checkpoint and answers the same."""
    backend = VitBackend(shape=SHAPE, device="cpu", answer_every=5, prediction_views=2)
    answers = []
    for folder in (integration_test_dir, None):
        clock = Clock(Budget(seconds=None, steps=10), 1)
        answers.append(list(backend.solve(task(), clock, folder))[-1])
        assert clock.steps_done == 10
    first, second = (a.answers[0][0].grid.tolist() for a in answers)
    assert first == second
    (resumed,) = backend.solve(task(), Clock(Budget(seconds=None, steps=10), 1), integration_test_dir)
    assert resumed.answers[0][0].grid.tolist() == first


def test_weights_are_read_from_safetensors(integration_test_dir: Path) -> None:
    """Weights of the same shape are the start; others and other files are refused."""
    from safetensors.torch import save_file

    model = CanvasViT(CanvasShape(**SHAPE))
    path = integration_test_dir / "w.safetensors"
    save_file(model.state_dict(), path)
    training = VitTraining(VitBackend(shape=SHAPE, weights=str(path), device="cpu"), task(), 0)
    assert torch.equal(training.parameters["rule"], model.rule)
    with pytest.raises(InvalidBackendError, match="weights"):
        VitTraining(VitBackend(shape={**SHAPE, "depth": 1}, weights=str(path), device="cpu"), task(), 0)
    path.write_bytes(b"\x80\x04pickle")
    with pytest.raises(InvalidBackendError, match="weights"):
        VitTraining(VitBackend(shape=SHAPE, weights=str(path), device="cpu"), task(), 0)


def test_refuses_what_does_not_fit() -> None:
    """A grid larger than the canvas, and shapes that do not divide."""
    with pytest.raises(InvalidBackendError, match="has grids of 9 cells, the canvas 8"):
        VitTraining(VitBackend(shape=SHAPE, device="cpu"), task(9), 0)
    with pytest.raises(InvalidBackendError, match="no fit"):
        VitBackend(shape={"side": 9})
    with pytest.raises(InvalidBackendError, match="shape"):
        VitBackend(shape={"sides": 8})


def test_reading_a_canvas() -> None:
    """The grid in the corner is found with its probability; a hole counts as black; an empty canvas is one cell."""
    cells = np.full((8, 8), 10)
    cells[:2, :3] = [[1, 2, 3], [4, 10, 6]]
    grid, sure = read_canvas(cells, np.full((8, 8), 0.5))
    assert grid.tolist() == [[1, 2, 3], [4, 0, 6]]
    assert sure == pytest.approx(0.5**6)
    assert read_canvas(np.full((8, 8), 10), np.ones((8, 8)))[0].tolist() == [[0]]


def test_an_unlearned_net_claims_next_to_nothing() -> None:
    """All views of a net that has learned nothing may agree; it still claims under 5 %, as it fits no pair."""
    training = VitTraining(VitBackend(shape=SHAPE, device="cpu"), task(), 0)
    for options in training.progress(1).answers:
        assert sum(c.confidence for c in options) < 0.05


def test_a_time_budget_ends_with_an_answer_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """There is an answer from the start, and training ends early enough for the last one."""
    list(VitBackend(shape=SHAPE, device="cpu", steps=1).solve(task(), Clock(Budget(seconds=None), 1), None))  # imports
    # Processor time in place of the wall clock's: other programs take none of it.
    for module in ("ttt._budget", "ttt.backends.vit"):
        monkeypatch.setattr(f"{module}.time", SimpleNamespace(monotonic=time.process_time))
    backend = VitBackend(shape=SHAPE, device="cpu", steps=10**6, answer_every=10**6, prediction_views=16)
    used: list[float] = []
    while not used or used[-1] > 4:  # a round can meet a slow moment of a shared processor; one of three must not
        assert len(used) < 3, used
        begun = time.process_time()
        clock = Clock(Budget(seconds=3), 1)
        answers = list(backend.solve(task(), clock, None))
        used.append(time.process_time() - begun)
        assert len(answers) == 2
        assert answers[0].steps_done == 0
        assert answers[1].steps_done > 0
        assert clock.reason == "time"


def test_what_is_missing_is_found_before_a_process_starts(sample_arc_tasks: list[ttt.Task]) -> None:
    """Wrong weights, a device that is not there and one that is misspelt end the run before its first task."""
    from ttt.errors import InvalidBackendError

    wrong: list[tuple[dict[str, str], str]] = [
        ({"weights": "nowhere.safetensors"}, "nowhere"),
        ({"device": "cud"}, "no such device"),
    ]
    if not torch.cuda.is_available():
        wrong.append(({"device": "cuda"}, "no CUDA device"))
    for settings, message in wrong:
        run = ttt.run(sample_arc_tasks, backend=VitBackend(shape=SHAPE, **settings), budget=5)
        with pytest.raises(InvalidBackendError, match=message):
            next(iter(run))
        assert run.results == {}
