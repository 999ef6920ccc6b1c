"""Real transformers models, built from tiny configurations: GPT-2 with tied weights, Llama, and PEFT adapters."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import zerocopy
from zerocopy import ModelRef

pytestmark = [
    pytest.mark.timeout(300),
    # transformers and peft warn about their own insides
    pytest.mark.filterwarnings("ignore"),
]
Publish = Callable[..., ModelRef]


def gpt2() -> Any:
    """A GPT-2 of 100 thousand weights, with its head tied to its embedding."""
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(
        vocab_size=200, n_positions=64, n_embd=32, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=0, pad_token_id=0
    )
    return transformers.GPT2LMHeadModel(config).eval()


def llama() -> Any:
    """A Llama with grouped key-value heads and a rotary buffer that no state_dict has."""
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        vocab_size=200, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64, bos_token_id=0, eos_token_id=0, pad_token_id=0,
    )  # fmt: skip
    return transformers.LlamaForCausalLM(config).eval()


@pytest.mark.parametrize("make", [gpt2, llama])
def test_same_model(make: Any, publish: Publish, tmp_path: Path) -> None:
    """Logits, generation, state_dict and saved size are those of the original."""
    torch.manual_seed(0)
    model = make()
    loaded = publish(model).load(cached=False)
    tokens = torch.randint(1, 200, (2, 9))
    with torch.no_grad():
        assert torch.equal(loaded(tokens).logits, model(tokens).logits)
        generated = [m.generate(tokens, max_new_tokens=5, do_sample=False) for m in (loaded, model)]
    assert torch.equal(*generated)
    ours, theirs = loaded.state_dict(), model.state_dict()
    assert list(ours) == list(theirs)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    sizes = []
    for index, each in enumerate((model, loaded)):
        each.save_pretrained(tmp_path / str(index))
        sizes.append(sum(path.stat().st_size for path in (tmp_path / str(index)).glob("*.safetensors")))
    assert sizes[0] == sizes[1]
    assert zerocopy.written(loaded) == ()


def test_gpt2_stays_tied(publish: Publish) -> None:
    """Head and embedding are one Parameter."""
    loaded = publish(gpt2()).load(cached=False)
    assert loaded.lm_head.weight is loaded.transformer.wte.weight


@pytest.mark.parametrize("make", [gpt2, llama])
def test_from_its_own_checkpoint(make: Any, publish: Publish, tmp_path: Path) -> None:
    """What save_pretrained writes is published without loading it first."""
    model = make()
    model.save_pretrained(tmp_path)
    ref = zerocopy.publish_file(tmp_path / "model.safetensors", make)
    loaded = ref.load(cached=False)
    tokens = torch.randint(1, 200, (1, 9))
    with torch.no_grad():
        assert torch.equal(loaded(tokens).logits, model(tokens).logits)
    zerocopy.unpublish(ref)


def test_peft_adapter_over_a_shared_base(publish: Publish) -> None:
    """A PEFT model stores its adapter alone beside the published base, and trains over mapped weights."""
    peft = pytest.importorskip("peft")
    base = publish(llama())
    config = peft.LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")
    adapted = peft.get_peft_model(base.load(cached=False), config)
    tokens = torch.randint(1, 200, (1, 9))
    adapted(tokens, labels=tokens).loss.backward()
    adapters = [p for name, p in adapted.named_parameters() if "lora" in name]
    assert all(p.grad is not None for p in adapters)
    torch.optim.SGD(adapters, lr=0.1).step()
    delta = publish(adapted, base=base)
    stored = sum(info.stored_nbytes for info in zerocopy.report().segments if delta.path.endswith(info.file))
    assert stored <= sum(p.nbytes + 64 for p in adapters)
    loaded = delta.load(cached=False)
    with torch.no_grad():
        assert torch.equal(loaded.eval()(tokens).logits, adapted.eval()(tokens).logits)


def mixtral() -> Any:
    """A mixture of experts, whose checkpoint names and layout its library converts."""
    transformers = pytest.importorskip("transformers")
    config = transformers.MixtralConfig(
        vocab_size=200, hidden_size=256, intermediate_size=512, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, num_local_experts=4, bos_token_id=0, eos_token_id=0, pad_token_id=0,
    )  # fmt: skip
    return transformers.MixtralForCausalLM(config).eval()


def on_meta(make: Any) -> Any:
    """Build without memory."""
    with torch.device("meta"):
        return make()


@pytest.mark.parametrize("make", [llama, mixtral])
@pytest.mark.parametrize("form", ["file", "folder", "index", "base", "nested", "module", "legacy", "meta", "hub"])
def test_forms_of_checkpoints(make: Any, form: str, tmp_path: Path) -> None:
    """Each form of a checkpoint, of a dense model and of a mixture of experts, gives the saved model's logits."""
    torch.manual_seed(0)
    model = make()
    tokens = torch.randint(1, 200, (1, 9))
    target, build = tmp_path / "saved", make
    model.save_pretrained(target, max_shard_size="1MB" if form == "index" else "1GB")
    if form == "file":
        target = target / "model.safetensors"
    elif form == "index" and make is mixtral:
        target = target / "model.safetensors.index.json"
        assert target.exists()
    elif form == "base":
        build = lambda: type(model.model)(model.config).eval()  # noqa: E731  # one of the table's
    elif form in ("nested", "module", "legacy"):
        state = model.state_dict()
        if form == "module":
            state = {f"module.{name}": tensor for name, tensor in state.items()}
        target = tmp_path / "m.pt"
        torch.save(
            {"model": state} if form == "nested" else state, target, _use_new_zipfile_serialization=form != "legacy"
        )
    elif form == "meta":
        build = lambda: on_meta(make)  # noqa: E731  # one of the table's
    if form == "hub":
        ref = zerocopy.from_pretrained(target, "AutoModelForCausalLM")
    else:
        ref = zerocopy.publish_file(target, build)
    loaded = ref.load(cached=False)
    with torch.no_grad():
        if form == "base":
            assert torch.equal(loaded(tokens).last_hidden_state, model.model(tokens).last_hidden_state)
        else:
            assert torch.equal(loaded(tokens).logits, model(tokens).logits)
    del loaded
    zerocopy.unpublish(ref)


