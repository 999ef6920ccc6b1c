"""Text in, text out: generation, sampling, the command line, transformers' generate, several threads."""

from __future__ import annotations

import gc
import json
import os
import runpy
import signal
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ternary._cli.entry import main
from ternary.errors import (
    ChatTemplateError,
    ContextLengthError,
    KernelUnavailableError,
    ModelClosedError,
    NonFiniteActivationError,
)
from ternary.llm import Sampling, convert, load
from ternary.llm._sampling import Sampler
from ternary.llm._tokenizer import StopFinder

pytestmark = pytest.mark.timeout(300)  # transformers alone takes long to import on a busy machine


def beside(name):
    """A helper file of this folder: without packages it cannot be imported by name."""
    return SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name(name))))


models = beside("llm_models.py")
MESSAGES = [{"role": "user", "content": "the quick fox"}]


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    """A model file of a BitNet with a tokenizer."""
    folder, _ = models.folder_of(tmp_path_factory.mktemp("use"))
    convert(folder, folder.with_suffix(".ternary"))
    return folder.with_suffix(".ternary")


@pytest.fixture(autouse=True)
def collected():
    """Models in reference cycles, as of transformers and in tracebacks, keep their file mapped until a collection."""
    yield
    gc.collect()


class TestGenerate:
    """`model.generate`."""

    def test_greedy_follows_the_logits(self, path) -> None:
        """Every token is the most likely one behind those before it."""
        model = load(path)
        generation = model.generate("the quick brown", max_tokens=12)
        text = "".join(generation)
        ids = model.encode("the quick brown") + generation.tokens
        expected = model.logits(ids)[generation.prompt_tokens - 1 : -1].argmax(1)
        assert generation.tokens == expected.tolist()
        assert generation.finish in ("length", "stop")
        assert text == model.tokenizer.decode(generation.tokens)

    def test_kernels_agree(self, path) -> None:
        """The fallback generates the same tokens, with a seed as without."""
        options = {"max_tokens": 10, "temperature": 1.0, "seed": 5, "top_p": 0.9, "repetition_penalty": 1.2}
        a, b = (load(path, kernel=kernel).generate(MESSAGES, **options) for kernel in ("auto", "torch"))
        assert (a.text(), a.tokens) == (b.text(), b.tokens)

    def test_seeds(self, path) -> None:
        """The same seed repeats, another one differs."""
        model = load(path)
        one, again, other = (
            model.generate("fox", temperature=2.0, max_tokens=20, seed=seed).text() for seed in (1, 1, 2)
        )
        assert one == again
        assert one != other

    def test_a_shared_beginning_is_not_computed_again(self, path) -> None:
        """The second turn of a conversation runs only its new tokens, with the same result as alone."""
        model = load(path)
        first = model.generate("the quick brown fox jumps", max_tokens=5)
        first.text()
        second = model.generate("the quick brown fox sleeps", max_tokens=5)
        second.text()
        assert second._running.reused >= 4
        assert second.tokens == self._alone(path, "the quick brown fox sleeps").tokens

    @staticmethod
    def _alone(path, text):
        made = load(path).generate(text, max_tokens=5)
        made.text()
        return made

    def test_stop_texts(self, path) -> None:
        """The text ends before a stop text, wherever pieces are cut; none of it is shown."""
        model = load(path)
        whole = model.generate("the", max_tokens=30).text()
        stop = whole[len(whole) // 2 : len(whole) // 2 + 2]
        generation = model.generate("the", max_tokens=30, stop=[stop])
        assert generation.text() == whole[: whole.index(stop)]
        assert generation.finish == "stop"

    def test_closing_early(self, path) -> None:
        """A generation that is closed ends as cancelled, and the model goes on."""
        model = load(path)
        with model.generate("the", max_tokens=30) as generation:
            next(generation)
        assert generation.finish == "cancelled"
        assert list(generation) == []
        assert model.generate("the", max_tokens=2).text() is not None

    def test_the_context_ends_a_text(self, path) -> None:
        """No more tokens than the context holds; a prompt that fills it is refused."""
        model = load(path, context=20)
        generation = model.generate(list(range(3, 13)), max_tokens=100)
        generation.text()
        assert generation.finish in ("length", "stop")
        assert generation.prompt_tokens + len(generation.tokens) <= 20
        with pytest.raises(ContextLengthError, match="20 tokens for a context of 20"):
            model.generate(list(range(3, 23)))
        with pytest.raises(ContextLengthError):
            model.logits(list(range(21)))

    def test_wrong_input(self, path) -> None:
        """Each wrong argument has its error; the model works afterwards."""
        model = load(path)
        with pytest.raises(ValueError, match="vocabulary ends at 299"):
            model.generate([5, 300])
        with pytest.raises(ValueError, match="empty prompt"):
            model.generate([])
        with pytest.raises(ChatTemplateError, match="role"):
            model.generate([{"content": "x"}])
        for wrong in (
            {"temperature": -1},
            {"top_p": 0},
            {"min_p": 2},
            {"top_k": 0},
            {"max_tokens": -1},
            {"stop": [""]},
        ):
            with pytest.raises(ValueError, match=next(iter(wrong))):
                model.generate("x", **wrong)
        with pytest.raises(KernelUnavailableError):
            load(path, kernel="abacus")
        with pytest.raises(ValueError, match="cache_bits"):
            load(path, cache_bits=4)
        assert model.generate("x", max_tokens=1).tokens == []

    def test_a_template_cannot_reach_out(self, path) -> None:
        """A hostile chat template runs in a sandbox, and its failures are the package's errors."""
        model = load(path)
        metadata = dict(model.tokenizer._metadata)
        model.tokenizer._metadata = metadata
        for hostile in (
            "{{ ''.__class__.__mro__[1].__subclasses__() }}",
            "{{ messages.append(1) }}",
            "{% for i in range(10**9) %}x{% endfor %}",
            "{{ raise_exception('no') }}",
            "{{ 1 // 0 }}",
            "{% if %}",
        ):
            metadata["chat_template"] = hostile
            with pytest.raises(ChatTemplateError):
                model.encode(MESSAGES)

    def test_broken_weights_are_an_error(self, tmp_path) -> None:
        """Scales that overflow do not become text."""
        random_models = beside("llm_random.py")
        from ternary.llm import ModelConfig

        config = ModelConfig(50, hidden=32, inner=32, layers=1, heads=2, kv_heads=1, head_size=16, context=32)
        source = random_models.RandomSource(config)
        source.vector = lambda name: np.full(32, 3e38 if name == "norm" else 1, np.float32)
        from ternary.llm._source import write_model

        write_model(source, tmp_path / "m.ternary")
        with pytest.raises(NonFiniteActivationError):
            list(load(tmp_path / "m.ternary").generate([1], max_tokens=3).iterate_tokens())

    def test_threads_share_a_model(self, path) -> None:
        """Generations on several threads at once: each text as alone."""
        model = load(path, threads=2)
        prompts = ["the quick", "brown fox", "lazy dog", "jumps over"]
        expected = [load(path).generate(p, max_tokens=15).text() for p in prompts]
        found = [""] * 4
        work = [
            threading.Thread(target=lambda i=i: found.__setitem__(i, model.generate(prompts[i], max_tokens=15).text()))
            for i in range(4)
        ]
        for thread in work:
            thread.start()
        for thread in work:
            thread.join()
        assert found == expected

    @pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
    @pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
    @pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
    def test_a_forked_child_generates(self, path) -> None:
        """A child of a process whose threads run has threads of its own."""
        model = load(path, threads=2)
        expected = model.generate("the quick", max_tokens=5).text()
        child = os.fork()
        if child == 0:
            os._exit(0 if model.generate("the quick", max_tokens=5).text() == expected else 1)
        assert os.waitpid(child, 0)[1] == 0

    @pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
    @pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
    def test_a_child_forked_during_a_step_generates(self, path) -> None:
        """Another thread holds the model's lock at the fork; the child does not wait for it."""
        model = load(path, threads=1)
        expected = model.generate("the quick", max_tokens=3).text()
        with model.engine._one_step, model._lock:
            child = os.fork()
            if child == 0:
                signal.alarm(60)
                text = model.generate("the quick", max_tokens=3).text()
                os._exit(0 if text == expected else 1)
        assert os.waitpid(child, 0)[1] == 0

    def test_a_closed_model(self, path) -> None:
        """It lets go of the file, says so when it is used, and may be closed again."""
        with load(path, threads=1) as model:
            first = model.generate("the", max_tokens=3)
            next(first)
        with pytest.raises(ModelClosedError):
            model.logits([1])
        with pytest.raises(ModelClosedError):
            list(first)
        with pytest.raises(ModelClosedError):
            list(model.generate([5]).iterate_tokens())
        del first
        gc.collect()
        if sys.platform == "linux":
            assert path.name not in Path("/proc/self/maps").read_text()
        model.close()

    def test_workers_share_published_weights(self, path) -> None:
        """A reference of zerocopy gives the same logits, and its arrays lie in the published segment."""
        zerocopy = pytest.importorskip("zerocopy")
        from ternary.llm import publish

        ref = publish(path)
        with load(ref, threads=1) as model, load(path, threads=1) as alone:
            np.testing.assert_array_equal(model.logits([1, 2, 3]), alone.logits([1, 2, 3]))
        zerocopy.forget(ref)
        zerocopy.unpublish(ref)


class TestSampler:
    """The choice of a token."""

    LOGITS = np.array([3.0, 2.0, 1.0, 0.0, -5.0], np.float32)

    def _counts(self, **options):
        sampler = Sampler(Sampling(temperature=1.0, seed=0, **options))
        found = [sampler.choose(np.arange(5), self.LOGITS) for _ in range(4000)]
        return np.bincount(found, minlength=5) / 4000

    def test_frequencies_are_the_probabilities(self) -> None:
        """A temperature of 1 draws by the softmax."""
        expected = np.exp(self.LOGITS) / np.exp(self.LOGITS).sum()
        assert np.abs(self._counts() - expected).max() < 0.03

    def test_top_p_and_min_p_cut(self) -> None:
        """The least likely candidates never come."""
        assert self._counts(top_p=0.7)[2:].sum() == 0
        assert self._counts(top_p=0.01)[0] == 1
        assert self._counts(min_p=0.3)[2:].sum() == 0
        assert self._counts(min_p=1.0)[0] == 1

    @settings(max_examples=100)
    @given(st.text("ab", max_size=30), st.lists(st.text("ab", min_size=1, max_size=4), max_size=3), st.data())
    def test_stop_finder_equals_a_search_in_the_whole_text(self, text, stops, data) -> None:
        """However a text is cut into pieces, what is shown ends before the first stop text."""
        finder, shown, at, found = StopFinder(stops), "", 0, False
        while at < len(text) and not found:
            size = data.draw(st.integers(1, 5))
            piece, found = finder.add(text[at : at + size])
            shown += piece
            at += size
        shown += "" if found else finder.rest()
        ends = [text.index(stop) + len(stop) for stop in stops if stop in text]
        assert found == bool(ends)
        if not ends:
            assert shown == text
        else:
            assert text.startswith(shown)
            assert not any(stop in shown for stop in stops)


class TestCommands:
    """`ternary generate`, `chat` and `convert`."""

    def test_generate(self, path, capsys) -> None:
        """Text as it comes, or one JSON object."""
        assert main(["generate", str(path), "the quick", "--max-tokens", "5"]) == 0
        text = capsys.readouterr().out
        assert main(["generate", str(path), "the quick", "--max-tokens", "5", "--json"]) == 0
        row = json.loads(capsys.readouterr().out)
        assert row["text"] + "\n" == text
        assert (row["tokens"], row["finish"]) == (5, "length")

    @pytest.mark.parametrize(
        ("arguments", "word"),
        [(["--top-p", "7"], "top_p"), (["--context", "2"], "context of 2"), (["--kernel", "abacus"], "abacus")],
    )
    def test_wrong_options_are_one_line(self, path, arguments, word, capsys) -> None:
        """No traceback."""
        assert main(["generate", str(path), "the quick brown fox", *arguments]) in (1, 2)
        error = capsys.readouterr().err
        assert error.startswith("ternary: ")
        assert error.count("\n") == 1
        assert word in error

    def test_chat_remembers(self, path, monkeypatch, capsys) -> None:
        """Two turns, then /new; the first answer is the same again."""
        lines = iter(["the fox", "and the dog", "", "/new", "the fox", "/exit"])
        monkeypatch.setattr("builtins.input", lambda _="": next(lines))
        assert main(["chat", str(path), "--max-tokens", "4", "--stop", "\n"]) == 0
        answers = capsys.readouterr().out.split("\n")
        assert answers[0] == answers[2]

    def test_a_stream_of_json(self, path, capsys) -> None:
        """A line for each piece as it comes, and the whole in the last one."""
        assert main(["generate", str(path), "the quick", "--max-tokens", "5", "--json", "--stream"]) == 0
        *pieces, last = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
        assert "".join(line["piece"] for line in pieces) == last["text"]

    def test_a_long_chat_loses_its_oldest_turns(self, path, monkeypatch, capsys) -> None:
        """Past the context the talk goes on without the oldest turns; a line that is too long itself is refused."""
        lines = iter(["the fox"] * 6 + ["fox " * 200, "the dog", "/exit"])
        monkeypatch.setattr("builtins.input", lambda _="": next(lines))
        assert main(["chat", str(path), "--max-tokens", "4", "--context", "48", "--json"]) == 0
        out, err = capsys.readouterr()
        assert len(out.splitlines()) == 7
        assert err.startswith("ternary: got a prompt of")

    def test_ctrl_c_ends_an_answer_and_at_the_prompt_the_chat(self, path, monkeypatch, capsys) -> None:
        """No traceback, and the talk goes on after an answer that was ended."""
        from ternary.llm import Generation

        given = iter(["the fox", "the dog"])
        monkeypatch.setattr(
            "builtins.input", lambda _="": next(given, None) or (_ for _ in ()).throw(KeyboardInterrupt)
        )
        real, calls = Generation.__next__, []

        def interrupted(self):
            calls.append(1)
            if len(calls) == 2:
                raise KeyboardInterrupt
            return real(self)

        monkeypatch.setattr(Generation, "__next__", interrupted)
        assert main(["chat", str(path), "--max-tokens", "4", "--temperature", "1", "--seed", "1"]) == 0
        assert "[interrupted]" in capsys.readouterr().out

    def test_convert_and_a_pipe(self, path, tmp_path) -> None:
        """A process of its own: convert, then the text from standard input."""
        folder, _ = models.folder_of(tmp_path)
        run = [sys.executable, "-m", "ternary"]
        subprocess.run([*run, "convert", folder, tmp_path / "m.ternary"], check=True, capture_output=True)
        done = subprocess.run(
            [*run, "generate", tmp_path / "m.ternary", "-", "--max-tokens", "3", "--json"],
            input="the quick",
            capture_output=True,
            text=True,
            check=True,
        )
        assert json.loads(done.stdout)["tokens"] == 3


class TestTransformers:
    """The model behind the interface of transformers."""

    def test_generate_equals_ours(self, path) -> None:
        """Greedy `generate` of transformers, and a batch padded on the left."""
        from ternary.llm._transformers import TernaryForCausalLM

        model = load(path)
        wrapped = TernaryForCausalLM(model)
        one, two = model.encode("the quick brown"), model.encode("fox")
        expected = []
        for ids in (one, two):
            generation = model.generate(ids, max_tokens=6)
            list(generation.iterate_tokens())
            expected.append(generation.tokens)
        width = max(len(one), len(two))
        batch = torch.tensor([[0] * (width - len(ids)) + ids for ids in (one, two)])
        mask = torch.tensor([[0] * (width - len(ids)) + [1] * len(ids) for ids in (one, two)])
        made = wrapped.generate(batch, attention_mask=mask, max_new_tokens=6, do_sample=False)
        for line, tokens in zip(made, expected, strict=True):
            assert line[width : width + len(tokens)].tolist() == tokens

    def test_forward_equals_logits(self, path) -> None:
        """All positions' logits, also when a call shares its beginning with the one before."""
        from ternary.llm._transformers import TernaryForCausalLM

        model = load(path)
        wrapped = TernaryForCausalLM(model)
        ids = models.tokens(20)
        for part in (ids, ids[:12] + ids[3:6], ids[:5]):
            found = wrapped(torch.tensor([part])).logits[0].numpy()
            np.testing.assert_array_equal(found, model.logits(part))
