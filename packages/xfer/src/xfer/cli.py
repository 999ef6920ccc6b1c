"""The command line: doctor, ls, reap, bench; knows how to show things and nothing else."""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from xfer.errors import XferError
from xfer.sizes import format_size


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit status: 0 good, 1 something does not work, 2 wrong usage."""
    parser = argparse.ArgumentParser(
        prog="xfer", description="Look after shared arrays.", epilog="Start with: xfer doctor"
    )
    parser.add_argument("--json", action="store_true", help="print JSON for programs")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("doctor", help="try what this machine can do, and say why not")
    commands.add_parser("ls", help="list the shared memory that processes of this user hold")
    commands.add_parser("reap", help="remove named segments of dead processes (nameless ones need no reaping)")
    bench = commands.add_parser("bench", help="measure hand-offs between two processes of this machine")
    bench.add_argument("--size", default="1MiB", help="bytes per array, such as 4KiB (default 1MiB)")
    bench.add_argument("--count", type=int, default=500, help="how many arrays (default 500)")
    for command in commands.choices.values():
        command.add_argument("--json", action="store_true", default=argparse.SUPPRESS, help=argparse.SUPPRESS)
    chosen = parser.parse_args(arguments)
    try:
        if chosen.command == "bench":
            return _bench(chosen.size, chosen.count, chosen.json)
        return {"doctor": _doctor, "ls": _ls, "reap": _reap}[chosen.command](chosen.json)
    except KeyboardInterrupt:
        return 130
    except (XferError, ValueError) as error:
        print(f"xfer: {error}", file=sys.stderr)
        return 1


def _doctor(as_json: bool) -> int:
    from xfer.doctor import examine

    findings = examine()
    if as_json:
        print(json.dumps([asdict(finding) for finding in findings]))
    else:
        _table("what this machine can do", ("", "what", "detail"), [
            ("yes" if f.works else "no", f.what, f.detail) for f in findings
        ])  # fmt: skip
    return 0 if any(finding.works for finding in findings[:2]) else 1


def _ls(as_json: bool) -> int:
    from xfer import posix
    from xfer.processes import held_segments

    posix.require()
    held = held_segments()
    if as_json:
        print(json.dumps([asdict(one) for one in held]))
    elif held:
        rows = [
            (str(one.pid), "yes" if one.alive else "dead", format_size(one.nbytes), one.segment, one.command)
            for one in held
        ]
        _table("shared memory", ("process", "alive", "memory", "segment", "command"), rows)
    else:
        print("no process of this user holds shared memory of xfer")
    return 0


def _reap(as_json: bool) -> int:
    from xfer import names, posix

    posix.require()
    removed = names.reap()
    print(json.dumps(removed) if as_json else f"removed {len(removed)} files of dead processes")
    return 0


def _bench(size: str, count: int, as_json: bool) -> int:
    from xfer.selfbench import measure

    result = measure(size, count)
    if as_json:
        print(json.dumps(result))
    else:
        rows = [(name, f"{value:.1f}") for name, value in result.items()]
        _table(f"{count} arrays of {size} to another process", ("what", "value"), rows)
    return 0


def _table(title: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    try:
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text
    except ImportError:
        for row in (head, *rows):
            print("  ".join(row))
        return
    table: Any = Table(*head, title=title, title_justify="left", box=None)
    for row in rows:
        table.add_row(*map(Text, row))  # as it is: square brackets are no markup here
    Console().print(table)


if __name__ == "__main__":
    sys.exit(main())
