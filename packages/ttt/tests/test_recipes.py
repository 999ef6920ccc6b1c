"""The recipes by the commands that a user gives: tiny models, trained here, gain from test-time training."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import ttt
from ttt._tasks.loader import task_json
from ttt.checkpoint import CheckpointStore
from ttt.errors import InvalidTaskError

torch = pytest.importorskip("torch")

from ttt.backends._pretraining import Pretraining, lessons  # noqa: E402 after the skip
from ttt.backends.vit import VitBackend, VitTraining  # noqa: E402 after the skip

Rule = Callable[[np.ndarray], np.ndarray]
SHAPE = {"side": 4, "patch": 1, "width": 64, "heads": 4, "depth": 2}


def made(name: str, rule: Rule, grids: list[np.ndarray]) -> ttt.Task:
    """A task whose last pair is the test."""
    pairs = tuple(ttt.Pair(ttt.as_grid(g), ttt.as_grid(np.ascontiguousarray(rule(g)))) for g in grids)
    return ttt.Task(name, pairs[:-1], pairs[-1:])


def command(*arguments: object) -> str:
    """Run `ttt`; return what it printed."""
    line = [sys.executable, "-m", "ttt", *map(str, arguments)]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}  # tiny networks on a busy machine
    done = subprocess.run(line, capture_output=True, text=True, timeout=280, check=False, env=env)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def solved(folder: Path, tasks: list[ttt.Task], name: str, *arguments: str) -> int:
    """How many tasks `ttt solve` solves, from challenges without outputs to a submission."""
    challenges, submission = folder / f"{name}.json", folder / f"{name}-submission.json"
    challenges.write_text(json.dumps({t.id: task_json(t.without_solutions()) for t in tasks}))
    command("solve", challenges, "--out", submission, "--steps", "200", "--set", "device=cpu", *arguments)
    return len(ttt.score(submission, tasks).solved)


def painted(*changes: tuple[int, int]) -> Rule:
    """Colours exchanged by a table."""
    table = np.arange(10, dtype=np.uint8)
    for old, new in changes:
        table[old] = new
    return lambda grid: table[grid]


def speckled(rng: np.random.Generator) -> np.ndarray:
    """A 4 x 4 grid with cells of five colours on black."""
    return (rng.integers(1, 6, (4, 4)) * (rng.random((4, 4)) < 0.6)).astype(np.uint8)


@pytest.mark.slow
def test_the_vit_recipe_gains_from_test_time_training(integration_test_dir: Path) -> None:
    """Generated pairs in a folder, `ttt pretrain` stopped and continued, then rules that it was not trained on."""
    rng = np.random.default_rng(0)
    rules = {f"colour{a}{b}": painted((a, b)) for a in range(1, 6) for b in (6, 7)}
    rules |= {f"swap{a}": painted((a, a + 1), (a + 1, a)) for a in range(1, 5)}
    generated = integration_test_dir / "generated"
    generated.mkdir()
    for name, rule in rules.items():
        grids = [speckled(rng) for _ in range(60)]
        pairs = [{"input": g.tolist(), "output": rule(g).tolist()} for g in grids]
        (generated / f"{name}.json").write_text(json.dumps(pairs))
    small = ["--recipe", "vit", "--set", f"shape={json.dumps(SHAPE)}", "--set", "learning_rate=0.002"]
    pretrain = ["pretrain", generated, "--out", integration_test_dir / "net", *small, "--set", "device=cpu"]
    pretrain += ["--steps", "200", "--checkpoint-every", "20", "--set", "average=0.99"]
    command(*pretrain, "--time", "1s")
    assert "goes on at step" in command(*pretrain)
    weights = integration_test_dir / "net" / "weights.safetensors"
    held = [
        made(
            f"held{i}",
            painted((1 + i % 5, 8), (1 + (i + 2) % 5, 9), (1 + (i + 3) % 5, 3)),
            [speckled(rng) for _ in "12345"],
        )
        for i in range(3)
    ]
    solve = [*small, "--set", f"weights={weights}", "--set", "views=8", "--set", "batch=16"]
    before = solved(integration_test_dir, held, "before", *solve, "--set", "steps=1")
    after = solved(integration_test_dir, held, "after", *solve, "--set", "steps=120")
    print(f"vit: {before} of 3 solved after 1 step, {after} after 120")
    assert before <= 1
    assert after >= 2


def two_tone(rng: np.random.Generator) -> np.ndarray:
    """A 3 x 3 grid of black and one other colour."""
    grid = (int(rng.integers(1, 10)) * (rng.random((3, 3)) < 0.5)).astype(np.uint8)
    grid[0, 0], grid[0, 1] = 0, grid.max() or 5
    return grid


def tiny_model(folder: Path, rng: np.random.Generator) -> None:
    """A two-layer Llama with a tokenizer of its own, trained for seconds to copy, erase and fill grids."""
    transformers = pytest.importorskip("transformers", reason='needs the extra "lm"')
    tokenizers = pytest.importorskip("tokenizers")
    from ttt.backends._celltext import IGNORED, PAD, example
    from ttt.backends._model_service import SYMBOL_TEXTS

    words = {text: 39 - 2 * i for i, text in enumerate(SYMBOL_TEXTS)} | {"<unk>": 0}
    raw = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="<unk>"))
    transformers.PreTrainedTokenizerFast(tokenizer_object=raw).save_pretrained(folder)
    config = transformers.LlamaConfig(
        vocab_size=40,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=1024,
        tie_word_embeddings=False,
    )
    rules: list[Rule] = [lambda g: g, np.zeros_like, lambda g: np.full_like(g, g.max())]
    ids = torch.tensor([words[text] for text in SYMBOL_TEXTS])
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = transformers.LlamaForCausalLM(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for step in range(300):
        tasks = [made("t", rules[int(rng.integers(3))], [two_tone(rng) for _ in range(4)]) for _ in range(8)]
        texts, labels = zip(*(example(t, 1024) for t in tasks), strict=True)
        longest = max(map(len, texts))
        shown = ids[torch.tensor([t + [PAD] * (longest - len(t)) for t in texts])]
        learned = torch.tensor([x + [IGNORED] * (longest - len(x)) for x in labels])
        wanted = torch.where(learned == IGNORED, IGNORED, ids[learned.clamp(min=0)])
        logits = model(input_ids=shown).logits[:, :-1]
        for group in optimizer.param_groups:
            group["lr"] = 3e-3 * min(1.0, (step + 1) / 20) * (1 - step / 330)
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), wanted[:, 1:].flatten(), ignore_index=IGNORED)
        torch.autograd.backward(loss)
        optimizer.step()
        optimizer.zero_grad()
    model.save_pretrained(folder)


@pytest.mark.slow
def test_the_lm_recipe_gains_from_test_time_training(integration_test_dir: Path) -> None:
    """From a model's folder and challenges to a submission: a rule that the model was not trained on is learned."""
    pytest.importorskip("peft", reason='needs the extra "lm"')
    rng = np.random.default_rng(0)
    model = integration_test_dir / "model"
    tiny_model(model, rng)
    held = [
        made(f"held{i}", lambda g: np.where(g == 0, g.max(), 0).astype(np.uint8), [two_tone(rng) for _ in "12345"])
        for i in range(2)
    ]
    few = {
        "learning_rate": 5e-3,
        "rank": 8,
        "alpha": 16,
        "batch": 4,
        "micro_batch": 4,
        "views": 16,
        "max_symbols": 1024,
    }

    def with_steps(steps: int) -> int:
        lora = json.dumps(few | {"steps": steps, "prediction_views": 2})
        return solved(
            integration_test_dir,
            held,
            f"after{steps}",
            "--recipe",
            "lm",
            "--set",
            f"model={model}",
            "--set",
            f"lora={lora}",
        )

    before, after = with_steps(1), with_steps(60)
    print(f"lm: {before} of 2 solved after 1 step, {after} after 60")
    assert after > before


