"""The training loop: learning, schedules, clipping, mixed precision, resume, and honest failures."""

from __future__ import annotations

import contextlib
import math
import os
import signal
import subprocess
import sys
import time
import weakref
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

import ternary
from ternary import _plot as plot
from ternary._training import History, TrainConfig, accuracy, data, experiment, fit, make_optimizer, rate, shuffled
from ternary._training.batches import cut_and_mixed
from ternary.errors import (
    DivergedError,
    ModelFileError,
    NonFiniteActivationError,
    TernaryError,
    UnknownQuantizerError,
    VanishingGradientError,
)

EXAMPLES = Path(__file__).parent.parent / "examples"


def test_learns(compiled_simple_model: nn.Module, mock_dataloader: DataLoader) -> None:
    """A ternary network learns a small problem."""
    history = fit(compiled_simple_model, lambda: mock_dataloader, TrainConfig(epochs=25, learning_rate=5e-3))
    x, y = mock_dataloader.dataset.tensors
    assert history.loss[-1] < 0.5 * history.loss[0]
    assert accuracy(compiled_simple_model, x, y) > 0.8
    assert compiled_simple_model.training


@pytest.mark.parametrize("quantizer", ["twn", "ttq", "absmean", "stochastic"])
def test_gradient_flow(quantizer: str, utils: ModuleType) -> None:
    """Every quantizer lets gradients through a deep network."""
    model = ternary.zoo.load("mlp")(quantizer=quantizer, depth=6, dropout=0.0)
    model(torch.randn(32, 64)).square().mean().backward()
    utils.validate_gradients(model)


@pytest.mark.parametrize(
    ("schedule", "middle", "last"), [("cosine", 0.5, 0.0), ("step", 0.1, 0.01), ("constant", 1.0, 1.0)]
)
def test_schedules(schedule: str, middle: float, last: float) -> None:
    """The rate warms up, then follows the schedule."""
    config = TrainConfig(learning_rate=1.0, schedule=schedule, warmup=0.1)  # type: ignore[arg-type]
    rates = [rate(i, 1000, config) for i in range(1000)]
    assert rates[0] == pytest.approx(0.01)
    assert max(rates) == 1.0
    assert rates[550] == pytest.approx(middle, abs=0.01)
    assert rates[-1] == pytest.approx(last, abs=0.01)


def test_weight_decay_spares_biases_and_scales() -> None:
    """Only weights decay: neither biases nor norms nor learned scales."""
    model = nn.Sequential(ternary.nn.TernaryLinear(4, 4, quantizer="ttq"), nn.BatchNorm1d(4))
    decayed = make_optimizer(model, TrainConfig()).param_groups[0]["params"]
    assert [tuple(p.shape) for p in decayed] == [(4, 4)]
    assert decayed[0] is model[0].weight


def test_mixed_precision(compiled_simple_model: nn.Module, mock_dataloader: DataLoader) -> None:
    """bfloat16 on the CPU learns as well."""
    history = fit(compiled_simple_model, lambda: mock_dataloader, TrainConfig(epochs=8, amp=True, learning_rate=5e-3))
    assert history.loss[-1] < 0.9 * history.loss[0]
    assert all(p.dtype == torch.float32 for p in compiled_simple_model.parameters())


def test_clipping_bounds_the_step(mock_dataloader: DataLoader) -> None:
    """Clipped gradients have the wanted norm when the optimizer sees them; the record holds the true norm."""
    model = nn.Linear(16, 4)
    config = TrainConfig(epochs=1, clip=1e-3, explode=math.inf)
    history = fit(model, lambda: list(mock_dataloader)[:1], config)
    norm = math.sqrt(sum(float(p.grad.square().sum()) for p in model.parameters()))
    assert norm == pytest.approx(1e-3, rel=0.01)
    assert history.gradient_norm[0] > 0.01


