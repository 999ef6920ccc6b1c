"""Started by path in an extension's interpreter: loads this package without touching `sys.path`, then serves."""

from __future__ import annotations

import importlib.util
import os
import sys


def start() -> None:
    """Load the package around this file under a private name and hand over."""
    folder = os.path.dirname(os.path.abspath(__file__))
    spec = importlib.util.spec_from_file_location(
        "isolate_worker", os.path.join(folder, "__init__.py"), submodule_search_locations=[folder]
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["isolate_worker"] = module
    spec.loader.exec_module(module)
    runtime = importlib.import_module("isolate_worker.runtime")
    runtime.main(int(sys.argv[1]), int(sys.argv[2]))


if __name__ == "__main__":
    start()
