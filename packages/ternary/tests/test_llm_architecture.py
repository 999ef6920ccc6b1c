"""BitNet b1.58 and Llama: the same logits as transformers, and the same bits from every kernel."""

from __future__ import annotations

import runpy
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ternary.errors import ImportFormatError
from ternary.llm import Decoder, ModelConfig, convert
from ternary.llm._cache import Row
from ternary.llm._config import _frequencies
from ternary.llm._engine import open_engine
from ternary.llm._modelfile import open_file
from ternary.llm._source import write_model
from ternary.runtime import available_kernels

pytestmark = pytest.mark.timeout(300)  # transformers alone takes long to import on a busy machine


def beside(name):
    """A helper file of this folder: without packages it cannot be imported by name."""
    return SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name(name))))


models, llm_random = beside("llm_models.py"), beside("llm_random.py")
KINDS = [("bitnet", {"tie_word_embeddings": True}), ("llama", {}), ("llama", {"attention_bias": True})]
ROPES = [
    {"rope_type": "default", "rope_theta": 10000.0},
    {"rope_type": "linear", "rope_theta": 10000.0, "factor": 2.0},
    {
        "rope_type": "llama3",
        "rope_theta": 500000.0,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    },
    {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 32},
]


def converted(model, tmp_path, **options):
    """The model file of a transformers model, by way of a folder of float weights."""
    model.save_pretrained(tmp_path / "folder")
    convert(tmp_path / "folder", tmp_path / "model.ternary", **options)
    return open_file(tmp_path / "model.ternary")


def run(file, ids, kernel, threads=1, bits=16, at_once=True):
    """Logits of all tokens, in one step or token by token."""
    engine = open_engine(file, kernel=kernel, threads=threads, cache_bits=bits, positions=128)
    cache = engine.new_cache(128)
    rows = [Row(t, i, cache, True) for i, t in enumerate(ids)]
    return engine.run(rows) if at_once else np.concatenate([engine.run([row]) for row in rows])


@pytest.mark.parametrize(("kind", "changes"), KINDS)
@pytest.mark.parametrize("rows", [False, True])
def test_float_logits_equal_transformers(kind, changes, rows, tmp_path) -> None:
    """The torch module with a file's weights: within 1e-4 of the reference implementation."""
    model = models.hugging_face_model(kind, rows=rows, **changes)
    ids = models.tokens(90)
    file = converted(model, tmp_path)
    with torch.inference_mode():
        ours = Decoder.from_file(file)(torch.tensor([ids]))[0].numpy()
    assert np.abs(ours - models.reference_logits(model, ids)).max() <= 1e-4


@pytest.mark.parametrize(("kind", "changes"), KINDS)
def test_packed_logits_equal_integer_layers_in_transformers(kind, changes, tmp_path) -> None:
    """The core against transformers' own model around the package's packed layers, whose integers are exact."""
    # One layer: a float that rounds to the neighbouring integer changes all that follows it.
    model = models.hugging_face_model(kind, num_hidden_layers=1, **changes)
    ids = models.tokens(60)
    expected = models.reference_logits(models.integers_in(model), ids)
    error = np.abs(run(converted(model, tmp_path), ids, "auto") - expected) / expected.std()
    assert np.median(error) <= 1e-4
    assert error.max() <= 0.1


@pytest.mark.parametrize("kernel", available_kernels())
@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize(("kind", "changes"), KINDS)
def test_every_kernel_returns_the_same_bits(kernel, bits, kind, changes, tmp_path) -> None:
    """Kernels, threads, token by token or at once: the bits of the numpy fallback."""
    ids = models.tokens(37)
    file = converted(models.hugging_face_model(kind, **changes), tmp_path)
    expected = run(file, ids, "torch", bits=bits)
    for threads, at_once in ((1, True), (2, True), (1, False), (3, False)):
        np.testing.assert_array_equal(run(file, ids, kernel, threads, bits, at_once), expected)


@pytest.mark.parametrize("kv_heads", [1, 3, 5])
def test_threads_share_wide_layers_and_odd_groups_with_the_same_bits(kv_heads, tmp_path) -> None:
    """Wide layers in pieces, and more or fewer groups of heads than threads."""
    sizes = {"hidden": 64, "inner": 1616, "layers": 2, "heads": 4 * kv_heads, "kv_heads": kv_heads, "head_size": 64}
    config = ModelConfig(700, context=128, epsilon=1e-5, **sizes)
    llm_random.write_random(config, tmp_path / "m.ternary")
    file, ids = open_file(tmp_path / "m.ternary"), models.tokens(9)
    expected = run(file, ids, "torch")
    for kernel in available_kernels():
        for threads in (2, 3):
            np.testing.assert_array_equal(run(file, ids, kernel, threads, at_once=False), expected)


