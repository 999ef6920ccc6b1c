"""Runs the integration tests: python run_integration_tests.py [--slow] [further arguments for pytest]."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest


def main(arguments: list[str]) -> int:
    """Run them; `--slow` adds those that install torch."""
    folder = Path(__file__).parent
    slow = "--slow" in arguments
    rest = [argument for argument in arguments if argument != "--slow"]
    files = [str(folder / name) for name in ("test_integration.py", "test_edge_cases.py")]
    return int(pytest.main(["-v", *(["-m", "slow or not slow"] if slow else []), *files, *rest]))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
