"""The README's and the tutorials' examples run, as they stand and from top to bottom."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

DOCUMENTS = {
    "README.md": 5,
    "packages/xfer/docs/tutorial.md": 10,
    "packages/zerocopy/docs/tutorial.md": 8,
    "packages/isolate/docs/tutorial.md": 7,
    "packages/ternary/docs/tutorial.md": 5,
    "packages/ttt/docs/tutorial.md": 4,
}


@pytest.mark.timeout(300)
@pytest.mark.parametrize("document", DOCUMENTS)
def test_its_examples_run(document: str, root: Path, tmp_path: Path) -> None:
    """All Python blocks, in order, in one fresh process and an empty folder, and no warning is given."""
    blocks = re.findall(r"^```python\n(.*?)^```", (root / document).read_text(), re.MULTILINE | re.DOTALL)
    assert len(blocks) == DOCUMENTS[document]
    program = tmp_path / "document.py"
    program.write_text("\n".join(blocks))
    # Worker processes may import the main module again, so that one does nothing by itself.
    main = tmp_path / "main.py"
    main.write_text(
        f'if __name__ == "__main__":\n    exec(compile(open({str(program)!r}).read(), "document", "exec"))\n'
    )
    done = subprocess.run([sys.executable, "-W", "error", main], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
