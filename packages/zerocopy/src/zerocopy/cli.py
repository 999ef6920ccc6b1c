"""The command line: zerocopy report, verify, sweep."""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import sys
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from zerocopy.directory import default_directory, sweep
from zerocopy.errors import ZerocopyError
from zerocopy.progress import bar
from zerocopy.report import Report, report, size
from zerocopy.segment import Tick, no_tick, open_segment, verify_file

if TYPE_CHECKING:
    from rich.console import Group

_EPILOG = """examples:
  zerocopy report                  what is published, and what each process shares and has to itself
  zerocopy report --watch          the same, kept up to date until Ctrl-C
  zerocopy report --json | jq .views
  zerocopy verify FILE...          hash every weight of segment files
  zerocopy sweep                   remove what killed publishers left behind
"""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="zerocopy",
        description="One copy of a model's weights per machine: see who shares what.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--json", action="store_true", help="print JSON, for scripts")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument(
        "--directory", type=Path, default=None, help=f"segment directory (default: {default_directory()})"
    )
    common.add_argument("--json", action="store_true", default=argparse.SUPPRESS, help="print JSON, for scripts")
    show = commands.add_parser("report", parents=[common], help="what is shared, and what is private and why")
    show.add_argument(
        "--watch", type=float, nargs="?", const=2.0, default=None, metavar="SECONDS", help="repeat (every 2 s)"
    )
    show.add_argument("--pid", type=int, action="append", default=None, help="only this process; may be repeated")
    check = commands.add_parser("verify", parents=[common], help="hash every weight of segment files")
    check.add_argument("files", type=Path, nargs="+", metavar="FILE")
    commands.add_parser("sweep", parents=[common], help="remove segments that nobody holds any more")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status: 0 fine, 1 a segment failed, 2 wrong usage."""
    args = _parser().parse_args(argv)
    try:
        if args.command == "verify":
            return _verify(args.files, args.json)
        if args.command == "sweep":
            removed = [str(path) for path in sweep(args.directory)]
            print(json.dumps(removed) if args.json else "\n".join(removed) or "nothing to remove")
            return 0
        return _report(args)
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the reader has gone, and that is its right
        return 0


def _report(args: argparse.Namespace) -> int:
    def look() -> Report:
        return report(directory=args.directory, pids=args.pid)

    if args.json:
        while True:
            print(json.dumps(look().as_dict()), flush=True)
            if args.watch is None:
                return 0
            time.sleep(args.watch)
    try:
        from rich.console import Console
        from rich.live import Live
    except ImportError:
        print('the table needs rich: pip install "pentad-zerocopy[cli]", or use --json', file=sys.stderr)
        return 2
    console = Console()
    if args.watch is None:
        console.print(_tables(look()))
        return 0
    with Live(_tables(look()), console=console, auto_refresh=False) as live:
        while True:
            time.sleep(args.watch)
            live.update(_tables(look()), refresh=True)


def _tables(what: Report) -> Group:
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    if not what.segments:
        return Group(Text(f"nothing is published in {what.directory}"))
    segments = Table("model", "version", "weights", "stored here", "tensors", "readers", "state", title="Published")
    for info in sorted(what.segments, key=lambda entry: (entry.name, entry.version)):
        state = "removed, still read" if info.gone else "current" if info.current else ""
        segments.add_row(
            info.name, str(info.version), size(info.model_nbytes), size(info.stored_nbytes), str(info.tensors),
            str(info.readers), state,
        )  # fmt: skip
    views = Table(
        "process",
        "model",
        "mapped",
        "in memory",
        "its share",
        "private",
        "because it wrote",
        "private elsewhere",
        title="Processes",
    )
    names = {info.file: f"{info.name} {info.version}" for info in what.segments}
    for view in what.views:
        views.add_row(
            f"{view.pid} {view.command[:30]}", names.get(view.segment, view.segment), size(view.mapped),
            size(view.resident), size(view.proportional), size(view.private), view.wrote(),
            size(view.private_elsewhere),
        )  # fmt: skip
    return Group(segments, views)


def _shown(title: str, total: int, wanted: bool) -> AbstractContextManager[Tick]:
    """Return a progress bar where somebody can see one."""
    rich = importlib.util.find_spec("rich") is not None
    return bar(title, total) if wanted and rich and sys.stderr.isatty() else nullcontext(no_tick)


def _verify(files: Sequence[Path], as_json: bool) -> int:
    results: dict[str, str] = {}
    for path in files:
        try:
            opened = open_segment(path)
            try:
                with _shown(f"verifying {path.name}", os.fstat(opened.fd).st_size, not as_json) as tick:
                    verify_file(opened.fd, opened.manifest, path, tick)
            finally:
                os.close(opened.fd)
            results[str(path)] = "ok"
        except ZerocopyError as error:
            results[str(path)] = str(error)
    if as_json:
        print(json.dumps(results))
    else:
        for name, result in results.items():
            print(f"{name}: {result}" if result == "ok" else result)
    return 0 if all(result == "ok" for result in results.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
