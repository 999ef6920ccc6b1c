"""A language model as a frozen base for adapters: the engine's logits, gradients, a cache, and weights that stay."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("transformers", reason="FrozenForCausalLM is a model of transformers")

from ternary import llm
from ternary.errors import ChatTemplateError, ContextLengthError, ModelClosedError

# peft asks transformers for an attribute under its old name.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
SHAPE = {"hidden": 64, "inner": 128, "layers": 2, "heads": 4, "kv_heads": 2, "head_size": 16, "context": 64}
KINDS = {
    "llama": {},
    "bitnet": {"sub_norms": True, "activation": "relu2", "tied": True},
    "biases": {"bias": True},
}


@pytest.fixture(params=KINDS)
def path(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """The model file of a random decoder of 40 tokens."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        llm.save(
            llm.Decoder(llm.ModelConfig(40, **SHAPE, **KINDS[request.param]), ternary=True), tmp_path / "m.ternary"
        )
    return tmp_path / "m.ternary"


def tokens(batch: int = 2, length: int = 20) -> torch.Tensor:
    """Some tokens."""
    return torch.from_numpy(np.random.default_rng(0).integers(0, 40, (batch, length)))


def test_the_logits_are_the_engines(path: Path) -> None:
    """But for the rounding of what the engine keeps in 16 bits; padding on either side changes nothing."""
    model, ids = llm.load(path, threads=1), tokens()
    base = llm.FrozenForCausalLM(model)
    theirs = torch.from_numpy(np.stack([model.logits(row.tolist()) for row in ids]))
    with torch.no_grad():
        found = base(ids).logits
        filling, ones = torch.zeros(2, 4, dtype=torch.long), torch.ones_like(ids)
        left = base(torch.cat([filling, ids], 1), attention_mask=torch.cat([filling, ones], 1)).logits[:, 4:]
        right = base(torch.cat([ids, filling], 1), attention_mask=torch.cat([ones, filling], 1)).logits[:, :-4]
    assert (found - theirs).abs().max() < 0.01 * theirs.abs().max()
    torch.testing.assert_close(left, found)
    torch.testing.assert_close(right, found)


def test_labels_give_the_loss_of_each_next_token(path: Path) -> None:
    """As trainers of transformers ask for it; what is -100 does not count."""
    base, ids = llm.FrozenForCausalLM(llm.load(path, threads=1)), tokens()
    labels = ids.clone()
    labels[:, :7] = -100
    with torch.no_grad():
        found = base(ids, labels=labels)
        logs = found.logits.log_softmax(-1)
    told = [logs[b, at - 1, ids[b, at]] for b in range(2) for at in range(7, 20)]
    torch.testing.assert_close(found.loss, -torch.stack(told).mean())
    assert base(ids).loss is None


def test_a_cache_continues(path: Path) -> None:
    """Parts of a sequence with a cache give the logits of the whole, also after it was cut back."""
    from transformers import DynamicCache

    base, ids, cache = llm.FrozenForCausalLM(llm.load(path, threads=1)), tokens(), DynamicCache()
    with torch.no_grad():
        whole = base(ids).logits
        parts = [base(ids[:, a:b], past_key_values=cache).logits for a, b in ((0, 8), (8, 9), (9, 20))]
        cache.crop(-5)
        again = base(ids[:, 15:], past_key_values=cache).logits
    torch.testing.assert_close(torch.cat(parts, 1), whole)
    torch.testing.assert_close(again, whole[:, 15:])


def test_only_the_kept_tokens_are_known(path: Path) -> None:
    """Their logits stay the same; the head's rows are computed in parts otherwise. A second choice is refused."""
    model, kept = llm.load(path, threads=1), [7, 3, 11]
    base, whole = llm.FrozenForCausalLM(model), llm.FrozenForCausalLM(model)
    base.keep_tokens(kept)
    with torch.no_grad():
        found = base(torch.tensor([[0, 1, 2]])).logits
        torch.testing.assert_close(found, whole(torch.tensor([kept])).logits[..., kept])
    assert base.config.vocab_size == 3
    with pytest.raises(ValueError, match="chosen before"):
        base.keep_tokens([1])


