"""`vit` and `lm` on a real GPU: they learn, repeat to the bit, keep to their memory, and serve a contest."""

from __future__ import annotations

import gc
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ttt_test_commands import solve_command

import ttt
from ttt._budget import Budget, Clock
from ttt.checkpoint import CheckpointStore
from ttt.values import same

torch = pytest.importorskip("torch")

from ttt.backends import _learner  # noqa: E402 after the skip
from ttt.backends._pretraining import Pretraining, lessons  # noqa: E402 after the skip
from ttt.backends.vit import VitBackend, VitTraining  # noqa: E402 after the skip

# peft asks transformers for an attribute under its old name.
pytestmark = [
    pytest.mark.cuda,
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),
]
SHAPE = {"side": 16, "patch": 2, "width": 64, "heads": 4, "depth": 2}


def task(side: int = 6, name: str = "swap") -> ttt.Task:
    """Recolour 1 to 2 and 2 to 1."""
    rng = np.random.default_rng(0)
    table = np.array([0, 2, 1, 3, 4, 5, 6, 7, 8, 9], np.uint8)
    grids = [rng.integers(0, 3, (side, side)).astype(np.uint8) for _ in range(5)]
    pairs = tuple(ttt.Pair(ttt.as_grid(g), ttt.as_grid(table[g])) for g in grids)
    return ttt.Task(name, pairs[:4], pairs[4:])


def trained(steps: int, seed: int = 5, **settings: Any) -> VitTraining:
    """A training after some steps on the GPU."""
    training = VitTraining(VitBackend(**{"shape": SHAPE, "device": "cuda"} | settings), task(), seed)
    for step in range(steps):
        training.one_step(step / 40)
    return training


def equal(one: VitTraining, other: VitTraining) -> bool:
    """Whether every weight and average is equal to the bit."""
    pairs = [(one.parameters, other.parameters), (one.averages, other.averages)]
    return one.losses == other.losses and all(torch.equal(a[k], b[k]) for a, b in pairs for k in a)