def test_unknown_schedule() -> None:
    """A schedule that does not exist is an error, not a constant rate."""
    with pytest.raises(ValueError, match="cosine, step, constant"):
        TrainConfig(schedule="linear")  # type: ignore[arg-type]


def test_a_loader_is_read_batch_by_batch(mock_dataloader: DataLoader) -> None:
    """No epoch of a loader is held in memory; batches of a generator, whose number is not known, train just as well."""
    alive: list[weakref.ref[torch.Tensor]] = []
    most = 0

    class Loader:
        def __len__(self) -> int:
            return len(mock_dataloader)

        def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
            nonlocal most
            for x, y in mock_dataloader:
                alive.append(weakref.ref(x))
                most = max(most, sum(r() is not None for r in alive))
                yield x, y

    first, second = nn.Linear(16, 4), nn.Linear(16, 4)
    second.load_state_dict(first.state_dict())
    history = fit(first, Loader, TrainConfig(epochs=2))
    assert most <= 3
    assert fit(second, lambda: (batch for batch in mock_dataloader), TrainConfig(epochs=2)) == history
    assert torch.equal(first.weight, second.weight)


def test_resume_gives_what_an_unbroken_run_gives(temp_dir: Path) -> None:
    """Stopping after three epochs and resuming ends with the very same weights."""
    x, y = torch.randn(64, 64), torch.randint(0, 10, (64,))

    def run(checkpoint: Path | None, stop: int) -> nn.Module:
        torch.manual_seed(0)
        model = ternary.zoo.load("mlp")(width=32)

        def interrupt(epoch: int, history: History) -> None:
            if epoch == stop:
                raise KeyboardInterrupt

        with contextlib.suppress(KeyboardInterrupt):
            fit(model, lambda: [(x, y)], TrainConfig(epochs=6), checkpoint=checkpoint, progress=interrupt)
        return model

    whole = run(None, 0)
    run(temp_dir / "c.pt", 3)
    resumed = run(temp_dir / "c.pt", 0)
    for a, b in zip(whole.state_dict().values(), resumed.state_dict().values(), strict=True):
        assert torch.equal(a, b)
    assert [p.name for p in temp_dir.iterdir()] == ["c.pt"]


@pytest.mark.timeout(300)  # a fresh interpreter that imports torch, on a loaded machine
def test_kill_leaves_a_whole_checkpoint(temp_dir: Path) -> None:
    """A process killed without warning leaves a checkpoint that loads."""
    code = f"""
import torch, ternary
torch.set_num_threads(1)
x, y = torch.randn(32, 64), torch.randint(0, 10, (32,))
model = ternary.zoo.load("mlp")(width=64)
ternary.fit(model, lambda: [(x, y)], ternary.TrainConfig(epochs=100000), checkpoint={str(temp_dir / "c.pt")!r},
            progress=lambda e, h: print(e, flush=True))
"""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for _ in range(3):
            process.stdout.readline()
        time.sleep(0.01)
        os.kill(process.pid, signal.SIGKILL)
    state = torch.load(temp_dir / "c.pt", weights_only=True)
    assert state["epoch"] >= 2


def test_damaged_checkpoint(temp_dir: Path, compiled_simple_model: nn.Module, mock_dataloader: DataLoader) -> None:
    """Half a checkpoint is a typed error."""
    path = temp_dir / "c.pt"
    fit(compiled_simple_model, lambda: mock_dataloader, TrainConfig(epochs=1), checkpoint=path)
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(ModelFileError, match="damaged"):
        fit(compiled_simple_model, lambda: mock_dataloader, TrainConfig(epochs=2), checkpoint=path)


def test_exploding_gradient() -> None:
    """A loss that grows without bound ends with the step and advice."""
    model = nn.Linear(4, 2)
    with pytest.raises(DivergedError, match="gradient norm"):
        fit(model, lambda: [(torch.ones(2, 4), torch.zeros(2, 2))], loss=lambda y, t: (y * 1e12).sum())
    with pytest.raises(DivergedError, match="the loss is nan"):
        fit(model, lambda: [(torch.ones(2, 4), torch.zeros(2, 2))], loss=lambda y, t: y.sum() * math.nan)


