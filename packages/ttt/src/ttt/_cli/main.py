"""The command `ttt`: parses arguments, runs a command, returns the exit status."""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import sys
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version

from ttt.errors import TTTError

EXAMPLES = """\
examples:
  ttt solve arcagi1:training/007bbfb7,00d62c1b --budget 20s --workers 2
  ttt solve arc-agi_test_challenges.json --out submission.json --workers 4
  ttt score submission.json arcagi1:training/007bbfb7,00d62c1b
  ttt show arcagi1:training/007bbfb7 --png task.png
"""


def _version() -> str:
    try:
        return version("pentad-ttt")
    except PackageNotFoundError:
        return "of a source folder that is not installed"


def parser() -> argparse.ArgumentParser:
    """Return the parser of the whole command line."""
    from ttt._cli import between, inspect, page, pretrain, solve

    main = argparse.ArgumentParser(
        prog="ttt",
        description="Test-time training for ARC: any ARC JSON to a valid submission, within a budget.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    main.add_argument("--version", action="version", version=f"ttt {_version()}")
    main.add_argument("--json", action="store_true", dest="json_first", help="print one JSON document instead of text")
    sub = main.add_subparsers(dest="command", required=True, metavar="COMMAND")
    solve.add_commands(sub)
    between.add_commands(sub)
    inspect.add_commands(sub)
    page.add_commands(sub)
    pretrain.add_commands(sub)
    return main


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; 0 done, 1 done with failures, 2 wrong use, 130 interrupted."""
    for name in ("stdin", "stdout", "stderr"):
        if getattr(sys, name) is None:  # it was closed before we started; another file would get its number
            setattr(sys, name, open(os.devnull, "r" if name == "stdin" else "w"))  # noqa: SIM115 - it stays open
    if isinstance(sys.stdout, io.TextIOWrapper) and not sys.stdout.encoding.lower().startswith("utf"):
        sys.stdout.reconfigure(errors="backslashreplace")  # which lacks characters of names and pictures
    as_json = False
    try:
        args = parser().parse_args(argv)
        as_json = args.json = args.json or args.json_first
        status = int(args.function(args))
        sys.stdout.flush()
    except TTTError as error:
        return _refused(error, as_json)
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # The reader of our output (head, less) has gone: what is left goes nowhere, also at the interpreter's end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        return _refused(error, as_json)
    return status


def _refused(error: Exception, as_json: bool) -> int:
    """Say what failed on standard error, and as JSON on standard output where that is wanted."""
    text = " ".join(str(error).split())
    print(f"ttt: {text}", file=sys.stderr)
    if as_json:
        with contextlib.suppress(OSError):  # it may be the output that failed
            print(json.dumps({"error": type(error).__name__, "message": text}, indent=2), flush=True)
    return 2
