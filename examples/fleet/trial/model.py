"""The fleet's language model: little sums in words, with ternary weights, trained here within seconds.

Version 1 stops early and gets many sums wrong. Version 2 is the same training, continued.
"""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch.nn import functional

from ternary import llm

NUMBERS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"]
WORDS = ["Anna", "has", "gets", "more", "Now", ".", *NUMBERS]
SUMS = [(first, second) for first in range(1, 7) for second in range(1, 7)]
STEPS = {1: 12, 2: 40}
"""After how many steps of training each version is saved."""


def prompt(first: int, second: int) -> str:
    """Return the story of a sum, without its last word."""
    return f"Anna has {NUMBERS[first]} . Anna gets {NUMBERS[second]} more . Now Anna has"


def train(folder: Path, width: int = 256) -> dict[int, Path]:
    """Return the model file of each version; train only what is not in the folder yet."""
    files = {version: folder / f"sums-{version}.ternary" for version in STEPS}
    if all(file.exists() for file in files.values()):
        return files
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = Tokenizer(models.WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="."))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    stories = torch.tensor([tokenizer.encode(f"{prompt(a, b)} {NUMBERS[a + b]} .").ids for a, b in SUMS])
    torch.set_num_threads(1)  # for so small a model more threads wait for each other
    torch.manual_seed(0)
    config = llm.ModelConfig(
        len(WORDS), hidden=width, inner=2 * width, layers=2, heads=4, kv_heads=2, head_size=width // 4, context=1280
    )
    decoder = llm.Decoder(config, ternary=True)
    torch.nn.init.normal_(decoder.embedding.weight, std=0.5)
    torch.nn.init.normal_(decoder.head.weight, std=0.02)
    optimizer = torch.optim.AdamW(decoder.parameters(), lr=2e-3, betas=(0.9, 0.95))
    for step in range(1, max(STEPS.values()) + 1):
        logits = decoder(stories[:, :-1])
        loss = functional.cross_entropy(logits[:, -2:].flatten(0, 1), stories[:, -2:].flatten())
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(decoder.parameters(), 1.0)
        optimizer.step()
        for version, last in STEPS.items():
            if step == last:
                llm.save(decoder.eval(), files[version], tokenizer=tokenizer.to_str())
                decoder.train()
    return files
