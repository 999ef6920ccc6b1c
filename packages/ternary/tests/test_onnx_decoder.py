"""The decoder that stands for onnxruntime in the comparison of language models decodes."""

from __future__ import annotations

import runpy
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")  # at once: it keeps a file open from its first import on
BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


def test_step_by_step_as_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A prompt in one call and token by token leave the same logits: the cache and the positions are right."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    made = runpy.run_path(str(BENCHMARKS / "onnx_decoder.py"))
    shape = {"hidden": 256, "inner": 384, "layers": 2, "heads": 4, "kv_heads": 2, "head_size": 64}
    decoder = made["Decoder"](made["write"](shape, 128, tmp_path / "small.onnx"), 1)
    rows = np.random.default_rng(0).standard_normal((6, 256)).astype(np.float32)
    at_once = decoder.step(rows, 0)
    one_by_one = [decoder.step(rows[at : at + 1], at) for at in range(6)][-1]
    assert at_once.shape == (128,)
    np.testing.assert_allclose(one_by_one, at_once, rtol=1e-3, atol=1e-3 * np.abs(at_once).max())
    assert not np.allclose(decoder.step(rows[5:], 0), at_once, rtol=0.1)
