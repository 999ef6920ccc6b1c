"""The examples of the README and the tutorials run as printed, and the pages show what they print."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

Tool = Callable[[str], ModuleType]

DOCUMENTS = {
    "README.md": 5,
    "examples/fleet/README.md": 3,
    "packages/xfer/docs/tutorial.md": 10,
    "packages/zerocopy/docs/tutorial.md": 8,
    "packages/isolate/docs/tutorial.md": 7,
    "packages/ternary/docs/tutorial.md": 6,
    "packages/ttt/docs/tutorial.md": 5,
    "packages/xfer/docs/how-to.md": 1,
    "packages/zerocopy/docs/how-to.md": 1,
    "packages/isolate/docs/how-to.md": 2,
    "packages/isolate/docs/values.md": 2,
    "packages/ternary/docs/how-to.md": 1,
    "packages/ttt/docs/how-to.md": 1,
}
# The last five start servers, trainers and solvers.
SLOW = [name for name in DOCUMENTS if name.endswith("how-to.md")]

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
@pytest.mark.parametrize(
    "document", [pytest.param(name, marks=[pytest.mark.slow] if name in SLOW else []) for name in DOCUMENTS]
)
def test_its_examples_do_what_the_page_shows(tool: Tool, document: str, root: Path) -> None:
    """All Python blocks run in order in one new process and an empty folder, without a warning; the output is shown."""
    documents = tool("documents")
    text = (root / document).read_text()
    assert len(documents.blocks(text)) >= DOCUMENTS[document]
    assert documents.problems(text, document, folder=(root / document).parent) == []


def test_a_block_may_read_the_source_of_its_functions(tool: Tool) -> None:
    """A function of a block has its source, at its line of the page."""
    page = "# Page\n\n```python\nx = 1\n```\n\n```python\nimport inspect\n\n\ndef f():\n    return 2\n\n\n"
    page += "print(inspect.getsource(f), inspect.getsourcelines(f)[1])\n```\n"
    assert tool("documents").run(page, "page.md").printed[1] == "def f():\n    return 2\n 11\n"


PICTURE = """# Page

```python
import struct
from pathlib import Path
Path("pictures").mkdir()
Path("pictures/a.png").write_bytes(bytes(16) + struct.pack(">II", 3, 2))
```

![A picture](pictures/a.png)
"""


def test_a_picture_is_made_by_its_page(tool: Tool, tmp_path: Path) -> None:
    """A picture from `pictures/` is made by a block and lies beside the page with the same size."""
    documents = tool("documents")
    page = tmp_path / "page.md"
    page.write_text(PICTURE)
    assert documents.problems(PICTURE, "page.md", folder=tmp_path) == ["page.md: pictures/a.png is missing"]
    assert documents.main(["--write", str(page)]) == 0
    assert documents.problems(PICTURE, "page.md", folder=tmp_path) == []
    (tmp_path / "pictures" / "a.png").write_bytes(bytes(16) + bytes(8))
    (wrong,) = documents.problems(PICTURE, "page.md", folder=tmp_path)
    assert "other dimensions" in wrong
    (wrong,) = documents.problems(PICTURE.replace('/a.png")', '/b.png")'), "page.md", folder=tmp_path)
    assert "not made by a block" in wrong


def test_a_page_without_an_output_is_refused_and_filled(tool: Tool) -> None:
    """A block that prints must show it; `--write` puts it there and keeps an output whose `...` still fits."""
    documents = tool("documents")
    (problem,) = documents.problems(PAGE, "page.md")
    assert problem == "page.md:19: prints '2', and the page shows no output"
    printed = documents.run(PAGE, "page.md").printed
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