class TestVit:
    """The canvas network."""

    def test_a_step_is_that_of_a_cpu(self) -> None:
        """The losses of the first steps are a CPU's, up to the numbers' precision."""
        here, there = trained(6), trained(6, device="cpu")
        assert np.allclose(here.losses, there.losses, rtol=0.03), (here.losses, there.losses)

    def test_a_recorded_step_is_the_step(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Steps that are launched kernel by kernel end with the same weights as recorded ones."""
        recorded = trained(12)
        monkeypatch.setattr(_learner, "recording", lambda work, _: work)
        assert equal(recorded, trained(12))

    def test_a_resumed_training_is_the_uninterrupted_one(self, integration_test_dir: Path) -> None:
        """Eight steps, a checkpoint, eight more: in the same object, in a new one, and in one that had gone on."""
        store = CheckpointStore(integration_test_dir, kind="vit")
        whole = trained(8)
        whole.save(store)
        again, back = trained(0), trained(3)
        for training in (again, back):
            training.resume(store)
            assert training.step == 8
        for step in range(8, 16):
            for training in (whole, again, back):
                training.one_step(step / 40)
        assert equal(whole, again)
        assert equal(whole, back)

    @pytest.mark.parametrize("batch", [4, 16, 64])
    def test_a_training_repeats(self, batch: int) -> None:
        """The default network, trained twice: every weight is equal to the bit."""
        assert equal(*(trained(20, shape={}, batch=batch) for _ in "12"))

    def test_answers_repeat(self) -> None:
        """The same seed and steps give the same answers and the same claims."""
        backend = VitBackend(shape=SHAPE, device="cuda", learning_rate=3e-3, answer_every=50)
        runs = [list(backend.solve(task(), Clock(Budget(seconds=None, steps=100), 1), None))[-1] for _ in "12"]
        first, second = ([(c.grid.tolist(), c.confidence) for c in run.answers[0]] for run in runs)
        assert first == second

    def test_pretraining_ends_with_usable_weights(self, integration_test_dir: Path) -> None:
        """Recorded steps over lessons; the weights start a task's training on a CPU."""
        backend = VitBackend(shape=SHAPE, device="cuda", batch=4)
        training = Pretraining(backend, lessons([task(name=f"swap-{n}") for n in range(2)], 16), 30)
        for _ in range(30):
            training.one_step()
        assert training.losses[-1] < training.losses[0]
        file = integration_test_dir / "net.safetensors"
        training.write(file)
        started = VitTraining(VitBackend(shape=SHAPE, device="cpu", weights=str(file)), task(), 0)
        assert torch.equal(started.parameters["head.weight"], training.averages["head.weight"].cpu())

    def test_memory_is_given_back(self) -> None:
        """What a training took is free once it has gone, the recorded step's memory included."""
        trained(3)  # libraries keep their workspaces from here on
        gc.collect()
        before = torch.cuda.memory_allocated()
        training = trained(3)
        assert torch.cuda.memory_allocated() > before
        del training
        gc.collect()
        assert torch.cuda.memory_allocated() <= before


@pytest.fixture(scope="module")
def tiny_lm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random two-layer Llama with sixteen symbols, as safetensors."""
    transformers = pytest.importorskip("transformers", reason='needs the extra "lm"')
    pytest.importorskip("peft", reason='needs the extra "lm"')
    sizes = {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 4}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = transformers.LlamaForCausalLM(
            transformers.LlamaConfig(vocab_size=16, max_position_embeddings=4096, **sizes)
        )
    folder = tmp_path_factory.mktemp("random-lm")
    model.save_pretrained(folder)
    return folder


LORA = {"steps": 12, "batch": 4, "micro_batch": 4, "prediction_views": 2, "rank": 8, "learning_rate": 1e-2}


class TestLm:
    """The language model."""

    def test_an_adapter_learns_and_leaves_nothing(self, tiny_lm: Path) -> None:
        """The loss falls, the account counts the weights and the work, base weights and memory are as before."""
        from ttt.backends.lm import LoraSettings, ModelService, TTTAdapter

        before = torch.cuda.memory_allocated()
        with ModelService(tiny_lm, "cuda") as service:
            kept = {k: v.clone() for k, v in service.model.state_dict().items()}
            held = service.memory().gpu
            clock = Clock(Budget(seconds=None), 0)
            settings = LoraSettings(**LORA | {"steps": 30})
            with TTTAdapter(service, settings).adapted(task(2), clock) as adaptation:
                assert np.mean(adaptation.losses[-5:]) < 0.8 * adaptation.losses[0]
                (*_, answers) = adaptation.predict(clock)
                assert answers[0]
            del adaptation
            profile = service.memory()
            assert profile.weights <= held <= profile.gpu_peak
            after = service.model.state_dict()
            assert after.keys() == kept.keys()
            assert all(torch.equal(after[k], v) for k, v in kept.items())
            del kept, after
        assert torch.cuda.memory_allocated() <= before + 2**20

    def test_answers_repeat(self, tiny_lm: Path) -> None:
        """The same seed and steps give the same grids and the same claims."""
        from ttt.backends.lm import LmBackend

        backend = LmBackend(str(tiny_lm), "cuda", lora=LORA)
        runs = [list(backend.solve(task(2), Clock(Budget(seconds=None), 1), None))[-1] for _ in "12"]
        first, second = ([(c.grid.tolist(), c.confidence) for c in run.answers[0]] for run in runs)
        assert first == second


@pytest.fixture
def limited(tiny_lm: Path) -> list[Any]:
    """Backends with too little of the GPU's memory for their batch."""
    from ttt.backends.lm import LmBackend

    return [
        VitBackend(shape=SHAPE, device="cuda", batch=4096, gpu_memory="60MB"),
        LmBackend(str(tiny_lm), "cuda", lora=LORA | {"batch": 512, "micro_batch": 512}, gpu_memory="60MB"),
    ]


@pytest.mark.timeout(300)
def test_too_little_memory_is_a_result(limited: list[Any]) -> None:
    """A full GPU ends its task with a typed error and a legal answer; it is not tried again."""
    for backend in limited:
        run = ttt.run([task()], backend=backend, budget="60s", workers=1)
        for _ in run:
            pass
        result = run.results["swap"]
        assert (result.error or "").startswith("MemoryLimitError: CUDA out of memory"), result.error
        assert "gpu_memory allows 60MB; raise it" in (result.error or "")
        assert (result.status, result.reason) == ("failed", "memory")
        assert not result.may_succeed_later
        assert result.predictions[0].first.grid.size


@pytest.mark.timeout(300)
def test_a_contest_on_a_gpu(integration_test_dir: Path) -> None:
    """Two tasks at a time share a GPU; within the whole time both are solved, and the submission is complete."""
    tasks = [task(4, f"swap-{n}") for n in range(2)]
    settings = {"shape": json.dumps(SHAPE), "device": "cuda", "learning_rate": "0.003", "steps": "200"}
    given = [word for name, value in settings.items() for word in ("--set", f"{name}={value}")]
    run = solve_command(integration_test_dir, tasks, "--backend", "vit", "--total", "25s", "--gpu-tasks", "2", *given)
    output, _ = run.communicate(timeout=110)
    assert run.returncode == 0, output
    submission = json.loads((integration_test_dir / "out.json").read_text())
    assert submission.keys() == {t.id for t in tasks}
    for one in tasks:
        assert one.test[0].output is not None
        assert same(ttt.as_grid(submission[one.id][0]["attempt_1"]), one.test[0].output)
