"""The command line: doctor, ls, reap, bench."""

from __future__ import annotations

import argparse
import contextlib
import importlib.metadata
import io
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from xfer._sizes import format_size
from xfer.errors import XferError


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        arguments: The words after the program's name; those of this process by default.

    Returns:
        The exit status: 0 good, 1 something does not work, 2 an error or wrong usage, 130 interrupted.
    """
    for name in ("stdin", "stdout", "stderr"):
        if getattr(sys, name) is None:  # it was closed before we started; another file would get its number
            setattr(sys, name, open(os.devnull, "r" if name == "stdin" else "w"))  # noqa: SIM115 - it stays open
    if isinstance(sys.stdout, io.TextIOWrapper) and not sys.stdout.encoding.lower().startswith("utf"):
        sys.stdout.reconfigure(errors="backslashreplace")  # which lacks characters of names and pictures
    chosen = _parser().parse_args(arguments)
    try:
        status = _run(chosen)
        sys.stdout.flush()
    except BrokenPipeError:  # the reader of our output has ended, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        return 130
    except (XferError, ValueError, OSError) as error:
        text = " ".join(str(error).split())
        print(f"xfer: {text}", file=sys.stderr)
        if chosen.json:
            with contextlib.suppress(OSError):  # it may be the output that failed
                _print_json({"error": type(error).__name__, "message": text})
        return 2
    return status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="xfer", description="Inspect shared arrays.", epilog="Start with: xfer doctor"
    )
    parser.add_argument("--version", action="version", version=f"xfer {_version()}")
    parser.add_argument("--json", action="store_true", help="print JSON for programs")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("doctor", help="try what this machine can do, and say why not")
    commands.add_parser("ls", help="list the shared memory that processes of this user hold")
    commands.add_parser("reap", help="remove named segments of dead processes, and topics that no process uses")
    bench = commands.add_parser("bench", help="measure hand-offs between two processes of this machine")
    bench.add_argument("--size", default="1MiB", help="bytes per array, such as 4KiB (default 1MiB)")
    bench.add_argument("--count", type=int, default=500, help="how many arrays (default 500)")
    for command in commands.choices.values():
        command.add_argument("--json", action="store_true", default=argparse.SUPPRESS, help=argparse.SUPPRESS)
    return parser


def _version() -> str:
    try:
        return importlib.metadata.version("pentad-xfer")
    except importlib.metadata.PackageNotFoundError:
        return "unknown"


def _run(chosen: argparse.Namespace) -> int:
    if chosen.command == "bench":
        return _bench(chosen.size, chosen.count, chosen.json)
    return {"doctor": _doctor, "ls": _ls, "reap": _reap}[chosen.command](chosen.json)


def _doctor(as_json: bool) -> int:
    from xfer._doctor.examine import examine

    findings = examine()
    if as_json:
        _print_json([asdict(finding) for finding in findings])
    else:
        _table("what this machine can do", ("", "what", "detail"), [
            ("yes" if f.works else "no", f.what, f.detail) for f in findings
        ])  # fmt: skip
    return 0 if any(finding.works for finding in findings[:2]) else 1


def _ls(as_json: bool) -> int:
    from xfer._shared.lease import require_locks
    from xfer._shared.listing import held_segments

    require_locks()
    held = held_segments()
    if as_json:
        _print_json([asdict(one) for one in held])
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
    from xfer._channel.board import remove, topics
    from xfer._shared import names
    from xfer._shared.lease import require_locks

    require_locks()
    removed = names.reap()
    for _, path, in_use in topics():
        if not in_use:
            remove(path)
            removed.append(path)
    for path in names.strangers():
        print(f"xfer: left {path} alone: it is not a file of this user", file=sys.stderr)
    if as_json:
        _print_json(removed)
    else:
        print(f"removed {len(removed)} files that no process uses")
    return 0


def _bench(size: str, count: int, as_json: bool) -> int:
    from xfer._doctor.bench import measure

    result = measure(size, count)
    if as_json:
        _print_json(result)
    else:
        rows = [(name, f"{value:.1f}") for name, value in result.items()]
        _table(f"{count} arrays of {size} to another process", ("what", "value"), rows)
    return 0


def _print_json(value: Any) -> None:
    print(json.dumps(value, indent=2))


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
        table.add_row(*map(Text, row))  # as it is: square brackets are not markup here
    Console().print(table)


if __name__ == "__main__":
    sys.exit(main())
