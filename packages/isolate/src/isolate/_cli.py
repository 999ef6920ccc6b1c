"""The `isolate` command: run, debug, list, lock, export, verify, repair, gc, doctor; the library does it all too."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import io
import json
import logging
import math
import os
import runpy
import sys
from collections.abc import Callable, Iterator, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from isolate import _sandbox, _sharing
from isolate._debugger import TERMINAL, printable
from isolate._environments import EnvironmentStore, default_store, find_uv
from isolate._exports import ProxiedSingleton
from isolate._extension import Extension
from isolate._host import Host
from isolate._manifest import Manifest, is_extension, read_manifest
from isolate._policy import Policy, grant, read_policy
from isolate._worker import dirty
from isolate._worker.calls import seconds_of
from isolate._worker.errors import RemoteTracebackError
from isolate.errors import ContractMismatchError, IsolateError, RemoteError

_EXAMPLES = """examples:
  isolate run plugins/stats mean '[1, 2, 3]'   call a method; arguments are JSON
  isolate debug plugins/stats mean '[1, 2, 3]' call it in pdb, stopped at its first line
  isolate list plugins                         show each extension and whether its environment is ready
  isolate lock plugins/stats                   pin versions and hashes beside the manifest
  isolate export plugins --to wheels           download all wheels for a machine without a network
  isolate verify plugins                       read every file of their environments and name what was changed
  isolate gc plugins --dry-run                 show what could be removed, keeping what these need
  isolate doctor                               show what this machine can do
"""
_NOT_BUILT = "it is not built"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="isolate",
        description="Run extensions, each in its own environment and process.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"isolate {metadata.version('pentad-isolate')}")
    parser.add_argument(
        "--store", type=Path, default=None, help=f"folder of the environments (default: {default_store()})"
    )
    parser.add_argument("--offline", action="store_true", help="build only from what uv has in its cache")
    parser.add_argument("--policy", type=Path, metavar="FILE.toml", help="what the host allows; see isolate.Policy")
    parser.add_argument("--json", action="store_true", help="print one JSON document for scripts")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    run = commands.add_parser(
        "run",
        help="load an extension and call a method, or list its methods",
        description="Build an extension's environment if needed, start it, and call one of its methods.",
        epilog="example: isolate run plugins/stats mean '[1, 2, 3]' --timeout 5",
    )
    _add_call(run, nargs="?", help="the method to call; without it, list the methods")
    run.add_argument("--timeout", type=_seconds, default=None, help="give up after this many seconds")
    run.set_defaults(do=_run)
    debug = commands.add_parser(
        "debug",
        help="call a method in the debugger",
        description="Call a method in pdb: stop at its first line, at each breakpoint(), and where it fails.",
        epilog="example: isolate debug plugins/stats mean '[1, 2, 3]'",
    )
    _add_call(debug, help="the method to call")
    debug.set_defaults(do=_debug, timeout=None)
    listing = commands.add_parser("list", help="list the extensions in a folder")
    listing.add_argument("folder", type=Path, help="an extension, or a folder of extensions")
    listing.set_defaults(do=_list)
    lock = commands.add_parser("lock", help="write isolate.lock beside each manifest")
    lock.add_argument("folders", type=Path, nargs="+", help="extensions, or folders of extensions")
    lock.set_defaults(do=_lock)
    export = commands.add_parser("export", help="download the wheels of extensions for a machine without a network")
    export.add_argument("folders", type=Path, nargs="+", help="extensions, or folders of extensions")
    export.add_argument("--to", type=Path, required=True, metavar="FOLDER", help="the folder for the wheels")
    export.set_defaults(do=_export)
    doctor = commands.add_parser("doctor", help="check what isolate needs")
    doctor.set_defaults(do=_doctor)
    gc = commands.add_parser("gc", help="remove environments that no manifest in these folders uses")
    gc.add_argument("folders", type=Path, nargs="*", help="extensions, or folders of extensions, to keep")
    gc.add_argument("--dry-run", action="store_true", help="only show what would be removed")
    gc.set_defaults(do=_gc)
    verify = commands.add_parser("verify", help="compare every file of environments with what was installed")
    verify.set_defaults(do=_verify)
    repair = commands.add_parser("repair", help="build environments anew in which a file was changed or is missing")
    repair.set_defaults(do=_repair)
    for command in (verify, repair):
        command.add_argument("folders", type=Path, nargs="+", help="extensions, or folders of extensions")
    parser.set_defaults(status=0)
    for command in commands.choices.values():  # before the command or after it
        command.add_argument("--json", action="store_true", default=argparse.SUPPRESS, help=argparse.SUPPRESS)
    return parser


def _seconds(text: str) -> float:
    try:
        return seconds_of(float(text))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of seconds") from None


def _add_call(command: argparse.ArgumentParser, **method: Any) -> None:
    command.add_argument("folder", type=Path, help="the extension's folder, or a script")
    command.add_argument("method", **method)
    command.add_argument("arguments", nargs="*", help="JSON values; anything that is not JSON is taken as text")
    command.add_argument(
        "--apis", type=Path, metavar="FILE.py", help="a Python file with ProxiedSingleton classes for it to call"
    )


@contextlib.contextmanager
def _progress(quiet: bool, plain: bool = False) -> Iterator[Callable[[str, str], None]]:
    """Show a line for each extension whose environment is being built, with a bar that moves through the stages."""
    stages = ["choosing versions", "creating the environment", "installing packages", "ready"]
    if quiet or plain or not sys.stderr.isatty():
        yield lambda name, stage: None if quiet else print(f"{name}: {stage}", file=sys.stderr)
        return
    try:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
    except ImportError:
        yield lambda name, stage: print(f"{name}: {stage}", file=sys.stderr)
        return
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        BarColumn(20),
        TextColumn("{task.fields[stage]}", markup=False),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        tasks: dict[str, Any] = {}

        def show(name: str, stage: str) -> None:
            if name not in tasks:
                tasks[name] = progress.add_task(name, total=len(stages), stage="")
            done = stages.index(stage) + 1 if stage in stages else len(stages)
            progress.update(tasks[name], completed=done, stage=stage)

        yield show


def _manifests(folders: Sequence[Path], policy: Policy) -> Iterator[tuple[Path, Manifest | IsolateError]]:
    for folder in folders:
        if is_extension(folder):
            places = [folder]
        elif folder.is_dir():
            places = sorted(path for path in folder.iterdir() if is_extension(path))
        else:
            raise FileNotFoundError(f"there is no folder {folder}")
        for place in places:
            try:
                yield place, grant(read_manifest(place), policy)[0]
            except IsolateError as failure:
                yield place, failure


def _granted(folders: Sequence[Path], policy: Policy) -> Iterator[Manifest]:
    """Yield the manifests; the first that cannot be read or granted raises."""
    for _, manifest in _manifests(folders, policy):
        if isinstance(manifest, IsolateError):
            raise manifest
        yield manifest


def _excluded(manifest: Manifest) -> list[str]:
    return [_sharing.SHARED] if manifest.share_torch else []


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


class _Printable(logging.Formatter):
    """Takes out of records what could control the terminal, as a window's title, its clipboard or an answer to type."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        return printable(super().format(record))


