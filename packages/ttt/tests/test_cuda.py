"""The branches for CUDA without a GPU: the test answers what torch is asked of the device, the rest is real."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import ttt
from ttt import _doctor
from ttt._runs import devices
from ttt.backends import _model_service as service
from ttt.backends.lm import LmBackend
from ttt.backends.vit import VitBackend
from ttt.errors import InvalidBackendError, InvalidBudgetError

# cuda: ttt.backends._model_service:* by stand-in
# cuda: ttt.backends._model_service:ModelService.* by meta
# cuda: ttt._doctor:_torch by stand-in
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
    shares: list[tuple[float, str]] = []
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", lambda f, d: shares.append((f, str(d))))
    service.limit_gpu_memory(torch.device("cuda", 1), "16GB")
    service.limit_gpu_memory(torch.device("cuda", 1), "900GB")
    service.limit_gpu_memory(torch.device("cuda", 1), None)
    service.limit_gpu_memory(torch.device("cpu"), "16GB")
    assert shares == [(0.2, "cuda:1"), (1.0, "cuda:1")]
    saved = sum(service.weights_in(file) for file in tiny_lm.glob("*.safetensors"))
    assert saved == sum(p.numel() for p in service.load_model(tiny_lm, torch.device("cpu")).parameters())
    LmBackend(str(tiny_lm), "cuda", gpu_memory="1GB").preflight()
    LmBackend(str(tiny_lm), "cuda").preflight()
    LmBackend(str(tiny_lm), "cpu", gpu_memory="1KB").preflight()
    with pytest.raises(InvalidBackendError, match=f"take {2 * saved} bytes of GPU memory.*1000; raise gpu_memory"):
        next(iter(ttt.run(sample_arc_tasks, backend=LmBackend(str(tiny_lm), "cuda:1", gpu_memory="1KB"))))
    for wrong in (LmBackend(str(tiny_lm), "cuda", gpu_memory="much"), VitBackend(device="cuda", gpu_memory="much")):
        with pytest.raises(InvalidBudgetError, match="wanted a size"):
            wrong.preflight()


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
