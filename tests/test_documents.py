"""The examples of the README and the tutorials run as printed, and the pages show what they print."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

Tool = Callable[[str], ModuleType]

DOCUMENTS = {
    "README.md": 5,
    "packages/xfer/docs/tutorial.md": 10,
    "packages/zerocopy/docs/tutorial.md": 8,
    "packages/isolate/docs/tutorial.md": 7,
    "packages/ternary/docs/tutorial.md": 5,
    "packages/ttt/docs/tutorial.md": 4,
}

PAGE = """# Page

```python
import os
print("one", os.getpid())
```

```text
one ...
```

Between.

```python
x = 1
```

```python
print(x + 1)
```

Not an output:

```text
3
```
"""


@pytest.mark.timeout(300)
@pytest.mark.parametrize("document", DOCUMENTS)
def test_its_examples_run(tool: Tool, document: str, root: Path) -> None:
    """All Python blocks run in order in one new process and an empty folder, without a warning."""
    documents = tool("documents")
    blocks = documents.blocks((root / document).read_text())
    assert len(blocks) >= DOCUMENTS[document]
    printed, failure = documents.outputs(blocks, document, sys.executable)
    assert failure == ""
    assert len(printed) == len(blocks)


def test_a_page_without_an_output_is_refused_and_filled(tool: Tool) -> None:
    """A block that prints must show it; `--write` puts it there and keeps an output whose `...` still fits."""
    documents = tool("documents")
    (problem,) = documents.problems(PAGE, "page.md")
    assert problem == "page.md:19: prints '2', and the page shows no output"
    printed, _ = documents.outputs(documents.blocks(PAGE), "page.md", sys.executable)
    filled = documents.filled(PAGE, printed)
    assert "```text\none ...\n```" in filled
    assert "print(x + 1)\n```\n\n```text\n2\n```\n\nNot an output" in filled
    assert documents.problems(filled, "page.md") == []
    assert documents.filled(filled, printed) == filled


def test_figures_that_change_become_dots(tool: Tool) -> None:
    """Where two runs differ, the written output has `...`, and both runs fit it."""
    documents = tool("documents")
    first, second = "slot 0 of process 31286, 3 ms\n", "slot 0 of process 4, 12 ms\n"
    shown = documents.common(first, second)
    assert shown == "slot 0 of process ..., ... ms\n"
    assert documents.same(shown, first)
    assert documents.same(shown, second)


@pytest.mark.parametrize(
    ("before", "after", "words"),
    [
        ("one ...", "two ...", "expected output\ntwo ...\n\nbut it prints\none "),
        ("x = 1", "x = 1 / 0", "line 15, in <module>"),
        ("x = 1", ">>> x = 1\n>>> x\n2", "DocTestFailure"),
        ("x = 1", "import warnings; x = 1; warnings.warn('old', DeprecationWarning)", "DeprecationWarning: old"),
    ],
)
def test_a_wrong_page_is_refused(tool: Tool, before: str, after: str, words: str) -> None:
    """Another output, an exception, a failing doctest and a warning are each reported with their place."""
    found = tool("documents").problems(PAGE.replace(before, after, 1), "page.md")
    assert any(words in line for line in found), found


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("`pip install pentad-xfer`; more", "pip install pentad-xfer"),
        ('    pip install "pentad-xfer[cli]" psutil  # with tables', 'pip install "pentad-xfer[cli]" psutil'),
        ('pip install "pentad-xfer @ git+https://host/x"\n\npip install pentad-xfer\n', "pip install pentad-xfer"),
        ("pip install pentad-zerocopy", None),
    ],
)
def test_the_install_line_of_a_page(tool: Tool, text: str, line: str | None) -> None:
    """The first command that installs the distribution from an index is the printed install line."""
    assert tool("documents").install_line(text, "pentad-xfer") == line
