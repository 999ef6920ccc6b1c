"""Runs the command line: `python -m xfer`."""

from __future__ import annotations

import sys

from xfer._cli import main

sys.exit(main())
