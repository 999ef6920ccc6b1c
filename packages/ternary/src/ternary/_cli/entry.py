"""The command `ternary`: its options, its errors and its exit status."""

from __future__ import annotations

import argparse
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
    if sys.stdout is None:  # it was closed before we started
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - it stays open until the process ends
    try:
        arguments = _parser().parse_args(argv)
        status = int(arguments.run(arguments))
        sys.stdout.flush()
        return status
    except CompileError as e:
        print(e, file=sys.stderr)
        return 1
    except BrokenPipeError:  # the reader has gone: what is left of the output goes nowhere
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (TernaryError, OSError, MemoryError) as e:
        print(f"ternary: {e}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("ternary: interrupted; files already written are whole", file=sys.stderr)
        return 130


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
