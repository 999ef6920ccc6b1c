"""Parse the command line and run its commands."""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import json
import os
import sys
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from zerocopy._directory import default_directory, sweep
from zerocopy._doctor import examine
from zerocopy._progress import Tick, bar, no_tick
from zerocopy._report import Report, report
from zerocopy._segment.checking import open_segment, verify_file
from zerocopy.errors import MissingExtraError, ZerocopyError

_EPILOG = """examples:
  zerocopy report                  list what is published, and each process's shared and private memory
  zerocopy report --watch          the same, updated until Ctrl-C
  zerocopy report --json | jq .views
  zerocopy verify FILE...          hash every weight of segment files
  zerocopy sweep                   remove what killed publishers left behind
  zerocopy doctor                  check shared memory, memory limits and optional libraries
"""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="zerocopy",
        description="One copy of a model's weights per machine: show what is shared, and by which processes.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=importlib.metadata.version("pentad-zerocopy"))
    parser.add_argument("--json", action="store_true", help="print JSON, for scripts")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument(
        "--directory", type=Path, default=None, help=f"segment directory (default: {default_directory()})"
    )
    common.add_argument("--json", action="store_true", default=argparse.SUPPRESS, help="print JSON, for scripts")
    show = commands.add_parser("report", parents=[common], help="show what is shared, what is private, and why")
    show.add_argument(
        "--watch", type=float, nargs="?", const=2.0, default=None, metavar="SECONDS", help="repeat (every 2 s)"
    )
    show.add_argument("--pid", type=int, action="append", default=None, help="only this process; may be repeated")
    show.set_defaults(run=_report)
    check = commands.add_parser("verify", parents=[common], help="hash every weight of segment files")
    check.add_argument("files", type=Path, nargs="+", metavar="FILE")
    check.set_defaults(run=_verify)
    clean = commands.add_parser("sweep", parents=[common], help="remove segments that no process holds")
    clean.set_defaults(run=_sweep)
    doctor = commands.add_parser("doctor", parents=[common], help="check this machine and installation")
    doctor.set_defaults(run=_doctor)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status: 0 success, 1 a check failed, 2 an error."""
    args = _parser().parse_args(argv)
    try:
        status: int = args.run(args)
        sys.stdout.flush()
        return status
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the reader of the pipe has gone
        return 0
    except (ZerocopyError, OSError, ValueError) as error:
        print(f"zerocopy: {' '.join(str(error).split())}", file=sys.stderr)
        return 2


def _print_json(value: Any) -> None:
    print(json.dumps(value), flush=True)  # one line per value, so that a repeated report can be read line by line


def _report(args: argparse.Namespace) -> int:
    def look() -> Report:
        return report(directory=args.directory, pids=args.pid)

    if args.json:
        while True:
            _print_json(look().as_dict())
            if args.watch is None:
                return 0
            time.sleep(args.watch)
    try:
        from zerocopy._cli.tables import print_report, watch_report
    except ImportError as error:
        raise MissingExtraError('the table needs rich: pip install "pentad-zerocopy[cli]", or use --json') from error
    if args.watch is None:
        print_report(look())
        return 0
    watch_report(look, args.watch)
    return 0


def _verify(args: argparse.Namespace) -> int:
    results: dict[str, str] = {}
    for path in args.files:
        try:
            opened = open_segment(path)
            try:
                with _shown(f"verifying {path.name}", os.fstat(opened.fd).st_size, not args.json) as tick:
                    verify_file(opened.fd, opened.manifest, path, tick)
            finally:
                os.close(opened.fd)
            results[str(path)] = "ok"
        except (ZerocopyError, OSError) as error:
            results[str(path)] = str(error)
    if args.json:
        _print_json(results)
    else:
        for name, result in results.items():
            print(f"{name}: {result}" if result == "ok" else result)
    return 0 if all(result == "ok" for result in results.values()) else 1


def _shown(title: str, total: int, wanted: bool) -> AbstractContextManager[Tick]:
    """Return a progress bar if standard error is a terminal."""
    rich = importlib.util.find_spec("rich") is not None
    return bar(title, total) if wanted and rich and sys.stderr.isatty() else nullcontext(no_tick)


def _sweep(args: argparse.Namespace) -> int:
    removed = [str(path) for path in sweep(args.directory)]
    if args.json:
        _print_json(removed)
    else:
        print("\n".join(removed) or "nothing to remove")
    return 0


def _doctor(args: argparse.Namespace) -> int:
    findings = examine(args.directory)
    if args.json:
        _print_json([finding.as_dict() for finding in findings])
    else:
        print("\n".join(map(str, findings)))
    return 0 if all(finding.ok for finding in findings) else 1
