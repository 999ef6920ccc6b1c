"""The lm backend on a real, tiny, randomly initialised language model built here; nothing is downloaded."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import itertools
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ttt
from ttt._budget import Budget, Clock
from ttt._tasks.augment import leave_one_out
from ttt.backends._celltext import (
    GRID_END,
    IGNORED,
    OUTPUT,
    SYMBOLS,
    Grammar,
    example,
    grid_symbols,
    prompt,
    shorten,
    symbols_grid,
)
from ttt.checkpoint import CheckpointStore
from ttt.errors import InvalidBackendError
from ttt.values import same

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers", reason='needs the extra "lm"')
pytest.importorskip("peft", reason='needs the extra "lm"')

from ttt.backends._adapter import LoraSettings, TTTAdapter  # noqa: E402 after the skips
from ttt.backends._decoding import decode, greedy, log_probability  # noqa: E402 after the skips
from ttt.backends._model_service import SYMBOL_TEXTS, ModelService  # noqa: E402 after the skips
from ttt.backends.lm import LmBackend  # noqa: E402 after the skips

# peft asks transformers for an attribute under its old name.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")


@pytest.fixture(scope="module")
def tiny_lm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A two-layer Llama with sixteen symbols, random, then trained for seconds on recolourings; as safetensors."""
    folder = tmp_path_factory.mktemp("tiny-lm")
    config = transformers.LlamaConfig(
        vocab_size=SYMBOLS,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=4096,
        bos_token_id=15,
        eos_token_id=13,
        pad_token_id=14,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = transformers.LlamaForCausalLM(config)
    rng = np.random.default_rng(0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(120):
        colours = rng.permutation(10).astype(np.uint8)
        side = int(rng.integers(1, 4))
        grids = [rng.integers(0, 10, (side, side)).astype(np.uint8) for _ in range(4)]
        pairs = tuple(ttt.Pair(ttt.as_grid(g), ttt.as_grid(colours[g])) for g in grids)
        text, labels = (torch.tensor([x]) for x in example(ttt.Task("t", pairs[:3], pairs[3:]), 4096))
        logits = model(input_ids=text).logits[:, :-1]
        torch.nn.functional.cross_entropy(logits[0], labels[0, 1:], ignore_index=IGNORED).backward()
        optimizer.step()
        optimizer.zero_grad()
    model.save_pretrained(folder)
    return folder


def small_task(task_id: str = "small", tests: int = 1) -> ttt.Task:
    """Recolour 1 to 2 on 2 x 2 grids: a rule that even a tiny model learns."""
    rng = np.random.default_rng(3)
    grids = [rng.integers(0, 2, (2, 2)).astype(np.uint8) for _ in range(4 + tests)]
    pairs = tuple(ttt.Pair(ttt.as_grid(g), ttt.as_grid(g * 2)) for g in grids)
    return ttt.Task(task_id, pairs[:4], pairs[4:])


def digest(model: Any) -> str:
    """SHA-256 of every parameter's and buffer's bytes, by name."""
    h = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        h.update(name.encode() + tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return h.hexdigest()


SETTINGS = LoraSettings(steps=6, batch=2, prediction_views=2, checkpoint_every=2, rank=4)


def free_clock(seed: int = 0, steps: int | None = None) -> Clock:
    """A clock without a time limit."""
    return Clock(Budget(seconds=None, steps=steps), seed)


class TestCellText:
    """Tasks as symbols."""

    def test_grids_survive(self) -> None:
        """Writing and reading a grid are inverse."""
        grid = ttt.as_grid([[1, 2, 3], [4, 5, 6]])
        assert same(symbols_grid(grid_symbols(grid)), grid)

    def test_outputs_are_learned_and_inputs_are_not(self) -> None:
        """Labels are exactly the symbols of every output, each closed by GRID_END."""
        task = next(leave_one_out(small_task()))
        text, labels = example(task, 4096)
        learned = [x for x in labels if x != IGNORED]
        outputs = [p.output for p in (*task.train, *task.test)]
        assert learned == list(itertools.chain.from_iterable(grid_symbols(o) for o in outputs if o is not None))
        assert all(t == x for t, x in zip(text, labels, strict=True) if x != IGNORED)
        assert text.count(OUTPUT) == len(outputs)

    def test_long_tasks_lose_their_first_pairs(self) -> None:
        """What does not fit is left out from the front, never the query."""
        task = small_task()
        whole = prompt(task.train, task.test[0].input)
        short = shorten(task.train, task.test[0].input, len(whole) - 1)
        assert len(short) < len(whole)
        assert short[-8:] == whole[-8:]
        assert len(example(next(leave_one_out(task)), 40)[0]) <= 40
        with pytest.raises(ValueError, match="needs the output"):
            example(task.without_solutions(), 100)

    def test_the_grammar_writes_only_grids(self) -> None:
        """Random walks through allowed symbols always end in a valid grid."""
        rng = np.random.default_rng(0)
        for _ in range(50):
            state, written = Grammar(), []
            while True:
                s = int(rng.choice(np.flatnonzero(state.allowed())))
                written.append(s)
                if s == GRID_END:
                    break
                state = state.after(s)
            assert max(symbols_grid(written).shape) <= 30


class TestModelService:
    """Loading, symbols, memory, and what is refused."""

    def test_loads_and_lets_go(self, tiny_lm: Path) -> None:
        """The model is in inference mode, frozen, measured; after the block it is gone; random state is untouched."""
        before = torch.random.get_rng_state()
        with ModelService(tiny_lm) as service:
            assert not service.model.training
            assert not any(p.requires_grad for p in service.model.parameters())
            memory = service.memory()
            assert memory.weights == sum(p.numel() * p.element_size() for p in service.model.parameters())
            assert memory.resident > memory.weights
            with service.training():
                assert service.model.training
            assert not service.model.training
        assert service.model is None
        assert torch.equal(before, torch.random.get_rng_state())

    def test_refuses_what_is_no_model(self, integration_test_dir: Path, tiny_lm: Path) -> None:
        """No folder, no safetensors, and a CUDA device that is not there are typed errors."""
        with pytest.raises(InvalidBackendError, match=r"no config\.json"):
            ModelService(integration_test_dir)
        (integration_test_dir / "config.json").write_text((tiny_lm / "config.json").read_text())
        torch.save({}, integration_test_dir / "pytorch_model.bin")
        with pytest.raises(InvalidBackendError, match=r"no \.safetensors file"):
            ModelService(integration_test_dir)
        if not torch.cuda.is_available():
            with pytest.raises(InvalidBackendError, match="no CUDA device"):
                ModelService(tiny_lm, "cuda")
        with pytest.raises(InvalidBackendError, match="lm needs model"):
            LmBackend()
        with pytest.raises(InvalidBackendError, match="lora"):
            LmBackend(str(tiny_lm), lora={"ranks": 3})

    def test_a_tokenizer_gives_the_symbols(self, tiny_lm: Path, integration_test_dir: Path) -> None:
        """A model with a larger vocabulary is used through the sixteen tokens of its own tokenizer."""
        tokenizers = pytest.importorskip("tokenizers")
        words = {t: i + 5 for i, t in enumerate([*"0123456789", "\n", "I", "O", ";", "_", ":"])} | {"<unk>": 0}
        raw = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="<unk>"))
        transformers.PreTrainedTokenizerFast(tokenizer_object=raw).save_pretrained(integration_test_dir)
        config = transformers.AutoConfig.from_pretrained(tiny_lm)
        config.vocab_size = 40
        transformers.LlamaForCausalLM(config).save_pretrained(integration_test_dir)
        with ModelService(integration_test_dir) as service:
            assert service.tokens.tolist() == list(range(5, 21))
            with TTTAdapter(service, SETTINGS).adapted(small_task(), free_clock()) as adaptation:
                assert adaptation.losses[-1] < adaptation.losses[0]


class TestDecoding:
    """Depth-first search against brute force."""

    def test_finds_exactly_what_passes_the_threshold(self, tiny_lm: Path) -> None:
        """Every decoded probability is the one that a plain forward pass gives, and 1 x 1 grids above it all appear."""
        with ModelService(tiny_lm) as service:
            text = prompt(small_task().train[:1], ttt.as_grid([[1]]))
            threshold = 2e-4
            found = decode(service, service.model, text, threshold=threshold, limit=10**6, stop=lambda: False)
            assert [d.log_probability for d in found] == sorted((d.log_probability for d in found), reverse=True)
            assert len(found) == len({d.symbols for d in found})
            for d in found[:20]:
                plain = log_probability(service, service.model, text, list(d.symbols))
                assert plain == pytest.approx(d.log_probability, abs=1e-3)
                assert d.log_probability >= math.log(threshold) - 1e-3
            for colour in range(10):
                symbols = [colour, 10, GRID_END]
                passes = log_probability(service, service.model, text, symbols) >= math.log(threshold) + 1e-3
                assert (not passes) or tuple(symbols) in {d.symbols for d in found}

    def test_the_greedy_grid(self, tiny_lm: Path) -> None:
        """Where nothing passes there is still the greedy grid, with its true probability; not when told to stop."""
        with ModelService(tiny_lm) as service:
            text = prompt(small_task().train[:1], ttt.as_grid([[1]]))
            assert decode(service, service.model, text, threshold=1.0, limit=10, stop=lambda: False) == []
            found = greedy(service, service.model, text, stop=lambda: False)
            assert found is not None
            symbols_grid(found.symbols)
            plain = log_probability(service, service.model, text, list(found.symbols))
            assert plain == pytest.approx(found.log_probability, abs=1e-2)
            assert greedy(service, service.model, text, stop=lambda: True) is None


class TestAdapter:
    """Adapt, predict, take off."""

    def test_ten_tasks_leave_the_base_as_it_was(self, tiny_lm: Path) -> None:
        """After each of ten adaptations the base weights are the same to the bit, no module is left; memory is flat."""
        with ModelService(tiny_lm) as service:
            before, modules = digest(service.model), len(list(service.model.modules()))
            resident = []
            for i in range(10):
                task = small_task(f"t{i}")
                with TTTAdapter(service, SETTINGS).adapted(task, free_clock(i)) as adaptation:
                    answers = list(adaptation.predict(free_clock(i)))
                    assert adaptation.steps_done == 6
                assert len(answers[-1]) == 1
                assert digest(service.model) == before
                assert len(list(service.model.modules())) == modules
                resident.append(service.memory().resident)
            assert max(resident[1:]) - resident[1] < 8e6

    def test_training_teaches(self, tiny_lm: Path) -> None:
        """Training takes the loss on the held-out pairs far down, and what is decoded has a true probability."""
        with ModelService(tiny_lm) as service:
            settings = LoraSettings(steps=150, batch=4, micro_batch=4, views=1, prediction_views=1, learning_rate=4e-3)
            with TTTAdapter(service, settings).adapted(small_task(), free_clock()) as adaptation:
                assert np.mean(adaptation.losses[-5:]) < 0.7 * np.mean(adaptation.losses[:2])
                ((candidates,),) = list(adaptation.predict(free_clock()))
                plain = log_probability(
                    service,
                    adaptation.model,
                    prompt(small_task().train, small_task().test[0].input),
                    grid_symbols(candidates[0].grid),
                )
                assert candidates[0].confidence == pytest.approx(math.exp(plain), rel=1e-3)

    def test_training_gains_on_what_was_held_out(self, tiny_lm: Path) -> None:
        """With rsLoRA and a cosine schedule: the true output of the test, never trained on, gets likelier."""
        task = small_task()
        truth = task.test[0].output
        assert truth is not None
        asked = (prompt(task.train, task.test[0].input), grid_symbols(truth))
        with ModelService(tiny_lm) as service:
            before = log_probability(service, service.model, *asked)
            settings = LoraSettings(steps=60, batch=2, micro_batch=2, schedule="cosine", rslora=True, rank=8, alpha=8)
            with TTTAdapter(service, settings).adapted(task.without_solutions(), free_clock()) as adaptation:
                after = log_probability(service, adaptation.model, *asked)
            assert log_probability(service, service.model, *asked) == before, "the base is as it was"
        print(f"log probability of the held-out output: {before:.2f} before, {after:.2f} after")
        assert after > before + 0.5

    def test_the_schedule_falls(self) -> None:
        """Ten warm-up steps, then constant, or down to a tenth; another word is refused."""
        constant, cosine = LoraSettings(steps=100), LoraSettings(steps=100, schedule="cosine")
        assert [round(constant.rate(i) / 1e-3, 3) for i in (0, 9, 50, 99)] == [0.1, 1.0, 1.0, 1.0]
        assert cosine.rate(99) == pytest.approx(1e-4)
        assert cosine.rate(30) > cosine.rate(60) > cosine.rate(98)
        with pytest.raises(InvalidBackendError, match="wanted one of constant, cosine"):
            LmBackend(model="x", lora={"schedule": "linear"})

    def test_micro_batches_do_not_change_the_gradient(self, tiny_lm: Path) -> None:
        """A batch in one piece and in pieces trains alike, but for rounding."""
        losses = []
        with ModelService(tiny_lm) as service:
            for micro in (1, 4):
                settings = LoraSettings(steps=4, batch=4, micro_batch=micro, rank=4)
                with TTTAdapter(service, settings).adapted(small_task(), free_clock()) as adaptation:
                    losses.append(adaptation.losses)
        assert losses[0] == pytest.approx(losses[1], rel=1e-3)

    def test_a_resumed_training_is_the_uninterrupted_one(self, tiny_lm: Path, integration_test_dir: Path) -> None:
        """Stopped after four of six steps and resumed from the checkpoint: every adapter weight equal to the bit."""

        def weights(store: CheckpointStore | None, steps: int | None) -> dict[str, Any]:
            with (
                ModelService(tiny_lm) as service,
                TTTAdapter(service, SETTINGS).adapted(small_task(), free_clock(steps=steps), store) as adaptation,
            ):
                named = adaptation.model.named_parameters()
                return {k: p.detach().clone() for k, p in named if "lora" in k} | {"losses": adaptation.losses}

        store = CheckpointStore(integration_test_dir / "a", kind="lm")
        assert len(weights(store, 4)["losses"]) == 4
        resumed, whole = weights(store, None), weights(None, None)
        assert resumed.pop("losses") == whole.pop("losses")
        assert all(torch.equal(resumed[k], whole[k]) for k in whole)
        assert len(whole) == 28

    def test_as_a_backend(self, tiny_lm: Path, integration_test_dir: Path) -> None:
        """Solve answers every test input and leaves a checkpoint of its adapter."""
        backend = LmBackend(str(tiny_lm), device="cpu", lora={"steps": 4, "checkpoint_every": 2, "rank": 4})
        last = list(backend.solve(small_task("two", tests=2), free_clock(), integration_test_dir))[-1]
        assert len(last.answers) == 2
        assert all(options for options in last.answers)
        assert CheckpointStore(integration_test_dir / "adapter", kind="lm").load().about["step"] == 4

    def test_a_subclass_with_its_own_way_gets_every_task(self) -> None:
        """What stays loaded is this class's solving, which a subclass may have replaced."""

        class Own(LmBackend):
            def solve(self, task: ttt.Task, clock: Any, workdir: Path | None) -> Any:
                return iter(())

        assert LmBackend(model="x").stays_loaded()
        assert not Own(model="x").stays_loaded()

    def test_one_loaded_model_answers_each_task_as_if_alone(self, tiny_lm: Path) -> None:
        """The second task on a loaded model, with adapted tokens' vectors: to the bit as on a model of its own."""
        lora = {"steps": 4, "rank": 4, "prediction_views": 1, "embeddings": True}
        backend, second = LmBackend(str(tiny_lm), device="cpu", lora=lora), small_task("second", tests=2)
        with backend.loaded() as loaded:
            before = digest(loaded.service.model)
            assert list(loaded.solve(small_task("first"), free_clock(1), None))
            (together,) = loaded.solve(second, free_clock(2), None)
            assert digest(loaded.service.model) == before
        (alone,) = backend.solve(second, free_clock(2), None)
        for ours, theirs in zip(together.answers, alone.answers, strict=True):
            assert [c.confidence for c in ours] == [c.confidence for c in theirs]
            assert all(same(c.grid, d.grid) for c, d in zip(ours, theirs, strict=True))

    @pytest.mark.slow
    @pytest.mark.timeout(600)
    def test_a_service_saves_the_loading(self, tiny_lm: Path) -> None:
        """Three tasks with and without the service: the same submission; the CPU seconds saved per task are printed."""
        tasks = [small_task(f"t{i}", tests=1 + i % 2) for i in range(3)]
        texts, cpu = [], []
        for service in (True, False):
            lora = {"steps": 3, "prediction_views": 1, "rank": 4}
            backend = LmBackend(str(tiny_lm), device="cpu", lora=lora, service=service)
            run, begun = ttt.run(tasks, backend=backend, budget="3 steps"), time.monotonic()
            for _ in run:
                pass
            assert [r.error for r in run.results.values()] == [None] * 3
            texts.append(run.submission())
            cpu.append([run.results[t.id].cpu_seconds for t in tasks])
            print(f"service {service}: {time.monotonic() - begun:.1f} s, CPU seconds by task {cpu[-1]}")
        assert texts[0] == texts[1]
        saved = np.mean(cpu[1][1:]) - np.mean(cpu[0][1:])
        print(f"saved by the service: {saved:.2f} CPU seconds for each task after the first")
        assert saved > 0.5 * np.mean(cpu[1][1:])

    def test_shared_weights_answer_alike(self, tiny_lm: Path) -> None:
        """The model from shared memory gives the answers of the model from its files, and its segment goes away."""
        pytest.importorskip("zerocopy", reason='needs the extra "zerocopy"')
        backend = LmBackend(str(tiny_lm), device="cpu", share=True, lora={"steps": 4, "rank": 4, "prediction_views": 1})
        (alone,) = backend.solve(small_task(), free_clock(), None)
        with backend.sharing() as shared:
            (mapped,) = shared.solve(small_task(), free_clock(), None)
        assert not Path(shared.shared.path).exists()
        pairs = list(zip(alone.answers[0], mapped.answers[0], strict=True))
        assert pairs
        assert all(same(a.grid, b.grid) and a.confidence == b.confidence for a, b in pairs)

    @pytest.mark.slow
    @pytest.mark.timeout(300)
    def test_as_a_backend_in_worker_processes(self, tiny_lm: Path) -> None:
        """Through ttt.run, in work units: valid answers for two test inputs, and the same answer twice."""
        backend = LmBackend(str(tiny_lm), device="cpu", lora={"steps": 3, "prediction_views": 1, "rank": 4})
        run = ttt.run([small_task("two", tests=2), small_task()], backend=backend, budget="3 steps", workers=2)
        for _ in run:
            pass
        assert [r.error for r in run.results.values()] == [None, None]
        assert all(r.answered for r in run.results.values())
        assert run.results["two"].predictions[0].first.stage == "lm"
        again = ttt.run([small_task()], backend=backend, budget="3 steps")
        for _ in again:
            pass
        assert same(*(r["small"].predictions[0].first.grid for r in (run.results, again.results)))


def test_preflight_names_what_is_missing(tmp_path: Path) -> None:
    """A folder that is no model, or one without safetensors, is found before a task starts."""
    from ttt.backends.lm import LmBackend
    from ttt.errors import InvalidBackendError

    with pytest.raises(InvalidBackendError, match=r"no config\.json"):
        LmBackend(str(tmp_path / "nowhere"), device="cpu").preflight()
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(InvalidBackendError, match=r"no \.safetensors file"):
        LmBackend(str(tmp_path), device="cpu").preflight()


def save_tokenizer(folder: Path, texts: list[str]) -> None:
    """A tokenizer that knows these texts, each as one token, in this order."""
    tokenizers = pytest.importorskip("tokenizers")
    vocabulary = {text: i for i, text in enumerate([*texts, "[UNK]"])}
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="[UNK]"))
    made.pre_tokenizer = tokenizers.pre_tokenizers.Split("", "isolated")
    transformers.PreTrainedTokenizerFast(tokenizer_object=made, unk_token="[UNK]").save_pretrained(folder)


