"""Makes the wall clock of a Python process jump by hours, to and fro, at each look: no waiting may depend on it."""

from __future__ import annotations

import itertools
import os
import time

if os.environ.get("JUMPING_CLOCK"):
    _real, _jumps = time.time, itertools.cycle((0, 7200, -86400, 3600.5, -3))

    time.time = lambda: _real() + next(_jumps)
    time.time_ns = lambda: int(time.time() * 1e9)