def test_a_hole_in_a_pretrained_checkpoint(tmp_path: Path) -> None:
    """Weights that are missing are named, instead of filled at random."""
    model = llama()
    state = {name: value for name, value in model.state_dict().items() if "layers.1.mlp" not in name}
    model.save_pretrained(tmp_path, state_dict=state)
    for publish in (
        lambda: zerocopy.publish_file(tmp_path, llama),
        lambda: zerocopy.from_pretrained(tmp_path, "AutoModel"),
    ):
        with pytest.raises(zerocopy.errors.CheckpointMismatchError, match=r"layers\.1\.mlp.*missing"):
            publish()


@pytest.mark.parametrize(
    "kind", ["moe", pytest.param("bf16", marks=pytest.mark.slow), pytest.param("build", marks=pytest.mark.slow)]
)
def test_no_heap_for_pretrained_models(kind: str, tmp_path: Path, fresh_python: Any) -> None:
    """Converting layouts or dtypes raises the process's own memory by less than 32 MiB, whatever the model's size."""
    code = """
import sys, threading, torch, transformers, zerocopy, warnings
warnings.simplefilter("ignore")
transformers.utils.logging.disable_progress_bar()
def anonymous():
    return int(next(l for l in open("/proc/self/status") if l.startswith("RssAnon")).split()[1]) // 1024
kind, folder = sys.argv[1:]
config = transformers.MixtralConfig(vocab_size=1000, hidden_size=512, intermediate_size=1024, num_hidden_layers=2,
    num_attention_heads=8, num_key_value_heads=4, num_local_experts=8)
model = transformers.MixtralForCausalLM(config).eval()
model.save_pretrained(folder)
size = sum(p.nbytes for p in model.parameters()) >> 20
del model
before, peak, done = anonymous(), 0, threading.Event()
def watch():
    global peak
    while not done.wait(0.002):
        peak = max(peak, anonymous())
thread = threading.Thread(target=watch)
thread.start()
if kind == "moe":
    ref = zerocopy.from_pretrained(folder, "AutoModelForCausalLM")
elif kind == "bf16":
    ref = zerocopy.from_pretrained(folder, "AutoModelForCausalLM", dtype=torch.bfloat16)
else:
    ref = zerocopy.publish_file(folder, lambda: transformers.MixtralForCausalLM(config).eval().to(torch.bfloat16))
done.set()
thread.join()
print(size, max(peak, anonymous()) - before, ref.nbytes >> 20)
"""
    size, heap, published = map(int, fresh_python(code, kind, str(tmp_path)).stdout.split()[-3:])
    assert size > 90
    assert heap < 32
    assert published == (size if kind == "moe" else size // 2)