def test_prompts_are_in_the_tokens_of_the_models_own_tokenizer(tiny_lm: Path, tmp_path: Path) -> None:
    """A model of sixteen tokens in another order is asked in that order; texts that it does not know are an error."""
    import shutil

    folder = tmp_path / "model"
    shutil.copytree(tiny_lm, folder)
    with ModelService(folder, "cpu") as service:
        assert service.tokens.tolist() == list(range(16)), "without a tokenizer the order is ttt's"
    save_tokenizer(folder, list(SYMBOL_TEXTS[::-1]))
    with ModelService(folder, "cpu") as service:
        assert service.tokens.tolist() == list(range(15, -1, -1))
    letters = [*"abcdefghij", *SYMBOL_TEXTS[10:]]
    save_tokenizer(folder, letters)
    with pytest.raises(InvalidBackendError, match=r"does not write .* as single tokens"):
        ModelService(folder, "cpu")
    with ModelService(folder, "cpu", texts=letters) as service:
        assert service.tokens.tolist() == list(range(16))
    with pytest.raises(InvalidBackendError, match="wanted 16 different texts"):
        LmBackend(model=str(folder), symbols=("a", "b"))
    for name in ("share", "service"):
        with pytest.raises(InvalidBackendError, match=f"{name}: got 'no', wanted true or false"):
            LmBackend(model=str(folder), **{name: "no"})


