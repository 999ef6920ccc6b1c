"""The command ``ttt``: arguments in, exit status out. Knows no algorithm."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from rich.console import Console

from ttt.errors import TTTError

EXAMPLES = """\
examples:
  ttt solve arcagi1:training/007bbfb7,00d62c1b --budget 20s --workers 2
  ttt solve arc-agi_test_challenges.json --out submission.json --resume
  ttt score submission.json arcagi1:training/007bbfb7,00d62c1b
  ttt show arcagi1:training/007bbfb7 --png task.png
"""


def parser() -> argparse.ArgumentParser:
    """The whole command line."""
    from ttt._cli import inspect, solve

    main = argparse.ArgumentParser(
        prog="ttt",
        description="Test-time training for ARC: any ARC JSON to a valid submission, within a budget.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    sub = main.add_subparsers(dest="command", required=True, metavar="COMMAND")
    solve.add_commands(sub)
    inspect.add_commands(sub)
    return main


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; 0 done, 1 done with failures, 2 wrong use, 130 interrupted."""
    args = parser().parse_args(argv)
    try:
        return int(args.function(args))
    except TTTError as error:
        Console(stderr=True).print(f"[bold red]ttt:[/] {type(error).__name__}: ", end="")
        Console(stderr=True, highlight=False, markup=False).print(str(error))
        return 2
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # The reader of our output (head, less) has gone; there is nobody to tell.
        sys.stderr.close()
        return 0
    except OSError as error:
        Console(stderr=True).print("[bold red]ttt:[/] ", end="")
        Console(stderr=True, highlight=False, markup=False).print(str(error), soft_wrap=True)
        return 2


if __name__ == "__main__":
    sys.exit(main())