class LoudSource(llm_random.RandomSource):
    """The head's numbers are all at their largest, and so is what they are multiplied with."""

    def vector(self, name):
        """Norms of 1."""
        return np.ones_like(super().vector(name))

    def matrix(self, name):
        """Products too small to change the sums that they are added to."""
        found = super().matrix(name)
        return replace(found, scale=found.scale * np.float32(1e-12))

    def rows(self, name):
        """One number, and at last another sign."""
        signs = np.ones((self.config.vocabulary, 1), np.float32)
        signs[-1] = -1
        yield np.broadcast_to(signs, (self.config.vocabulary, self.config.hidden)).copy()


@pytest.mark.parametrize("kernel", available_kernels())
def test_the_largest_products_of_a_wide_head_do_not_overflow(kernel, tmp_path) -> None:
    """32 bits hold 16,383 times 127 times the 32,512 of an activation in no kernel; results are exact all the same."""
    config = ModelConfig(5, hidden=16416, inner=16, layers=1, heads=1, kv_heads=1, head_size=16, context=16)
    write_model(LoudSource(config), tmp_path / "loud.ternary")
    file = open_file(tmp_path / "loud.ternary")
    expected = run(file, [0, 1, 2, 3, 4], "torch")
    np.testing.assert_allclose(expected[0], [16416, 16416, 16416, 16416, -16416], rtol=1e-4)
    for at_once in (True, False):
        np.testing.assert_array_equal(run(file, [0, 1, 2, 3, 4], kernel, at_once=at_once), expected)


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.data())
def test_any_shape_any_split_into_steps(data) -> None:
    """Random small shapes, several sequences interleaved in steps of random sizes: the fallback's bits."""
    import tempfile

    pick = data.draw
    kv_heads, group = pick(st.integers(1, 3)), pick(st.integers(1, 9))
    config = ModelConfig(
        vocabulary=pick(st.integers(1, 70)),
        hidden=16 * pick(st.integers(1, 9)),
        inner=16 * pick(st.integers(1, 9)),
        layers=pick(st.integers(1, 2)),
        heads=kv_heads * group,
        kv_heads=kv_heads,
        head_size=16 * pick(st.sampled_from([1, 2, 4, 5, 8])),
        context=64,
        activation=pick(st.sampled_from(["silu", "relu2"])),
        sub_norms=pick(st.booleans()),
        tied=pick(st.booleans()),
        bias=pick(st.booleans()),
    )
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "m.ternary"
        beside("llm_random.py").write_random(config, path)
        file = open_file(path)
        lengths = pick(st.lists(st.integers(1, 40), min_size=1, max_size=3))
        texts = [models.tokens(n, max(4, config.vocabulary), seed=i) for i, n in enumerate(lengths)]
        texts = [[t % config.vocabulary for t in text] for text in texts]
        bits = pick(st.sampled_from([8, 16]))
        expected = [run(file, text, "torch", bits=bits) for text in texts]
        engine = open_engine(file, kernel="auto", threads=2, cache_bits=bits, positions=64)
        caches = [engine.new_cache(48) for _ in texts]
        done = [0] * len(texts)
        while any(d < len(t) for d, t in zip(done, texts, strict=True)):
            rows = []
            for i, text in enumerate(texts):
                count = min(pick(st.integers(0, 17)), len(text) - done[i])
                rows += [Row(text[at], at, caches[i], True) for at in range(done[i], done[i] + count)]
                done[i] += count
            if rows:
                for row, logits in zip(rows, engine.run(rows), strict=True):
                    np.testing.assert_array_equal(logits, expected[caches.index(row.cache)][row.position])


@pytest.mark.parametrize("rope", ROPES, ids=[r["rope_type"] for r in ROPES])
def test_rotary_frequencies_equal_transformers(rope) -> None:
    """Every kind of rotary scaling, against the functions of transformers."""
    from transformers import LlamaConfig
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    config = LlamaConfig(**{**models.SHAPE, "rope_parameters": rope})
    theirs = LlamaRotaryEmbedding(config)
    ours, factor = _frequencies(ModelConfig.from_hugging_face(config.to_dict()))
    np.testing.assert_allclose(ours, theirs.inv_freq.numpy(), rtol=1e-6)
    assert factor == pytest.approx(theirs.attention_scaling, rel=1e-6)


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"model_type": "mixtral"}, "mixtral"),
        ({"hidden_act": "gelu"}, "gelu"),
        ({"hidden_size": 100, "head_dim": 16}, "hidden"),
        ({"num_key_value_heads": 3}, "3 key/value"),
        ({"vocab_size": None}, "config.json"),
        ({"vocab_size": -1}, "vocabulary"),
        ({"mlp_bias": True}, "mlp_bias"),
        ({"rope_parameters": {"rope_type": "longrope", "rope_theta": 1e4, "factor": 2}}, "longrope"),
        ({"rope_parameters": {"rope_type": "linear"}}, "factor"),
        ({"rope_parameters": {"partial_rotary_factor": 0.5}}, "partial_rotary_factor"),
    ],
)
def test_other_architectures_are_refused_by_name(changes, word) -> None:
    """A configuration that the decoder does not run is refused, with what is wrong."""
    with pytest.raises(ImportFormatError, match=word):
        ModelConfig.from_hugging_face({"model_type": "llama", **models.SHAPE, **changes})
