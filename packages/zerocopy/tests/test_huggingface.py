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
    pytest.mark.timeout(240),
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
