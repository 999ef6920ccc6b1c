"""The command `ternary`: its options, its errors and its exit status."""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import sys
from collections.abc import Sequence

from ternary._cli.commands import COMMANDS
from ternary.errors import CompileError, TernaryError

_EXAMPLES = """examples:
  ternary check net.tri                 show every error, with carets
  ternary fmt net.tri                   rewrite in the one canonical form
  ternary compile resnet18 -o net.py    readable PyTorch from a zoo network
  ternary train net.tri --data digits --compare float,twn --seeds 3 --out runs
  ternary quantize resnet18 --rule 'layer4.*=int8'    error, zeros and bytes of every layer
  ternary inspect runs/net-twn.safetensors --picture net.png
  ternary export runs/net-twn.safetensors --to onnx --to gguf --out release
  ternary generate MODEL "Once upon a time"   text from a ternary language model
  ternary chat MODEL                    a conversation; ternary serve MODEL answers over HTTP
  ternary share MODEL --name NAME       one copy in memory for each `ternary serve --follow NAME`
  ternary doctor                        which kernel runs packed layers here, and why
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Returns:
        0, 1 where a source has errors or would change, 2 for wrong usage or a failure, 130 after Ctrl-C.
    """
    for name in ("stdin", "stdout", "stderr"):
        if getattr(sys, name) is None:  # it was closed before we started; another file would get its number
            setattr(sys, name, open(os.devnull, "r" if name == "stdin" else "w"))  # noqa: SIM115 - it stays open
    if isinstance(sys.stdout, io.TextIOWrapper) and not sys.stdout.encoding.lower().startswith("utf"):
        sys.stdout.reconfigure(errors="backslashreplace")  # which lacks characters of names and pictures
    as_json = False
    try:
        arguments = _parser().parse_args(argv)
        as_json = arguments.json
        status = int(arguments.run(arguments))
        sys.stdout.flush()
        return status
    except CompileError as e:
        return _failed(e, str(e), 1, as_json)
    except BrokenPipeError:  # the reader has gone: what is left of the output goes nowhere
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (TernaryError, OSError, MemoryError) as e:
        return _failed(e, f"ternary: {e}", 2, as_json)
    except KeyboardInterrupt:
        print("ternary: interrupted; files already written are whole", file=sys.stderr)
        return 130


def _failed(error: Exception, text: str, status: int, as_json: bool) -> int:
    """Say what failed on standard error, and as JSON on standard output where that is wanted; return the status."""
    print(text, file=sys.stderr)
    if as_json:
        with contextlib.suppress(OSError):  # it may be the output that failed
            print(json.dumps({"error": type(error).__name__, "message": str(error)}, indent=2), flush=True)
    return status


class _Version(argparse.Action):
    """Prints the installed version, looked up only then."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        from importlib.metadata import version

        print(f"ternary {version('pentad-ternary')}")
        parser.exit()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="ternary",
        description="Check, train, pack, run and export ternary networks.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="print the version and exit")
    parser.add_argument("--json", action="store_true", help="print the result as JSON, before the command or after it")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for name, module in COMMANDS.items():
        text = (module.__doc__ or "").strip()
        made = commands.add_parser(name, help=text, description=text)
        made.set_defaults(run=module.run)
        module.add_arguments(made)
        made.add_argument("--json", action="store_true", default=argparse.SUPPRESS, help="print the result as JSON")
    return parser
