"""The branches for CUDA without a GPU: the test answers what torch is asked of the device, the rest is real."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

import ttt
from ttt import _doctor
from ttt._backend import preflight
from ttt._budget import gpu_peak_bytes, reset_peaks
from ttt._runs import devices
from ttt.backends import _model_service as service
from ttt.backends._learner import CanvasLearner
from ttt.backends._training_state import pack, unpack, unpack_averages
from ttt.backends.lm import LmBackend
from ttt.backends.vit import VitBackend, VitTraining
from ttt.errors import InvalidBackendError, InvalidBudgetError, MemoryLimitError

# cuda: ttt.backends._model_service:* by stand-in
# cuda: ttt.backends._model_service:ModelService.* by meta
# cuda: ttt.backends._learner:* by stand-in
# cuda: ttt._doctor:_torch by stand-in
# cuda: ttt._budget:gpu_peak_bytes by stand-in
# cuda: ttt._budget:reset_peaks by stand-in
# cuda: ttt._runs.devices:visible_gpus by stand-in
# cuda: ttt.backends.lm:LmBackend.uses_gpu by stand-in
# cuda: ttt.backends.lm:LmBackend.memory_needed by stand-in
# cuda: ttt.backends.vit:VitBackend.uses_gpu by stand-in


@pytest.fixture(scope="module")
def tiny_lm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random two-layer Llama with sixteen symbols, as safetensors."""
    transformers = pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("random-lm")
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    with torch.random.fork_rng():
        model = transformers.LlamaForCausalLM(transformers.LlamaConfig(vocab_size=16, **sizes))
    model.save_pretrained(folder)
    return folder


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Let torch report two GPUs; the calls that free memory are noted."""
    calls: list[str] = []
    answers = {"is_available": True, "device_count": 2, "memory_allocated": 500, "max_memory_allocated": 700}
    for name, answer in answers.items():
        monkeypatch.setattr(torch.cuda, name, lambda *_, answer=answer: answer)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: calls.append("empty_cache"))
    monkeypatch.setattr(
        torch.cuda, "get_device_properties", lambda index: SimpleNamespace(name=f"GPU {index}", total_memory=80e9)
    )
    return calls


def test_a_device_is_chosen_and_checked(two_gpus: list[str]) -> None:
    """`auto` is CUDA where it is, an index must exist, and `doctor` lists the GPUs."""
    assert service.choose_device("auto") == torch.device("cuda")
    assert service.choose_device("cuda:1") == torch.device("cuda", 1)
    with pytest.raises(InvalidBackendError, match="has 2 CUDA devices"):
        service.choose_device("cuda:2")
    assert [finding.name for finding in _doctor._torch()][1:] == ["cuda:0", "cuda:1"]


def test_each_process_of_a_run_gets_one_gpu(
    two_gpus: list[str], tiny_lm: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The environment's GPUs count, else torch's. Backends that may use one take one, and no memory of the host."""
    monkeypatch.delenv(devices.VISIBLE, raising=False)
    assert devices.visible_gpus() == ("0", "1")
    monkeypatch.setenv(devices.VISIBLE, "3, GPU-7")
    assert devices.visible_gpus() == ("3", "GPU-7")
    for backend in (LmBackend(str(tiny_lm), "auto"), LmBackend(str(tiny_lm), "cuda:1"), VitBackend(device="auto")):
        assert devices.uses_gpu(backend)
    on_host = LmBackend(str(tiny_lm), "cpu")
    assert not devices.uses_gpu(on_host)
    assert not devices.uses_gpu(VitBackend(device="cpu"))
    assert LmBackend(str(tiny_lm), "cuda").memory_needed() == 0
    assert on_host.memory_needed() > 100_000


def test_gpu_memory_is_an_account_of_its_own(
    two_gpus: list[str], tiny_lm: Path, monkeypatch: pytest.MonkeyPatch, sample_arc_tasks: list[ttt.Task]
) -> None:
    """A task gets its share of the GPU, and weights that do not fit into it are found before the first process."""
    shares: list[tuple[float, int]] = []
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", lambda f, d: shares.append((f, d)))
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    for name, limit in (("cuda:1", "16GB"), ("cuda", "900GB"), ("cuda:1", None), ("cpu", "16GB")):
        with service.within_gpu_memory(torch.device(name), limit):
            pass
    assert shares == [(0.2, 1), (1.0, 0)], "PyTorch wants the number of the device"
    saved = sum(service.weights_in(file) for file in tiny_lm.glob("*.safetensors"))
    assert saved == sum(p.numel() for p in service.load_model(tiny_lm, torch.device("cpu")).parameters())
    LmBackend(str(tiny_lm), "cuda", gpu_memory="1GB").preflight()
    LmBackend(str(tiny_lm), "cuda").preflight()
    LmBackend(str(tiny_lm), "cpu", gpu_memory="1KB").preflight()
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(total_memory=6 * saved))
    preflight(LmBackend(str(tiny_lm), "cuda"), gpu_tasks=3)
    with pytest.raises(InvalidBackendError, match="fewer tasks per GPU"):
        preflight(LmBackend(str(tiny_lm), "cuda"), gpu_tasks=4)
    with pytest.raises(InvalidBackendError, match=f"take {2 * saved} bytes of GPU memory.*1000; raise gpu_memory"):
        next(iter(ttt.run(sample_arc_tasks, backend=LmBackend(str(tiny_lm), "cuda:1", gpu_memory="1KB"))))
    for wrong in (LmBackend(str(tiny_lm), "cuda", gpu_memory="much"), VitBackend(device="cuda", gpu_memory="much")):
        with pytest.raises(InvalidBudgetError, match="wanted a size"):
            wrong.preflight()


