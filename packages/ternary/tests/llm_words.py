"""Small ternary language models with a tokenizer of words, made within a second: for tests of servers."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers

from ternary import llm

WORDS = ["quick", "brown", "fox", "jumps", "over", "the", "lazy", "dog", "a", "."]


CONTEXT = 1 << 16
ENDLESS = {"max_tokens": CONTEXT - 100, "temperature": 1.5, "seed": 1, "stream": True}
"""A text that no stall of a busy machine outlasts: no token ends it, and it would take many seconds."""


def save_words(file: Path, seed: int = 0, context: int = CONTEXT) -> Path:
    """Write the model file of random weights."""
    tokenizer = Tokenizer(models.WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="."))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    torch.manual_seed(seed)
    config = llm.ModelConfig(
        len(WORDS), hidden=64, inner=128, layers=2, heads=4, kv_heads=2, head_size=16, context=context
    )
    llm.save(llm.Decoder(config, ternary=True).eval(), file, tokenizer=tokenizer.to_str())
    return file


def eventually(condition: Callable[[], object]) -> None:
    """Wait until a condition holds, for 200 seconds at most."""
    end = time.monotonic() + 200
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)
