"""Runs the command line: `python -m ttt`."""

from __future__ import annotations

import sys

from ttt._cli import main

if __name__ == "__main__":
    sys.exit(main())
