"""Run the command line as `python -m ternary`."""

from __future__ import annotations

import sys

from ternary._cli import main

if __name__ == "__main__":
    sys.exit(main())