def test_vanishing_gradient() -> None:
    """A network whose weights get no gradient is reported instead of trained in vain."""
    batch = (torch.ones(2, 4), torch.zeros(2, 2))
    with pytest.raises(VanishingGradientError, match="20 steps"):
        fit(nn.Linear(4, 2), lambda: [batch], TrainConfig(epochs=30), loss=lambda y, t: (y * 0.0).sum())


@pytest.mark.parametrize("model", [nn.Identity(), nn.Linear(4, 2).requires_grad_(False)])
def test_nothing_to_train(model: nn.Module) -> None:
    """A model without parameters, or with frozen ones only, is refused before the first step."""
    with pytest.raises(ValueError, match="no parameter that can be trained"):
        fit(model, lambda: [(torch.ones(2, 4), torch.zeros(2, dtype=torch.long))])


def test_nan_inputs() -> None:
    """NaN in the data is named as such."""
    batch = (torch.full((2, 4), math.nan), torch.zeros(2, dtype=torch.long))
    with pytest.raises(NonFiniteActivationError, match="epoch 1, step 0"):
        fit(nn.Linear(4, 2), lambda: [batch])


def test_shuffled_batches() -> None:
    """Every sample once per epoch, in a new order, without a batch of one."""
    x = torch.arange(9)
    batches = shuffled(x, x, 4)
    first, second = [torch.cat([a for a, _ in batches()]) for _ in range(2)]
    assert len(first) == 8
    assert not torch.equal(first, second)


def test_the_text_of_pythons_help() -> None:
    """Characters and the next one, always the same; each sample goes on where the one before it stood."""
    split = data.load("python-docs")
    assert split.train_x.dtype == split.train_y.dtype == torch.int64
    assert split.train_x.shape[1:] == (16,)
    assert set(split.train_x.unique().tolist()) <= set(range(97))
    assert len(split.train_x) > 3 * len(split.test_x) > 10_000
    assert torch.equal(split.test_x, data.python_docs().test_x)
    assert torch.equal(split.train_x[1, :-3], split.train_x[0, 3:])
    assert split.train_x[1, -3] == split.train_y[0]


@pytest.mark.parametrize("name", ["digits", "mnist1d"])
def test_data_sets(name: str) -> None:
    """Both data sets are there, split without overlap, always the same."""
    a, b = data.load(name), data.load(name)
    assert a.classes == 10
    assert torch.equal(a.test_x, b.test_x)
    assert len(a.train_x) + len(a.test_x) == {"digits": 1797, "mnist1d": 5000}[name]
    train = {tuple(r.tolist()) for r in a.train_x}
    assert not any(tuple(r.tolist()) in train for r in a.test_x)


