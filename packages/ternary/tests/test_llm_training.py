"""A small language model the whole way: trained, packed, generating, exported to GGUF and read back."""

from __future__ import annotations

import gc
import runpy
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from ternary import llm

EXAMPLE = Path(__file__).parent.parent / "examples" / "little_stories.py"


@pytest.mark.skipif(not EXAMPLE.exists(), reason="these tests stand outside the source tree")
@pytest.mark.timeout(600)
def test_from_text_to_gguf_and_back(tmp_path, capsys) -> None:
    """The loss falls, the packed model predicts what the trained module does, and the GGUF brings the same text."""
    stories = SimpleNamespace(**runpy.run_path(str(EXAMPLE)))
    told = stories.text(1500)
    words = stories.tokenizer(told, 400)
    ids = torch.tensor(words.encode(told).ids)
    config = llm.ModelConfig(
        words.get_vocab_size(), hidden=256, inner=256, layers=2, heads=8, kv_heads=4, head_size=32, context=48
    )
    decoder = stories.train(ids, config, steps=120, batch=8)
    losses = [float(line.split()[-1]) for line in capsys.readouterr().out.splitlines()]
    assert losses[-1] < 0.5 * losses[0]

    path = tmp_path / "m.ternary"
    llm.save(decoder, path, tokenizer=words.to_str())
    model = llm.load(path)
    line = ids[:40]
    with torch.inference_mode():
        trained = decoder(line[None])[0].numpy()
    packed = model.logits(line.tolist())
    assert (packed.argmax(1) == trained.argmax(1)).mean() > 0.85
    truth = ids[1:41].numpy()

    def loss(logits):
        wide = logits.astype(np.float64)
        return float(
            np.mean(np.log(np.exp(wide - wide.max(1, keepdims=True)).sum(1)) + wide.max(1) - wide[range(40), truth])
        )

    assert loss(packed) == pytest.approx(loss(trained), abs=0.1)

    text = model.generate("Anna has", max_tokens=12).text()
    assert " " in text.strip()
    llm.to_gguf(path, tmp_path / "m.gguf")
    llm.convert(tmp_path / "m.gguf", tmp_path / "back.ternary")
    back = llm.load(tmp_path / "back.ternary")
    assert loss(back.logits(line.tolist())) == pytest.approx(loss(packed), abs=0.1)
    del model, back
    gc.collect()
