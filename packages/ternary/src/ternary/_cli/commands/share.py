"""Keep a ternary language model in shared memory, for `ternary serve --follow NAME` in any number of processes.

Each line of input is the file of a newer version, which new requests get from then on. Each is answered by a line. A
file that cannot be opened is refused, and the version before stays. The end of the input, or Ctrl-C, ends the command.
"""

from __future__ import annotations

import argparse
import sys

from ternary.errors import MissingExtraError, TernaryError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of this command."""
    parser.add_argument("model", help="a model file of `ternary convert`")
    parser.add_argument("--name", required=True, help="the name to share it under")


def run(a: argparse.Namespace) -> int:
    """Run the command; return its exit status."""
    try:
        import zerocopy
    except ImportError as e:
        raise MissingExtraError("sharing needs zerocopy; pip install 'pentad-ternary[share]'") from e
    from ternary.llm import publish

    try:
        ref = publish(a.model, name=a.name)
    except (zerocopy.ZerocopyError, ValueError) as e:
        raise e if isinstance(e, TernaryError) else TernaryError(str(e)) from None
    print(f"version {ref.version}: {a.model}", flush=True)
    for line in sys.stdin:
        file = line.strip()
        try:
            ref = publish(file, name=a.name)  # gives the version before up
            print(f"version {ref.version}: {file}", flush=True)
        except (TernaryError, zerocopy.ZerocopyError, OSError, ValueError, MemoryError) as e:
            print(f"refused: {e}", flush=True)
    return 0