def test_data_from_a_file(temp_dir: Path) -> None:
    """Arrays from a file; anything else is a typed error."""
    path = temp_dir / "d.npz"
    np.savez(path, x=np.random.default_rng(0).normal(size=(20, 3)), y=np.arange(20) % 2)
    assert data.load(str(path)).train_x.shape == (16, 3)
    np.savez(path, x=np.full((20, 3), np.nan), y=np.arange(20))
    with pytest.raises(NonFiniteActivationError):
        data.load(str(path))
    np.savez(path, x=np.zeros((20, 3)), y=np.arange(19))
    with pytest.raises(TernaryError, match="wanted N samples"):
        data.load(str(path))
    path.write_bytes(b"nothing")
    with pytest.raises(TernaryError, match=r"no \.npz"):
        data.load(str(path))
    with pytest.raises(TernaryError, match="unknown data"):
        data.load("imagenet")
    with pytest.raises(FileNotFoundError):
        data.load(str(temp_dir / "none.npz"))


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Small networks on a busy machine: several threads would wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.slow
@pytest.mark.usefixtures("one_thread")
def test_a_distilled_network_starts_from_its_teacher(temp_dir: Path) -> None:
    """It begins above where the float network began, with or without 'float' beside it, and has a packed file."""
    whole = data.digits()
    split = replace(whole, train_x=whole.train_x[:400], train_y=whole.train_y[:400])
    source, methods = (EXAMPLES / "digits.tri").read_text(encoding="utf-8"), ("float", "distilled")
    plan = experiment.Plan(source, arguments={"width": 12}, methods=methods, shape=(1, 8, 8))
    plan = replace(plan, config=TrainConfig(epochs=1))
    plain, made = experiment.run(plan, split, temp_dir)
    assert made.history.loss[0] != plain.history.loss[0]
    assert made.history.accuracy[0] > plain.history.accuracy[0] - 0.02
    assert 0 < made.file_bytes < plain.file_bytes / 4
    (alone,) = experiment.run(replace(plan, methods=("distilled",)), split)
    assert alone.history.accuracy == made.history.accuracy


@pytest.mark.usefixtures("one_thread")
def test_a_distilled_network_has_arguments_of_its_own(temp_dir: Path) -> None:
    """A dropout that a float network needs is not the one of its smaller student; other arguments are shared."""
    text = torch.arange(640).reshape(40, 16) % 97
    split = data.Split(text, text[:, 0], text[:8], text[:8, 0])
    source = (EXAMPLES / "python_docs.tri").read_text(encoding="utf-8")
    plan = experiment.Plan(source, arguments={"width": 16, "dropout": 0.5}, methods=("float", "distilled"))
    plan = replace(plan, student_arguments={"dropout": 0.25}, config=TrainConfig(epochs=1))
    results = experiment.run(plan, split, temp_dir)
    models = [ternary.load(r.file) for r in results if r.file]
    found = [[m.p for m in model.modules() if isinstance(m, nn.Dropout)] for model in models]
    assert found == [[0.5, 0.5], [0.25, 0.25]]
    assert {model.head.in_features for model in models} == {16}


def test_experiment_on_digits(temp_dir: Path) -> None:
    """From source to packed file on real data: float and ternary both learn, and the file is what is measured."""
    source = (EXAMPLES / "digits.tri").read_text(encoding="utf-8")
    plan = experiment.Plan(
        source, arguments={"width": 12}, methods=("float", "twn"), shape=(1, 8, 8), config=TrainConfig(epochs=3)
    )
    split = data.digits()
    results = experiment.run(plan, split, temp_dir)
    assert [r.method for r in results] == ["float", "twn"]
    assert all(r.mean > 0.8 and r.spread == 0 for r in results)
    assert results[1].file_bytes < results[0].file_bytes / 3
    again = ternary.load(temp_dir / "digits-twn.safetensors")
    assert accuracy(again, split.test_x.reshape(-1, 1, 8, 8), split.test_y) == results[1].mean
    plot.curves({r.method: r.history for r in results}, temp_dir / "c.png", "digits")
    plot.accuracies({"digits": {r.method: list(r.accuracies) for r in results}}, temp_dir / "a.png")
    assert (temp_dir / "c.png").read_bytes()[:4] == b"\x89PNG"
    with pytest.raises(UnknownQuantizerError):
        experiment.run(experiment.Plan(source, methods=("twm",)), split)


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize(("name", "shape", "points"), [("digits", (1, 8, 8), 1.0), ("mnist1d", (1, 40), 3.0)])
def test_ternary_is_close_to_float(name: str, shape: tuple[int, ...], points: float) -> None:
    """One seed of the accuracy promise; the benchmark runs five."""
    source = (EXAMPLES / f"{name}.tri").read_text(encoding="utf-8")
    plan = experiment.Plan(source, methods=("float", "twn"), shape=shape, config=TrainConfig(epochs=15))
    plain, made = experiment.run(plan, data.load(name))
    assert made.mean >= plain.mean - points / 100