def test_pretraining_goes_on_to_the_bit(integration_test_dir: Path) -> None:
    """Three steps, a checkpoint, three more in a new object: the weights of six steps, which a task can start from."""
    rng = np.random.default_rng(1)
    tasks = [made(f"swap-{n}", painted((1, 2), (2, 1)), [speckled(rng) for _ in range(3)]) for n in range(2)]
    tasks.append(made("other", lambda g: g, [speckled(rng) for _ in range(3)]))
    given = lessons(tasks, 4)
    assert [(lesson.name, len(lesson.pairs)) for lesson in given] == [("other", 3), ("swap", 6)]
    with pytest.raises(InvalidTaskError, match="canvas of 3 x 3"):
        lessons(tasks, 3)
    backend = VitBackend(shape=SHAPE, device="cpu", batch=4)
    store = CheckpointStore(integration_test_dir / "checkpoints", kind="vit-pretraining")
    whole = Pretraining(backend, given, 6)
    for step in range(6):
        if step == 3:
            whole.save(store)
        whole.one_step()
    again, other = Pretraining(backend, given, 6), Pretraining(backend, given, 7)
    assert again.resume(store)
    assert not other.resume(store), "of another length"
    while again.step < 6:
        again.one_step()
    files = integration_test_dir / "whole.safetensors", integration_test_dir / "again.safetensors"
    for training, file in zip((whole, again), files, strict=True):
        training.write(file)
    assert files[0].read_bytes() == files[1].read_bytes()
    started = VitTraining(VitBackend(shape=SHAPE, device="cpu", weights=str(files[0])), tasks[0], 0)
    assert torch.equal(started.parameters["head.weight"], whole.averages["head.weight"])
