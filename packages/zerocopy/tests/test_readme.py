"""The README's examples run as they stand."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from sybil import Sybil
from sybil.parsers.markdown import PythonCodeBlockParser

import zerocopy

README = Path(__file__).parents[1] / "README.md"


@pytest.mark.timeout(300)
@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
@pytest.mark.skipif(not README.exists(), reason="the README is not beside an installed wheel's tests")
def test_readme(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every Python block, in order, in one namespace."""
    from zerocopy._held import _published, release

    monkeypatch.chdir(tmp_path)
    before = set(_published)
    torch.manual_seed(0)
    document = Sybil(parsers=[PythonCodeBlockParser()]).parse(README)
    examples = list(document.examples())
    assert len(examples) >= 6
    for example in examples:
        example.evaluate()
    document.namespace.clear()
    zerocopy.forget()
    for path in set(_published) - before:
        release(path)