@contextlib.contextmanager
def _output_shown() -> Iterator[None]:
    """Show on stderr what extensions print and log."""
    logger, handler = logging.getLogger("isolate"), logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Printable())
    before, propagated = logger.level, logger.propagate
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(before)
        logger.propagate = propagated


def _export_apis(host: Host, file: Path | None) -> None:
    """Run a file and export each `ProxiedSingleton` that it defines."""
    if file is None:
        return
    if not file.is_file():
        raise FileNotFoundError(f"there is no file {file}")
    name = "isolate_apis"
    for value in runpy.run_path(str(file), run_name=name).values():
        if isinstance(value, type) and issubclass(value, ProxiedSingleton) and value.__module__ == name:
            host.export(value)


def _load(host: Host, options: argparse.Namespace) -> Extension[Any]:
    try:
        return host.load(options.folder)
    except ContractMismatchError as failure:
        if options.apis is not None:
            raise
        raise ContractMismatchError(failure.name, [*failure.differences, "--apis FILE.py exports APIs"]) from None


def _run(options: argparse.Namespace, store: EnvironmentStore) -> tuple[Any, str]:
    with contextlib.ExitStack() as stack:
        stack.enter_context(_output_shown())
        # A bar that moves would overwrite the debugger's prompt.
        with _progress(options.json, plain=options.command == "debug") as progress:
            host = stack.enter_context(
                Host(store.root, policy=store.policy, offline=options.offline, progress=progress)
            )
            _export_apis(host, options.apis)
            extension = _load(host, options)
        report = extension.report
        assert report is not None
        if options.method is None:
            lines = [
                f"{name}({', '.join(p[0] for p in m['params'] or [])})  {m['kind']}"
                for name, m in extension.methods.items()
            ]
            environment = report.environment
            if environment is not None:
                lines += ["", f"environment {environment.key} {environment.origin} in {environment.seconds:.2f} s"]
                lines += [f"  {package}" for package in environment.packages]
            lines.append(f"python {report.python}, started in {report.start_seconds:.2f} s")
            lines.append(f"enforced: {', '.join(report.sandbox.enforced) or 'dependency isolation only'}")
            lines += [f"missing: {line}" for line in report.sandbox.missing]
            lines += [f"refused: {line}" for line in report.refused]
            return extension.methods, "\n".join(lines)
        method = getattr(extension.call(timeout=options.timeout), options.method)
        value = method(*map(_value, options.arguments))
        if extension.methods[options.method]["kind"] in ("stream", "astream"):
            value = list(value)
        return value, str(value)


