"""A small ternary language model, the whole way: text, tokenizer, training, packing, generating, GGUF and back.

    python examples/little_stories.py --folder stories --steps 1500

The text is made here: little stories of who has how many of what. What the model has learned shows in its sums.
"""

from __future__ import annotations

import argparse
import random
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from ternary import llm

NAMES = ("Anna", "Ben", "Clara", "David", "Emma", "Felix", "Greta", "Hugo")
THINGS = ("apples", "books", "coins", "stones", "cups", "shells", "pens", "stamps")
NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")


def story(draw: random.Random) -> str:
    """One story, which ends with a sum or a difference."""
    one, other = draw.sample(NAMES, 2)
    thing = draw.choice(THINGS)
    a, b = draw.randint(1, 6), draw.randint(1, 6)
    if draw.random() < 0.5 or b > a:
        return (
            f"{one} has {NUMBERS[a]} {thing}. {other} gives {one} {NUMBERS[b]} more. "
            f"Now {one} has {NUMBERS[a + b]} {thing}.\n"
        )
    return (
        f"{one} has {NUMBERS[a]} {thing}. {one} gives {other} {NUMBERS[b]} of them. "
        f"Now {one} has {NUMBERS[a - b]} {thing}.\n"
    )


def text(stories: int, seed: int = 0) -> str:
    """So many stories."""
    draw = random.Random(seed)
    return "".join(story(draw) for _ in range(stories))


def tokenizer(sample: str, vocabulary: int = 512) -> Tokenizer:
    """A byte-level tokenizer trained on the text."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=vocabulary, initial_alphabet=alphabet, show_progress=False)
    made.train_from_iterator([sample], trainer)
    return made


def train(ids: torch.Tensor, config: llm.ModelConfig, steps: int, batch: int = 16, seed: int = 0) -> llm.Decoder:
    """Train a decoder with ternary projections and 8-bit activations; print the loss now and then."""
    torch.manual_seed(seed)
    decoder = llm.Decoder(config, ternary=True)
    torch.nn.init.normal_(decoder.embedding.weight, std=0.5)
    torch.nn.init.normal_(decoder.head.weight, std=0.02)
    optimizer = torch.optim.AdamW(decoder.parameters(), lr=3e-3, betas=(0.9, 0.95), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps, pct_start=0.1)
    length = config.context
    for step in range(steps):
        starts = torch.randint(0, len(ids) - length - 1, (batch,))
        lines = torch.stack([ids[s : s + length + 1] for s in starts])
        loss = F.cross_entropy(decoder(lines[:, :-1]).flatten(0, 1), lines[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(decoder.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % max(1, steps // 10) == 0 or step == steps - 1:
            print(f"step {step:5} loss {loss.item():.3f}", flush=True)
    return decoder.eval()


def right_sums(model: llm.Model, stories: int = 100, seed: int = 1) -> float:
    """The share of new stories whose last number the model completes rightly."""
    draw = random.Random(seed)
    right = 0
    for _ in range(stories):
        told = story(draw)
        begin, _, rest = told.rpartition(" has ")
        answer = model.generate(begin + " has", max_tokens=4).text()
        right += answer.split()[:1] == rest.split()[:1]
    return right / stories


def main() -> None:
    """Run every step and print what it brings."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("stories"))
    parser.add_argument("--stories", type=int, default=30000)
    parser.add_argument("--steps", type=int, default=1500)
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    told = text(args.stories)
    words = tokenizer(told)
    ids = torch.tensor(words.encode(told).ids)
    print(f"{len(told) / 1e6:.1f} MB of text, {len(ids):,} tokens")
    config = llm.ModelConfig(
        words.get_vocab_size(), hidden=256, inner=512, layers=4, heads=8, kv_heads=4, head_size=32, context=96
    )
    begin = time.perf_counter()
    decoder = train(ids, config, args.steps)
    print(f"trained in {time.perf_counter() - begin:.0f} s")
    path = args.folder / "stories.ternary"
    llm.save(decoder, path, tokenizer=words.to_str())
    model = llm.load(path)
    print(f"{path}: {path.stat().st_size:,} bytes; float32 takes {4 * sum(p.numel() for p in decoder.parameters()):,}")
    print("greedy:", model.generate("Anna has", max_tokens=40, stop=["\n"]).text())
    print(f"right sums in new stories: {right_sums(model):.0%}")
    llm.to_gguf(path, path.with_suffix(".gguf"))
    llm.convert(path.with_suffix(".gguf"), args.folder / "back.ternary")
    print(f"right sums from the GGUF: {right_sums(llm.load(args.folder / 'back.ternary')):.0%}")


if __name__ == "__main__":
    main()
