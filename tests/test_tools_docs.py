"""The site is made from the packages' own documents and needs nothing from elsewhere."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

pytest.importorskip("mermaidx", reason="needs the docs group")

Tool = Callable[[str], ModuleType]

PAGE = """# Rooms

```mermaid
flowchart LR
  pool["_shared/pool.py"] --> errors["errors.py"]
```

After it.
"""


def test_a_diagram_becomes_pictures(tool: Tool, tmp_path: Path) -> None:
    """A mermaid block is drawn once for light and once for dark, in files beside the page that need no script."""
    (tmp_path / "xfer").mkdir()
    text = tool("docs").draw(PAGE, Path("xfer/architecture.md"), tmp_path)
    assert "```" not in text
    assert text.count("![Diagram](architecture-1-") == 2
    assert text.endswith("After it.\n")
    for shade in ("light", "dark"):
        drawing = (tmp_path / "xfer" / f"architecture-1-{shade}.svg").read_text()
        assert drawing.startswith("<svg")
        assert "_shared/pool.py" in drawing
        assert "<script" not in drawing


def test_a_diagram_with_a_mistake_is_refused(tool: Tool, tmp_path: Path) -> None:
    """A block that is no mermaid ends the build, and the error quotes it."""
    with pytest.raises(RuntimeError, match="Parse error"):
        tool("docs").draw("```mermaid\nflowchart LR\n a[[[ --> \n```\n", Path("index.md"), tmp_path)
