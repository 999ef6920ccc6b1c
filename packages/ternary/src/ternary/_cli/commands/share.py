"""Keep a ternary language model in shared memory, for `ternary serve --follow NAME` in any number of processes.

Each line of input is the file of a newer version, which new requests get from then on. Each is answered by a line. A
file that cannot be opened is refused, and the version before stays. The end of the input, or Ctrl-C, ends the command.
"""

from __future__ import annotations

import argparse
import sys

from ternary.errors import TernaryError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of this command."""
    parser.add_argument("model", help="a model file of `ternary convert`")
    parser.add_argument("--name", required=True, help="the name to share it under")


def run(a: argparse.Namespace) -> int:
    """Run the command; return its exit status."""
    from ternary.llm._shared import publish_under

    ref = publish_under(a.name, a.model)
    print(f"version {ref.version}: {a.model}", flush=True)
    for line in sys.stdin:
        file = line.strip()
        try:
            ref = publish_under(a.name, file)  # gives the version before up
            print(f"version {ref.version}: {file}", flush=True)
        except (TernaryError, OSError, MemoryError) as e:
            print(f"refused: {e}", flush=True)
    return 0