def _debug(options: argparse.Namespace, store: EnvironmentStore) -> tuple[Any, str]:
    TERMINAL.stop_at = options.method
    store.policy = dataclasses.replace(store.policy, allow_debugger=True)
    try:
        return _run(options, store)
    except RemoteError as failure:
        if failure.type_name != "bdb.BdbQuit":
            raise
        raise RuntimeError("isolate: the debugger was ended") from None
    finally:
        TERMINAL.stop_at = ""


def _list(options: argparse.Namespace, store: EnvironmentStore) -> tuple[Any, str]:
    rows = []
    for place, manifest in _manifests([options.folder], store.policy):
        if isinstance(manifest, IsolateError):
            rows.append({"name": place.name, "state": "broken", "detail": str(manifest)})
            continue
        try:
            key = store.key_of(manifest, _excluded(manifest))[1] if manifest.isolated else ""
            ready = not manifest.isolated or store.find(key) is not None
            state = "disabled" if not manifest.enabled else "ready" if ready else "not built"
            rows.append({"name": manifest.name, "state": state, "detail": ", ".join(manifest.dependencies), "key": key})
        except IsolateError as failure:
            rows.append({"name": manifest.name, "state": "broken", "detail": str(failure)})
    width = max((len(row["name"]) for row in rows), default=0)
    return rows, "\n".join(f"{row['name']:<{width}}  {row['state']:<9}  {row['detail']}" for row in rows)


def _lock(options: argparse.Namespace, store: EnvironmentStore) -> tuple[Any, str]:
    locked = {}
    with _progress(options.json) as progress:
        building = EnvironmentStore(store.root, store.policy, offline=options.offline, progress=progress)
        for manifest in _granted(options.folders, store.policy):
            text = building.lock(manifest, _excluded(manifest))
            locked[manifest.name] = [line.split(" ")[0] for line in text.splitlines() if "==" in line]
    return locked, "\n".join(f"{name}: {', '.join(pins) or 'no packages'}" for name, pins in locked.items())


def _export(options: argparse.Namespace, store: EnvironmentStore) -> tuple[Any, str]:
    exported = {}
    with _progress(options.json) as progress:
        loading = EnvironmentStore(store.root, store.policy, offline=options.offline, progress=progress)
        for manifest in _granted(options.folders, store.policy):
            exported[manifest.name] = loading.export(manifest, options.to, _excluded(manifest))
    lines = [f"{name}: {len(files)} new wheels" for name, files in exported.items()]
    return exported, "\n".join(
        [*lines, f"use them there with --offline and find_links = [{str(options.to)!r}] in --policy"]
    )


def _damages(options: argparse.Namespace, store: EnvironmentStore) -> Iterator[tuple[Manifest, str, list[str]]]:
    """Yield each manifest with the key of its environment and what has changed in it, or that it was never built."""
    built = store.all_keys()
    for manifest in _granted(options.folders, store.policy):
        if manifest.isolated:
            key = store.key_of(manifest, _excluded(manifest))[1]
            yield manifest, key, store.verify(key) if key in built else [_NOT_BUILT]


def _verify(options: argparse.Namespace, store: EnvironmentStore) -> tuple[Any, str]:
    rows, lines = [], []
    for manifest, key, changes in _damages(options, store):
        rows.append({"name": manifest.name, "key": key, "changes": changes})
        if changes == [_NOT_BUILT]:
            lines.append(f"{manifest.name}: not built")
        else:
            lines.append(f"{manifest.name}: {'damaged' if changes else 'as installed'}")
            lines += [f"  {change}" for change in changes]
        options.status = options.status or bool(changes)
    return rows, "\n".join(lines)


def _repair(options: argparse.Namespace, store: EnvironmentStore) -> tuple[Any, str]:
    rows = []
    with _progress(options.json) as progress:
        building = EnvironmentStore(store.root, store.policy, offline=options.offline, progress=progress)
        for manifest, key, changes in _damages(options, store):
            if changes:
                building.ensure(manifest, _excluded(manifest), anew=True)
                rows.append({"name": manifest.name, "key": key, "changes": changes})
    return rows, "\n".join(f"{row['name']}: built anew" for row in rows) or "nothing to repair"