def test_weights_that_do_not_fit_are_found_before_a_process_starts(tiny_lm: Path) -> None:
    """A memory limit below the size of the weights ends the run before its first task, with the remedy."""
    backend = LmBackend(model=str(tiny_lm), device="cpu")
    run = ttt.run([small_task()], backend=backend, budget=Budget(seconds=5, memory=200_000))
    with pytest.raises(ttt.TTTError, match="raise it, or share the weights"):
        next(iter(run))
    assert run.results == {}


def test_a_model_is_cut_to_its_sixteen_tokens(tiny_lm: Path, tmp_path: Path) -> None:
    """With tied vectors and many tokens: the same probabilities, vectors of sixteen tokens, and they can be adapted."""
    words = [f"w{n}" for n in range(20)] + [*"0123456789", "\n", "I", "O", ";", "_", ":"]
    config = transformers.AutoConfig.from_pretrained(tiny_lm)
    config.vocab_size, config.tie_word_embeddings = len(words) + 1, True
    whole = transformers.LlamaForCausalLM(config).eval()
    whole.save_pretrained(tmp_path)
    save_tokenizer(tmp_path, words)
    text = prompt(small_task().train, small_task().test[0].input)
    with ModelService(tmp_path, "cpu") as service, torch.inference_mode():
        ids = service.tokens[torch.tensor([text])]
        theirs = torch.log_softmax(whole(input_ids=ids).logits[0][:, service.tokens], -1)
        ours = service.log_probabilities(service.model(input_ids=service.symbols[torch.tensor([text])]).logits[0])
        assert torch.allclose(ours, theirs, atol=1e-5)
        assert service.model.get_output_embeddings().weight.shape == (SYMBOLS, 64)
    with ModelService(tmp_path, "cpu") as service:
        before = digest(service.model)
        settings = LoraSettings(steps=4, rank=4, embeddings=True, rslora=True, schedule="cosine")
        with TTTAdapter(service, settings).adapted(small_task(), free_clock()) as adaptation:
            names = [name for name, p in adaptation.model.named_parameters() if p.requires_grad]
            assert any("embed_tokens" in name for name in names)
            assert any("lm_head" in name for name in names)
        assert digest(service.model) == before