def test_gradients_are_those_of_the_float_decoder(path: Path) -> None:
    """They reach the hidden states as if nothing was rounded: one projection, and the head, against float weights."""
    model = llm.load(path, threads=1)
    base, decoder = llm.FrozenForCausalLM(model), llm.Decoder.from_file(model.file)
    for ours, theirs in ((base.layers[0].q, decoder.layers[0].q), (base.head, decoder.head)):
        x = torch.randn(3, 64, generator=torch.Generator().manual_seed(1))
        gradients = []
        for module in (ours, theirs):
            given = x.clone().requires_grad_()
            (module(given) * torch.arange(module(x).shape[1])).sum().backward()
            gradients.append(given.grad)
        torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-4)


def test_an_adapter_learns_and_the_weights_stay(path: Path) -> None:
    """The loss falls; of the base not a bit changes, and nothing of it is trained."""
    peft = pytest.importorskip("peft")
    model = llm.load(path, threads=1)
    before = {name: array.tobytes() for name, array in model.file.tensors.items()}
    base = llm.FrozenForCausalLM(model)
    assert not any(parameter.requires_grad for parameter in base.parameters())
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        adapted = peft.get_peft_model(base, peft.LoraConfig(r=4, target_modules="all-linear"))
    trained = [parameter for parameter in adapted.parameters() if parameter.requires_grad]
    assert len(trained) == 2 * 7 * 2
    optimizer, ids, losses = torch.optim.AdamW(trained, lr=1e-2), tokens(), []
    for _ in range(12):
        logits = adapted(input_ids=ids).logits[:, :-1]
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]
    assert {name: array.tobytes() for name, array in model.file.tensors.items()} == before


def test_the_weights_lie_where_they_are_mapped(path: Path) -> None:
    """Every weight is the mapped array itself, which the tensors keep after the model is closed."""
    with llm.load(path, threads=1) as model:
        addresses = {array.ctypes.data for array in model.file.tensors.values()}
        base = llm.FrozenForCausalLM(model)
    own = {name: tensor.data_ptr() for name, tensor in base.state_dict().items()}
    assert {name for name, address in own.items() if address not in addresses} == set()
    with torch.no_grad():
        assert bool(base(tokens()).logits.isfinite().all())
    with pytest.raises(ModelClosedError, match="open it again"):
        llm.FrozenForCausalLM(model)


def test_what_is_asked_wrong_is_named(path: Path) -> None:
    """A sequence beyond the context, and a text for a model without a tokenizer."""
    base = llm.FrozenForCausalLM(llm.load(path, threads=1))
    with pytest.raises(ContextLengthError, match="65 tokens for a context of 64"):
        base(torch.zeros(1, 65, dtype=torch.long))
    with pytest.raises(ChatTemplateError, match="no tokenizer"):
        base.encode("text")


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's list of mappings")
def test_processes_share_a_published_base(tmp_path: Path) -> None:
    """Another process computes over the segment that was published, and writes no page of it."""
    zerocopy = pytest.importorskip("zerocopy")
    config = llm.ModelConfig(64, hidden=64, inner=128, layers=2, heads=4, kv_heads=2, head_size=16, context=64)
    llm.save(llm.Decoder(config, ternary=True), tmp_path / "m.ternary")
    ref = llm.publish(tmp_path / "m.ternary")
    code = (
        "import sys, torch, zerocopy; from ternary import llm; ref = zerocopy.ModelRef.from_json(sys.argv[1]); "
        "base = llm.FrozenForCausalLM(llm.load(ref, threads=1)); base(torch.tensor([[1, 2, 3]])); "
        "import os; (view,) = zerocopy.report(pids=[os.getpid()]).views; print(view.segment, view.private)"
    )
    done = subprocess.run([sys.executable, "-c", code, ref.to_json()], capture_output=True, text=True, check=False)
    zerocopy.unpublish(ref)
    assert done.stdout.split() == [Path(ref.path).name, "0"], done.stderr
