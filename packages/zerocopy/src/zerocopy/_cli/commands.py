"""Parse the command line and run its commands."""

from __future__ import annotations

import argparse
import contextlib
import importlib.metadata
import importlib.util
import io
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zerocopy._directory import candidates, default_directory, folder_of, sweep
from zerocopy.errors import MissingExtraError, SegmentGoneError, ZerocopyError

if TYPE_CHECKING:  # each command imports what it needs: torch takes seconds, and `report` needs none
    from zerocopy._progress import Tick
    from zerocopy._ref import ModelRef
    from zerocopy._report import Report

_EPILOG = """examples:
  zerocopy report                  list what is published, and each process's shared and private memory
  zerocopy report --watch          the same, updated until Ctrl-C
  zerocopy report --json | jq .views
  zerocopy verify FILE...          hash every weight of segment files
  zerocopy sweep                   remove what killed publishers left behind
  zerocopy publish FOLDER --name llm --class AutoModelForCausalLM
  zerocopy serve-weights FOLDER --name llm --class AutoModelForCausalLM
  zerocopy rm llm                  remove what `publish` left there to stay
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
    for name, run, text in (
        ("publish", _publish, "publish a checkpoint, to stay until `zerocopy rm`"),
        ("serve-weights", _serve_weights, "publish a checkpoint and keep it while this command runs"),
    ):
        give = commands.add_parser(name, parents=[common], help=text)
        give.add_argument("source", metavar="FOLDER", help="folder, or id on the Hub, of a model of transformers")
        give.add_argument("--name", required=True, help="the name to publish it under")
        give.add_argument("--class", dest="auto_class", default="AutoModel", help="its class (default: AutoModel)")
        give.add_argument("--dtype", default=None, help="load it in this dtype, as bfloat16 (default: its own)")
        give.add_argument(
            "--trust-remote-code", action="store_true", help="run the checkpoint's own code and take it along"
        )
        give.set_defaults(run=run)
    remove = commands.add_parser("rm", parents=[common], help="remove a model that was published to stay")
    remove.add_argument("name")
    remove.set_defaults(run=_remove)
    doctor = commands.add_parser("doctor", parents=[common], help="check this machine and installation")
    doctor.set_defaults(run=_doctor)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status: 0 success, 1 a check failed, 2 an error."""
    for name in ("stdin", "stdout", "stderr"):
        if getattr(sys, name) is None:  # it was closed before we started; another file would get its number
            setattr(sys, name, open(os.devnull, "r" if name == "stdin" else "w"))  # noqa: SIM115 - it stays open
    if isinstance(sys.stdout, io.TextIOWrapper) and not sys.stdout.encoding.lower().startswith("utf"):
        sys.stdout.reconfigure(errors="backslashreplace")  # which lacks characters of names and tables
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
        text = " ".join(str(error).split())
        print(f"zerocopy: {text}", file=sys.stderr)
        if getattr(args, "json", False):
            with contextlib.suppress(OSError):  # it may be the output that failed
                _print_json({"error": type(error).__name__, "message": text})
        return 2


def _print_json(value: Any, indent: int | None = 2) -> None:
    print(json.dumps(value, indent=indent), flush=True)


def _report(args: argparse.Namespace) -> int:
    from zerocopy._report import report

    def look() -> Report:
        return report(directory=args.directory, pids=args.pid)

    if args.json:
        while args.watch is not None:
            _print_json(look().as_dict(), indent=None)  # one line each, so that they can be read line by line
            time.sleep(args.watch)
        _print_json(look().as_dict())
        return 0
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
    from zerocopy._segment.checking import open_segment, verify_file

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
    from zerocopy._progress import bar, no_tick

    rich = importlib.util.find_spec("rich") is not None
    return bar(title, total) if wanted and rich and sys.stderr.isatty() else nullcontext(no_tick)


def _sweep(args: argparse.Namespace) -> int:
    removed = [str(path) for path in sweep(args.directory)]
    if args.json:
        _print_json(removed)
    else:
        print("\n".join(removed) or "nothing to remove")
    return 0


def _published(args: argparse.Namespace, keep: bool) -> ModelRef:
    from zerocopy._hub import from_pretrained

    options = {} if args.dtype is None else {"dtype": args.dtype}
    shown = sys.stderr.isatty() and not args.json and importlib.util.find_spec("rich") is not None
    return from_pretrained(
        args.source,
        args.auto_class,
        name=args.name,
        directory=args.directory,
        keep=keep,
        progress=shown,
        trust_remote_code=args.trust_remote_code,
        **options,
    )


def _say(ref: ModelRef, args: argparse.Namespace) -> None:
    from zerocopy._report import size

    if args.json:
        _print_json(ref.as_dict())
    else:
        print(f"{ref.name} version {ref.version}: {size(ref.nbytes)} at {ref.path}", flush=True)


def _publish(args: argparse.Namespace) -> int:
    _say(_published(args, keep=True), args)
    return 0


def _serve_weights(args: argparse.Namespace) -> int:
    from zerocopy._publish import unpublish

    ref = _published(args, keep=False)
    ended = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: ended.set())
    _say(ref, args)  # after that, who reads it may end this process
    while not ended.wait(1):  # in steps, so that a signal is seen on every system
        pass
    unpublish(ref)
    return 0


def _remove(args: argparse.Namespace) -> int:
    from zerocopy._publish import unpublish
    from zerocopy._ref import ref_of, unknown

    removed = []
    for path in list(candidates(folder_of(args.directory), args.name)):
        try:
            ref = ref_of(path)
            unpublish(ref)
        except SegmentGoneError:
            continue
        removed.append(ref)
    if not removed:
        raise unknown(folder_of(args.directory), args.name)
    if args.json:
        _print_json([ref.as_dict() for ref in removed])
    else:
        print("\n".join(f"removed {ref.name} version {ref.version}" for ref in removed))
    return 0


def _doctor(args: argparse.Namespace) -> int:
    from zerocopy._doctor import examine

    findings = examine(args.directory)
    if args.json:
        _print_json([finding.as_dict() for finding in findings])
    else:
        print("\n".join(map(str, findings)))
    return 0 if all(finding.ok for finding in findings) else 1
