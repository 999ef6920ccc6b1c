"""What holds for the tests of all packages: the processes that they start share their compiled modules.

Hundreds of tests start an interpreter. Where Python is told to write no compiled modules, each of them would compile
PyTorch again, which takes as long again as importing it.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile

_folder: str | None = None
if os.environ.pop("PYTHONDONTWRITEBYTECODE", "") and "PYTHONPYCACHEPREFIX" not in os.environ:
    os.environ["PYTHONPYCACHEPREFIX"] = sys.pycache_prefix = _folder = tempfile.mkdtemp(prefix="pentad-compiled-")
    sys.dont_write_bytecode = False


def pytest_unconfigure() -> None:
    """Remove the compiled modules."""
    if _folder is not None:
        sys.dont_write_bytecode = True  # modules that are imported at the exit
        shutil.rmtree(_folder, ignore_errors=True)