def _doctor(_options: argparse.Namespace, store: EnvironmentStore) -> tuple[Any, str]:
    try:
        uv = find_uv()
    except IsolateError as failure:
        uv = ""
        problem = str(failure)
    else:
        problem = ""
    untracked = dirty.available()
    found = {
        "uv": {"ok": bool(uv), "detail": uv or problem},
        "store": {"ok": True, "detail": f"{store.root}, {len(store.all_keys())} environments"},
        "shared memory": {"ok": hasattr(os, "memfd_create"), "detail": "anonymous memory files"},
        "unchanged arrays": {"ok": not untracked, "detail": untracked or "are passed again without a copy"},
        **{f"sandbox {level}": {"ok": not why, "detail": why} for level, why in _sandbox.available().items()},
    }
    text = "\n".join(f"{'ok' if row['ok'] else '--'}  {name:<18}{row['detail']}" for name, row in found.items())
    return found, text


def _gc(options: argparse.Namespace, store: EnvironmentStore) -> tuple[Any, str]:
    keep = set()
    for place, manifest in _manifests(options.folders, store.policy):
        if isinstance(manifest, IsolateError):
            raise IsolateError(
                f"{place.name} cannot be read, so what it uses is unknown; nothing was removed: {manifest}"
            )
        if manifest.isolated:
            keep.add(store.key_of(manifest, _excluded(manifest))[1])
    removed = store.gc(keep, options.dry_run)
    verb = "would remove" if options.dry_run else "removed"
    lines = [f"{verb} {key}  {size / 1e6:.1f} MB" for key, size in removed]
    return [{"key": key, "bytes": size} for key, size in removed], "\n".join(lines) or "nothing to remove"


def _is_of_method(failure: Exception) -> bool:
    """Return whether the called method raised this error of the system, or one of a type that is not known here."""
    return isinstance(failure, RemoteError) or (
        isinstance(failure.__cause__, RemoteTracebackError) and not isinstance(failure, IsolateError)
    )


def _json(value: Any) -> str:
    """Return a value as JSON; what has no form there, a key or a NaN too, is text."""
    try:
        return json.dumps(value, default=str, indent=2, allow_nan=False)
    except (TypeError, ValueError):
        return json.dumps(_plain(value), default=str, indent=2)


def _plain(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {key if isinstance(key, str | int | None) else str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value


def _complete(options: argparse.Namespace) -> tuple[int, Any, str]:
    """Run the command; return the exit status, the JSON value, and the text for people."""
    try:
        policy = read_policy(options.policy) if options.policy is not None else Policy()
        value, text = options.do(options, EnvironmentStore(options.store, policy, offline=options.offline))
    except KeyboardInterrupt:
        message = "interrupted; nothing half built is left in use"
        return 130, {"error": "KeyboardInterrupt", "message": message}, f"isolate: {message}"
    except Exception as failure:
        if isinstance(failure, (IsolateError, OSError)) and not _is_of_method(failure):
            message = " ".join(str(failure).split())
            return 2, {"error": type(failure).__name__, "message": message}, f"isolate: {message}"
        shown = {"error": type(failure).__name__, "message": str(failure), "traceback": str(failure.__cause__ or "")}
        return 1, shown, str(failure.__cause__ or failure)
    return int(options.status), value, text


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command.

    Returns:
        0 if it did what was asked, 1 if the called method raised or `verify` found a change, 2 for any other error,
        130 after Ctrl-C.
    """
    for name in ("stdin", "stdout", "stderr"):
        if getattr(sys, name) is None:  # it was closed before we started; another file would get its number
            setattr(sys, name, open(os.devnull, "r" if name == "stdin" else "w"))  # noqa: SIM115 - it stays open
    if isinstance(sys.stdout, io.TextIOWrapper) and not sys.stdout.encoding.lower().startswith("utf"):
        sys.stdout.reconfigure(errors="backslashreplace")  # which lacks characters of names and pictures
    options = _parser().parse_args(argv)
    status, value, text = _complete(options)
    stream = sys.stderr if status and not options.status and not options.json else sys.stdout
    try:
        if options.json:
            text = _json(value)
        elif stream.isatty():
            text = printable(text)
        print(text, file=stream, flush=True)
    except ValueError as failure:  # a number of too many digits
        print(f"isolate: {failure}", file=sys.stderr)
        return status or 2
    except OSError as failure:
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())  # what is left in the buffer fails at exit too
        if not isinstance(failure, BrokenPipeError):  # whose reader has enough
            print(f"isolate: the output cannot be written: {failure.strerror}", file=sys.stderr)
            return status or 2
    return status


if __name__ == "__main__":
    sys.exit(main())
