"""Importing xfer stays cheap."""

from __future__ import annotations

import subprocess
import sys


def test_import_pulls_in_nothing_heavy() -> None:
    """A fresh interpreter that imports xfer has loaded none of the heavy optional libraries."""
    heavy = {"torch", "cupy", "ray", "ml_dtypes", "rich"}
    code = f"import sys, xfer; print(sorted({heavy!r} & sys.modules.keys()))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"