@dataclasses.dataclass(frozen=True)
class OwnBase:
    """A base that loads a saved model, and knows how to write texts; notes when it is entered for a machine."""

    folder: str
    here: bool = False

    def load(self) -> Any:
        """Return the model of the folder."""
        model = transformers.AutoModelForCausalLM.from_pretrained(self.folder)
        model.encode = lambda text: [SYMBOL_TEXTS.index(text)]
        return model

    @contextlib.contextmanager
    def on_this_node(self) -> Iterator[OwnBase]:
        """Yield a base that says so."""
        yield dataclasses.replace(self, here=True)

    def identity(self) -> str:
        """Return a word."""
        return "the weights"


def test_a_base_that_loads_itself_answers_as_its_folder(tiny_lm: Path) -> None:
    """The same submission as with the folder; the base is entered for the machine, and its identity is recorded."""
    settings = {"steps": 4, "rank": 4, "prediction_views": 1}
    backends = [LmBackend(model=str(tiny_lm), lora=settings), LmBackend(base=OwnBase(str(tiny_lm)), lora=settings)]
    answers = []
    for backend in backends:
        with (
            ModelService(backend.base or backend.model, "cpu") as service,
            TTTAdapter(service, LoraSettings(**settings)).adapted(small_task(), free_clock()) as adaptation,
        ):
            candidates = list(adaptation.predict(free_clock()))[-1][0]
            answers.append([candidate.grid.tolist() for candidate in candidates])
            assert f"loss {np.mean(adaptation.losses[:2]):.2f} to" in candidates[0].why
    assert answers[0] == answers[1]
    with backends[1].sharing() as shared:
        assert shared.base == OwnBase(str(tiny_lm), here=True)
    backends[1].preflight()
    assert backends[1].identity() == "the weights"
    assert backends[1].memory_needed() == 0


def test_a_base_excludes_a_folder() -> None:
    """A base is an object with `load`, alone."""
    for settings in ({"base": object()}, {"base": OwnBase("m"), "model": "m"}, {"base": OwnBase("m"), "share": True}):
        with pytest.raises(InvalidBackendError, match="wanted an object with a method load"):
            LmBackend(**settings)