class TestDistillation:
    """A ternary model that also learns from its float form."""

    @staticmethod
    def task() -> tuple[torch.Tensor, torch.Tensor, nn.Module]:
        """A small task and a float network that has learned it."""
        torch.manual_seed(0)
        x = torch.randn(256, 16)
        y = (x @ torch.randn(16, 5)).argmax(1)
        net = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 5))
        fit(net, lambda: [(x, y)], TrainConfig(epochs=60, learning_rate=1e-2))
        return x, y, net

    def test_the_student_learns_from_the_teacher(self) -> None:
        """With targets that say nothing, only the student with a teacher agrees with it."""
        x, _, net = self.task()
        nothing = torch.randint(0, 5, (256,), generator=torch.Generator().manual_seed(1))
        config = TrainConfig(epochs=150, learning_rate=1e-2, distill=0.95)
        wanted = net.eval()(x).argmax(1)
        agreement = {}
        for teacher in (None, net):
            torch.manual_seed(2)
            student = nn.Sequential(ternary.nn.TernaryLinear(16, 32), nn.ReLU(), nn.Linear(32, 5))
            fit(student, lambda: [(x, nothing)], config, teacher=teacher)
            agreement[teacher is not None] = accuracy(student, x, wanted)
        assert agreement[True] > agreement[False] + 0.3, agreement

    def test_the_teacher_stays_as_it_is(self) -> None:
        """Its weights, its mode and its gradients."""
        x, y, net = self.task()
        before = {k: v.clone() for k, v in net.state_dict().items()}
        net.train()
        for parameter in net.parameters():
            parameter.grad = None
        student, _ = ternary.quantize(net, ternary.Recipe(ends="ternary"))
        fit(student, lambda: [(x, y)], TrainConfig(epochs=2), teacher=net)
        assert net.training
        assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
        assert all(p.grad is None for p in net.parameters())

    def test_batches_that_are_mappings(self) -> None:
        """Named inputs with labels train as pairs do, step by step."""

        class Named(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.a, self.b = nn.Linear(4, 3), nn.Linear(4, 3)

            def forward(self, left: torch.Tensor, right: torch.Tensor) -> dict[str, torch.Tensor]:
                return {"logits": self.a(left) + self.b(right)}

        torch.manual_seed(0)
        left, right, y = torch.randn(8, 4), torch.randn(8, 4), torch.tensor([0, 1, 2, 0, 1, 2, 0, 1])
        histories = []
        for batch in ({"left": left, "right": right, "labels": y}, ((left, right), y)):
            torch.manual_seed(1)
            histories.append(fit(Named(), lambda batch=batch: [batch], TrainConfig(epochs=5)).loss)
        assert histories[0] == histories[1]
        with pytest.raises(ValueError, match="'labels'"):
            fit(Named(), lambda: [{"left": left, "right": right}], TrainConfig(epochs=1))

    def test_wrong_values(self) -> None:
        """A teacher with other outputs, and fractions that are none."""
        x, y = torch.randn(8, 4), torch.zeros(8, dtype=torch.int64)
        with pytest.raises(ValueError, match="the teacher returns"):
            fit(nn.Linear(4, 2), lambda: [(x, y)], TrainConfig(epochs=1), teacher=nn.Linear(4, 3))
        for wrong in ({"distill": 1.5}, {"temperature": 0.0}, {"distill": float("nan")}):
            with pytest.raises(ValueError, match="wanted a fraction"):
                TrainConfig(**wrong)


class TestCutMix:
    """Samples with a span of another one, for which the teacher alone knows an answer."""

    @pytest.mark.parametrize("shape", [(16,), (3, 12), (1, 6, 8)])
    def test_a_span_of_one_other_sample(self, shape: tuple[int, ...]) -> None:
        """Every sample keeps some of its own; what is not its own lies in one span, the same in every row."""
        torch.manual_seed(0)
        x = torch.arange(64).reshape(64, *[1] * len(shape)).expand(64, *shape).contiguous()
        made, whole = cut_and_mixed(x, 0.5)
        foreign = made != x
        assert 16 < int(whole.sum()) < 48
        assert not bool(foreign[whole].any())
        assert not bool(foreign.flatten(1).all(1).any())
        for sample, own in zip(made, foreign, strict=True):
            rows = own.reshape(-1, shape[-1])
            assert bool((rows == rows[0]).all())
            assert int((rows[0][1:] != rows[0][:-1]).sum()) <= 2
            assert len(sample[own].unique()) <= 1

    @pytest.mark.parametrize(("fraction", "kept"), [(0.0, 8), (1.0, 0)])
    def test_the_ends(self, fraction: float, kept: int) -> None:
        """None of the samples, and all of them."""
        made, whole = cut_and_mixed(torch.arange(32).reshape(8, 4), fraction)
        assert made.shape == (8, 4)
        assert int(whole.sum()) == kept

    def test_named_inputs_get_the_same_span(self) -> None:
        """A mask stays with its text."""
        x = torch.arange(256).reshape(16, 16)
        made, _ = cut_and_mixed({"text": x, "twice": 2 * x, "kind": "words"}, 1.0)
        assert not torch.equal(made["text"], x)
        assert torch.equal(made["twice"], 2 * made["text"])
        assert made["kind"] == "words"
        first, second = cut_and_mixed((x, x.float()), 1.0)[0]
        assert torch.equal(first, second)

    @pytest.mark.parametrize(
        "x", [torch.zeros(8), torch.zeros(8, 1), (torch.zeros(8, 4), torch.zeros(8, 5)), {"name": "no tensor"}]
    )
    def test_inputs_without_a_span(self, x: object) -> None:
        """Nothing that could be cut, or spans that would not fit each other: an error with the remedy."""
        with pytest.raises(TernaryError, match="cutmix=0"):
            cut_and_mixed(x, 0.5)

    @pytest.mark.parametrize("distill", [0.5, 1.0])
    def test_targets_count_for_whole_samples_only(self, distill: float) -> None:
        """Where all samples are mixed, wrong targets change nothing; where none is, they do."""
        x, net = torch.randn(64, 8), nn.Linear(8, 3)
        ends = []
        for cutmix in (1.0, 0.0):
            for target in (torch.zeros(64, dtype=torch.int64), torch.ones(64, dtype=torch.int64)):
                torch.manual_seed(3)
                student = nn.Linear(8, 3)
                config = TrainConfig(epochs=3, distill=distill, cutmix=cutmix)
                fit(student, lambda target=target: [(x, target)], config, teacher=net)
                ends.append(student.weight)
        assert torch.equal(ends[0], ends[1])
        assert torch.equal(ends[2], ends[3]) == (distill == 1.0)

    def test_a_student_agrees_where_no_sample_was(self) -> None:
        """With few samples, a student that saw mixtures of them answers new ones more like its teacher."""
        torch.manual_seed(0)
        teacher = nn.Sequential(nn.Linear(16, 32), nn.Tanh(), nn.Linear(32, 5))
        x, new = torch.randn(24, 16), torch.randn(2000, 16)
        with torch.no_grad():
            teacher[2].weight *= 8
            y, wanted = teacher(x).argmax(1), teacher(new).argmax(1)
        agreement = []
        for cutmix in (0.0, 0.8):
            torch.manual_seed(1)
            student = nn.Sequential(ternary.nn.TernaryLinear(16, 64), nn.Tanh(), nn.Linear(64, 5))
            config = TrainConfig(epochs=150, learning_rate=1e-2, distill=1.0, temperature=1.0, cutmix=cutmix)
            fit(student, lambda: [(x, y)], config, teacher=teacher)
            agreement.append(accuracy(student, new, wanted))
        assert agreement[1] > agreement[0] + 0.08, agreement

    def test_a_fraction(self) -> None:
        """More than all samples, and none that can be compared."""
        for wrong in (1.5, -0.1, math.nan):
            with pytest.raises(ValueError, match="cutmix"):
                TrainConfig(cutmix=wrong)


@pytest.mark.parametrize("again", [False, True])
def test_running_statistics_of_the_last_weights(again: bool) -> None:
    """Averages over all batches of the last epoch, before it is evaluated; momentum and modes stay."""
    torch.manual_seed(0)
    x, y = torch.randn(64, 8) + 2, torch.arange(64) % 3
    model = nn.Sequential(ternary.nn.TernaryLinear(8, 6), nn.BatchNorm1d(6), nn.Dropout(0.5), nn.Linear(6, 3))
    seen = []

    def evaluate(model: nn.Module) -> float:
        with torch.no_grad():
            seen.append(bool(torch.isclose(model[1].running_mean, model[0](x).mean(0), rtol=1e-4, atol=1e-5).all()))
        return 0.0

    config = TrainConfig(epochs=3, learning_rate=5e-2, reestimate_norms=again)
    fit(model, lambda: ((x[i : i + 16], y[i : i + 16]) for i in range(0, 64, 16)), config, evaluate=evaluate)
    assert seen == [False, False, again]
    assert model[1].momentum == 0.1
    assert all(module.training for module in model.modules())


class TestGradual:
    """Ternary layers that begin with their float weight."""

    @staticmethod
    def losses(gradual: float, layer: nn.Module, steps: int = 8) -> list[float]:
        """The loss of each step at a learning rate that changes nothing."""
        x, y = torch.randn(32, 16, generator=torch.Generator().manual_seed(1)), torch.arange(32) % 4
        config = TrainConfig(epochs=steps, learning_rate=1e-12, gradual=gradual, weight_decay=0.0)
        return fit(layer, lambda: [(x, y)], config).loss

    @pytest.mark.parametrize("quantizer", ["twn", "ttq", "absmean"])
    def test_it_goes_from_float_to_ternary(self, quantizer: str) -> None:
        """The first step computes as the float layer, those after the fraction as the ternary one."""
        torch.manual_seed(0)
        plain = nn.Linear(16, 4)
        layer = ternary.nn.TernaryLinear(16, 4, quantizer=quantizer)
        layer.load_state_dict(plain.state_dict())
        found = self.losses(0.5, layer)
        assert found[0] == pytest.approx(self.losses(0.0, plain)[0], rel=1e-5)
        last = self.losses(0.0, layer)[0]
        assert found[4:] == pytest.approx([last] * 4, rel=1e-5)
        assert len({round(loss, 5) for loss in found[:5]}) == 5

    def test_the_layers_end_ternary(self) -> None:
        """Also while a training that mixes is evaluated, and after one that fails."""
        layer = ternary.nn.TernaryLinear(16, 4)
        seen = []

        def evaluate(model: nn.Module) -> float:
            seen.append(torch.equal(model.ternary_weight(), model.eval().ternary_weight()))
            model.train()
            return 0.0

        x, y = torch.randn(8, 16), torch.zeros(8, dtype=torch.int64)
        fit(layer, lambda: [(x, y)], TrainConfig(epochs=4, gradual=0.9), evaluate=evaluate)
        with pytest.raises(NonFiniteActivationError):
            fit(layer, lambda: [(x, y), (x * torch.inf, y)], TrainConfig(epochs=4, gradual=0.9))
        assert seen == [True] * 4
        assert torch.equal(layer.ternary_weight(), layer.eval().ternary_weight())
        with pytest.raises(ValueError, match="steps left"):
            TrainConfig(gradual=1.0)