def test_a_tasks_peak_on_a_gpu_is_its_own(monkeypatch: pytest.MonkeyPatch, two_gpus: list[str]) -> None:
    """The most that PyTorch has reserved on one GPU, counted anew for the next task; 0 while no GPU is in use."""
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: False)
    reset_peaks()
    assert gpu_peak_bytes() == 0
    reserved = [500, 700]
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "max_memory_reserved", lambda i: reserved[i])
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda i: reserved.__setitem__(i, i))
    assert gpu_peak_bytes() == 700
    reset_peaks()
    assert gpu_peak_bytes() == 1


def test_a_full_gpu_is_a_typed_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """PyTorch's own error becomes one of ttt's that says what to change."""
    for limit, remedy in (("4GB", "gpu_memory allows 4GB; raise it"), (None, "use a larger GPU")):
        monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", lambda *_: None)
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(total_memory=80e9))
        monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
        text = f"^CUDA out of memory. Tried to allocate 20.00 MiB: the GPU's memory is full: {remedy}"
        with (
            pytest.raises(MemoryLimitError, match=text),
            service.within_gpu_memory(torch.device("cuda"), limit),
        ):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has 79 GiB")


def test_a_recorded_step_changes_nothing_before_it_is_replayed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Warming up and recording leave weights, averages and moments as they were: at the start, and after a resume."""
    task = ttt.Task("t", (ttt.Pair(ttt.as_grid([[1, 0]]), ttt.as_grid([[0, 1]])),), (ttt.Pair(ttt.as_grid([[0]])),))
    backend = VitBackend(shape={"side": 4, "patch": 2, "width": 16, "heads": 2, "depth": 1}, device="cpu", batch=2)

    def trained(steps: int, learner: type[CanvasLearner]) -> VitTraining:
        monkeypatch.setattr("ttt.backends.vit.CanvasLearner", learner)
        training = VitTraining(backend, task, 0)
        for step in range(steps):
            training.one_step(step / 9)
        return training

    class Recorded(CanvasLearner):
        """Records on a CPU, by a recording that does the work several times and then repeats it when asked."""

        def step(self, *args: Any) -> float:
            if self._replay is None:
                self._inputs = tuple(torch.from_numpy(np.ascontiguousarray(x)) for x in args[:3])
                self._replay = self._recorded()
            return super().step(*args)

    def several(work: Callable[[], None], _: torch.device) -> Callable[[], None]:
        for _ in range(3):
            work()
        return work

    monkeypatch.setattr("ttt.backends._learner.recording", several)
    plain, recorded = trained(6, CanvasLearner), trained(6, Recorded)
    assert plain.losses == recorded.losses
    resumed, saved = trained(0, Recorded), trained(3, CanvasLearner)
    unpack(pack(saved.parameters, saved.learner.optimizer), resumed.parameters, resumed.learner.optimizer)
    unpack_averages(pack(saved.parameters, saved.learner.optimizer, saved.averages), resumed.averages)
    resumed.step = 3
    for step in range(3, 6):
        resumed.one_step(step / 9)
    assert resumed.losses == plain.losses[3:]
    assert all(torch.equal(resumed.averages[k], plain.averages[k]) for k in plain.averages)


def saves_memory(model: service.ModelService) -> bool:
    """Whether a model computes activations again instead of keeping them."""
    return any(getattr(module, "gradient_checkpointing", False) for module in model.model.modules())


def test_a_model_on_a_gpu(two_gpus: list[str], tiny_lm: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights are bfloat16, memory is asked of the GPU, training saves memory there, and close frees it."""
    gpu = torch.device("cuda", 1)
    assert service.load_model(tiny_lm, gpu).dtype == torch.bfloat16
    forked: list[object] = []
    monkeypatch.setattr(torch.random, "fork_rng", lambda devices: forked.append(devices) or torch.no_grad())
    with service.seeded(3, gpu):
        assert forked == [[gpu]]
    model = service.ModelService(tiny_lm, "cpu")
    model.device = gpu
    profile = model.memory()
    assert (profile.gpu, profile.gpu_peak) == (500, 700)
    with model.training():
        assert saves_memory(model)
    assert not saves_memory(model)
    model.close()
    assert two_gpus == ["empty_cache"]


def test_a_model_of_shapes_only(tiny_lm: Path) -> None:
    """On torch's meta device, which has no data, everything is on one device and has its shape."""
    with service.ModelService(tiny_lm, "meta") as model:
        ids = model.symbols[:5].unsqueeze(0)
        logits = model.model(input_ids=ids).logits
        assert model.log_probabilities(logits).shape == (1, 5, 16)
        assert (model.device.type, logits.device.type) == ("meta", "meta")


def test_half_precision_is_for_gpus() -> None:
    """On CUDA the network computes in bfloat16; torch says that there is none here."""
    with pytest.warns(UserWarning, match="CUDA is not available"):
        context = service.half_precision(torch.device("cuda"))
    assert context.device == "cuda"
    assert context.fast_dtype == torch.bfloat16
