"""Every example of the README runs."""

from __future__ import annotations

from pathlib import Path

from sybil import Sybil
from sybil.parsers.markdown import PythonCodeBlockParser, SkipParser

README = Path(__file__).parent.parent / "README.md"


def test_readme_examples_run() -> None:
    """The Python blocks of the README run from first to last in one namespace."""
    document = Sybil(parsers=[PythonCodeBlockParser(), SkipParser()]).parse(README)
    examples = list(document.examples())
    assert len(examples) >= 7
    for example in examples:
        example.evaluate()
    document.namespace["pool"].close()
    document.namespace.clear()
