"""Tests the tests: breaks one promise at a time in a copy of the checkout, and expects the tests that guard it to fail.

    uv run tools/mutation.py                     every mutation of tools/mutations.toml
    uv run tools/mutation.py zerocopy isolate    those of two packages
    uv run tools/mutation.py --only lease        those whose text has a word
    uv run tools/mutation.py --new               those that the page has no run of
    uv run tools/mutation.py --list              show them and run nothing
    uv run tools/mutation.py ttt --part 1/3      a third of a package's
    uv run tools/mutation.py ttt --write         also write packages/mutations.md, with each verdict

A mutation replaces one text of one file. It is *seen* if its tests fail, and it *survives* if they pass: then a test is
missing. First the named tests run once without a mutation, because a test that fails anyway sees nothing. A C file is
compiled again. The checkout itself is not changed, and the copy is removed at the end, also after Ctrl-C.

The exit status is 0 if every mutation was seen, 1 if one survived, and 2 if the table is wrong or a test fails without
a mutation.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import datetime
import gc
import importlib
import json
import os
import re
import runpy
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import tomllib
import types
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NoReturn
from unittest import mock

import pytest

ROOT = Path(__file__).resolve().parent.parent
TABLE = Path("tools/mutations.toml")
PAGE = Path("packages/mutations.md")
_INTERFACE = "hatchling.builders.hooks.plugin.interface"
SEEN, SURVIVED, WRONG, NEVER = "seen", "survived", "error", "never"
HEAD = """# Broken promises, and the tests that notice

A passing test says little if it also passes without the code that it guards. `uv run tools/mutation.py` breaks one
promise at a time in a copy of the repository, and runs the tests that should notice (mutation testing). A mutation that
survives fails the nightly run. This page is made of `tools/mutations.toml`, which holds the exact changes.
"""


class TableError(Exception):
    """An entry of the table cannot be used; the message says which and why."""


@dataclasses.dataclass(frozen=True)
class Mutation:
    """One way to break a promise."""

    package: str
    promise: str
    """What users are promised, in one sentence."""
    change: str
    """What the mutation does, in a few words."""
    file: str
    """The file below the package's folder."""
    old: str
    new: str
    tests: tuple[str, ...]
    """Node ids below the package's `tests` folder, or from the repository's root if they start with `tests/`."""
    limit: float = 200
    """Seconds that the tests may take."""
    hangs: bool = False
    """Whether reaching the limit counts as seen: without its rule this code waits for ever."""

    @property
    def path(self) -> Path:
        """The file, from the repository's root."""
        return Path("packages", self.package, self.file)

    @property
    def node_ids(self) -> list[str]:
        """The tests, from the repository's root."""
        return [test if test.startswith("tests/") else f"packages/{self.package}/tests/{test}" for test in self.tests]

    def applied(self, text: str) -> str:
        """Return the file's text with the mutation.

        Args:
            text: The file's text without it.

        Raises:
            TableError: The old text is not in the file exactly once, or the new one is the same.
        """
        if (count := text.count(self.old)) != 1:
            raise TableError(f"{self.change!r}: {self.path} has the old text {count} times, want once")
        if self.new == self.old:
            raise TableError(f"{self.change!r}: the new text is the old one")
        return text.replace(self.old, self.new)


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What became of one mutation."""

    mutation: Mutation
    verdict: str
    seconds: float
    detail: str
    """The first failure of the tests, or why there is none."""


def mutations(root: Path = ROOT) -> list[Mutation]:
    """Return the table's mutations.

    Args:
        root: The checkout.

    Raises:
        TableError: An entry has unknown or missing fields, or two entries have the same words.
    """
    found = []
    for package, entries in tomllib.loads((root / TABLE).read_text()).items():
        for entry in entries:
            try:
                found.append(Mutation(package, **(entry | {"tests": tuple(entry.get("tests", ()))})))
            except TypeError as error:
                raise TableError(f"{package}: {entry.get('change', entry)}: {error}") from None
    changes = [(mutation.package, mutation.change) for mutation in found]
    if twice := {change for change in changes if changes.count(change) > 1}:
        raise TableError(f"two entries have the same words: {sorted(twice)}")
    return found


class Copy:
    """A copy of a checkout in which files are mutated and tests run."""

    def __init__(self, root: Path, folder: Path) -> None:
        """Copy the files that git knows or would add, and the compiled cores.

        Args:
            root: The checkout.
            folder: An empty folder.
        """
        self.root = folder
        self._basetemp = folder.parent / "t"
        listed = subprocess.run(
            ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
            cwd=root,
            check=True,
            capture_output=True,
            text=True,
        ).stdout
        cores = [str(core.relative_to(root)) for core in root.glob("packages/*/src/**/*.so")]
        for name in [*filter(None, listed.split("\0")), *cores]:
            if (root / name).is_file():
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(root / name, folder / name)

    @contextlib.contextmanager
    def mutated(self, mutation: Mutation) -> Iterator[None]:
        """Hold a mutation for a block, compiled if it is C.

        Args:
            mutation: The mutation.

        Raises:
            TableError: It does not fit the file, or it does not compile.
        """
        file = self.root / mutation.path
        text = file.read_text()
        changed = mutation.applied(text)
        compiled = file.suffix in (".c", ".h")
        core, kept = None, b""
        try:
            file.write_text(changed)
            if compiled:
                place, compile_core = self._builder(mutation.package)
                package = self.root / "packages" / mutation.package
                if not (package / place).exists():
                    raise TableError(f"{mutation.change!r}: {package / place} is not compiled here")
                core = package / place
                kept = core.read_bytes()
                core.unlink()
                if why := compile_core(package, core):
                    raise TableError(f"{mutation.change!r}: {why}")
            self._forget_bytecode(mutation.package)
            yield
        finally:
            file.write_text(text)
            if core is not None:
                core.unlink(missing_ok=True)
                core.write_bytes(kept)
            self._forget_bytecode(mutation.package)

    def _builder(self, package: str) -> tuple[Path, Callable[[Path, Path], str | None]]:
        # hatchling is there only while a wheel is built; its base class is all that the file needs.
        interface = types.ModuleType(_INTERFACE)
        interface.BuildHookInterface = object  # type: ignore[attr-defined]
        parts = _INTERFACE.split(".")
        stand_ins = {".".join(parts[:end]): types.ModuleType(parts[end - 1]) for end in range(1, len(parts))}
        with mock.patch.dict(sys.modules, stand_ins | {_INTERFACE: interface}):
            hook = runpy.run_path(str(self.root / "packages" / package / "hatch_build.py"))
        return hook["CORE"], hook["compile_core"]

    def _forget_bytecode(self, package: str) -> None:
        # Python compares times and sizes only: a quick mutation of the same length would not be noticed.
        for folder in (self.root / "packages" / package / "src").rglob("__pycache__"):
            shutil.rmtree(folder, ignore_errors=True)

    def pytest(self, node_ids: Sequence[str], limit: float) -> tuple[int | None, str]:
        """Run tests and return pytest's exit status, None after the limit, and its output.

        Args:
            node_ids: The tests.
            limit: Seconds.
        """
        with tempfile.TemporaryFile() as output:
            pid = os.fork()
            if pid == 0:
                self._run_here(node_ids, output.fileno())
            try:
                status = _wait(pid, limit)
            finally:
                # What the tests started is in their group and ends with them.
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(pid, signal.SIGKILL)
            if status is None:
                os.waitpid(pid, 0)
            output.seek(0)
            text = output.read().decode(errors="replace")
        # pytest-timeout ends a test in its own way, which is no verdict of the test.
        return (None if "+ Timeout +" in text else status), text

    def _run_here(self, node_ids: Sequence[str], output: int) -> NoReturn:
        """Run tests in this process, a fork that has the large libraries already, and end it."""
        status: int = 70
        try:
            os.setsid()
            gc.freeze()  # pytest collects five times at its end, which would copy all memory of this process
            for number in (signal.SIGINT, signal.SIGTERM):
                signal.signal(number, signal.SIG_DFL if number == signal.SIGTERM else signal.default_int_handler)
            os.dup2(output, 1)
            os.dup2(output, 2)
            sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w")
            os.chdir(self.root)
            # The copy's packages come before the installed ones, here and in processes that the tests start.
            sources = [str(path) for path in sorted(self.root.glob("packages/*/src"))]
            sys.path[:1] = sources
            sys.dont_write_bytecode, sys.pycache_prefix = True, None
            os.environ.pop("PYTHONPYCACHEPREFIX", None)  # none that outlives a mutation
            os.environ.update(PYTHONPATH=os.pathsep.join(sources), PYTHONDONTWRITEBYTECODE="1")
            options = ["-x", "-q", "-p", "no:cacheprovider", "-m", "", "--tb=short", f"--basetemp={self._basetemp}"]
            status = int(pytest.main([*options, *node_ids]))
            sys.stdout.flush()
        finally:
            os._exit(status)


def _wait(pid: int, limit: float) -> int | None:
    """Return the exit status of a child, negative for a signal, or None if it still runs after so many seconds."""
    end = time.monotonic() + limit
    while time.monotonic() < end:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.02)
    return None


def tested(root: Path, chosen: Sequence[Mutation]) -> set[Path]:
    """Return the files with the mutations' tests, and those that pytest reads with them.

    Args:
        root: The checkout.
        chosen: The mutations.
    """
    files = {root / test.partition("::")[0] for mutation in chosen for test in mutation.node_ids}
    return files | {file for each in files if (file := each.with_name("conftest.py")).exists()}


@contextlib.contextmanager
def copied(root: Path) -> Iterator[Copy]:
    """Make a copy of a checkout for a block; it is removed also after Ctrl-C and SIGTERM.

    Args:
        root: The checkout.
    """

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, stop)
    try:
        with tempfile.TemporaryDirectory(prefix="mutation-", ignore_cleanup_errors=True) as place:
            # Tests that become another user read the code too.
            os.chmod(place, 0o755)
            folder = Path(place, "checkout")
            folder.mkdir()
            yield Copy(root, folder)
    finally:
        signal.signal(signal.SIGTERM, before)


def first_failure(output: str) -> str:
    """Return the test that failed first and its error, of pytest's output.

    Args:
        output: What pytest printed.
    """
    failed = re.search(r"^FAILED (?:\S*/)?(.*?)(?: - .*)?$", output, re.MULTILINE)
    failed = failed or re.search(r"^ERROR (?:\S*/)?(.*?)(?: - .*)?$", output, re.MULTILINE)
    # Before the failures pytest shows what went wrong in the clean-up after them.
    shown = output[max(0, output.find("= FAILURES =")) :]
    error = re.search(r"^E +(.*)$", shown, re.MULTILINE)
    return ": ".join(match[1][:160] for match in (failed, error) if match) or output.strip()[-300:]


def examine(copy: Copy, mutation: Mutation) -> Outcome:
    """Apply one mutation, run its tests and say what became of it.

    Args:
        copy: Where.
        mutation: The mutation.
    """
    start = time.monotonic()
    try:
        with copy.mutated(mutation):
            status, output = copy.pytest(mutation.node_ids, mutation.limit)
    except TableError as error:
        return Outcome(mutation, WRONG, time.monotonic() - start, str(error))
    if status is None:
        verdict = SEEN if mutation.hangs else WRONG
        detail = f"the tests did not end within {mutation.limit:.0f} s"
    elif status == 0:
        verdict, detail = SURVIVED, "the tests pass"
    elif status == 1:
        verdict, detail = SEEN, first_failure(output)
    elif status < 0:
        verdict, detail = SEEN, f"the tests are ended by {signal.Signals(-status).name}"
    else:
        verdict, detail = WRONG, f"pytest ended with {status}: {first_failure(output)}"
    return Outcome(mutation, verdict, time.monotonic() - start, detail)


def page(known: Sequence[Mutation], verdicts: Mapping[tuple[str, str], str]) -> str:
    """Return the page that lists the mutations.

    Args:
        known: All mutations of the table.
        verdicts: By package and words, the verdict of a mutation's last run and its day.
    """
    lines = [HEAD]
    for package in dict.fromkeys(mutation.package for mutation in known):
        own = [mutation for mutation in known if mutation.package == package]
        last = [verdicts.get((package, mutation.change), NEVER) for mutation in own]
        counted = Counter(verdict.split(" ")[0] for verdict in last)
        days = sorted(verdict.split(" ")[1] for verdict in last if verdict != NEVER)
        sentence = f"{len(own)} mutations: {counted[SEEN]} seen, {len(days) - counted[SEEN]} not, "
        sentence += f"{len(own) - len(days)} never run."
        if days:
            sentence += f" Last runs: {days[0]}." if days[0] == days[-1] else f" Last runs: {days[0]} to {days[-1]}."
        lines += [f"## {package}", "", sentence, ""]
        lines += ["| promise | broken by | in | seen by | last run |", "|---|---|---|---|---|"]
        for mutation, verdict in zip(own, last, strict=True):
            tests = ", ".join(f"`{test.removeprefix('tests/')}`" for test in mutation.tests)
            place = mutation.file.removeprefix(f"src/{package}/")
            lines.append(f"| {mutation.promise} | {mutation.change} | `{place}` | {tests} | {verdict} |")
        lines.append("")
    return "\n".join(lines).rstrip() + "\n"


def last_verdicts(text: str) -> dict[tuple[str, str], str]:
    """Return by package and words the verdict of each mutation's last run and its day, from a page.

    Args:
        text: The page.
    """
    found = {}
    for section in re.split(r"^## ", text, flags=re.MULTILINE)[1:]:
        package = section.split("\n", 1)[0]
        for row in re.findall(r"^\| [^|]* \| ([^|]*) \| .* \| (\w+ \d[\d-]+) \|$", section, re.MULTILINE):
            found[package, row[0]] = row[1]
    return found


def written(root: Path) -> dict[tuple[str, str], str]:
    """Return the verdicts of the page, none if there is no page.

    Args:
        root: The checkout.
    """
    return last_verdicts((root / PAGE).read_text()) if (root / PAGE).exists() else {}


def run(root: Path, chosen: Sequence[Mutation], show: Callable[[str], None]) -> Iterator[Outcome]:
    """Run the tests without a mutation and then with each; yield what became of it.

    Args:
        root: The checkout.
        chosen: The mutations.
        show: Called with each line of progress.

    Raises:
        TableError: A test fails without a mutation.
    """
    with copied(root) as copy:
        tests = list(dict.fromkeys(test for mutation in chosen for test in mutation.node_ids))
        show(f"{len(tests)} tests without a mutation")
        for library in ("numpy", "torch"):  # every run of tests is a fork that has them already, if it needs them
            if any(f"import {library}" in file.read_text() for file in tested(copy.root, chosen)):
                importlib.import_module(library)
        # One limit for all of them, which a loaded machine keeps too.
        status, output = copy.pytest(tests, limit=200 + 20 * len(tests))
        if status != 0:
            raise TableError(f"without a mutation pytest ended with {status}: {first_failure(output)}")
        for number, mutation in enumerate(chosen, 1):
            outcome = examine(copy, mutation)
            took = f"{outcome.verdict} after {outcome.seconds:.1f} s"
            show(f"{number}/{len(chosen)} {took}: {mutation.package}: {mutation.change}")
            show(f"      {outcome.detail}")
            yield outcome


def part(text: str) -> tuple[int, int]:
    """Return the numbers of a text such as `2/3`.

    Args:
        text: Which part, and of how many.

    Raises:
        ValueError: It is no such text.
    """
    number, count = map(int, text.split("/"))
    if not 1 <= number <= count:
        raise ValueError(text)
    return number, count


def main(argv: list[str] | None = None, root: Path = ROOT) -> int:
    """Run the mutations that the arguments choose; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("packages", nargs="*", help="only these packages")
    parser.add_argument(
        "--only", metavar="TEXT", default="", help="only mutations with this text in an entry's words or file"
    )
    parser.add_argument("--new", action="store_true", help=f"only mutations that {PAGE} has no run of")
    parser.add_argument("--list", action="store_true", help="show the mutations and run nothing")
    parser.add_argument("--json", action="store_true", help="print the outcomes as JSON; progress goes to stderr")
    parser.add_argument(
        "--write", action="store_true", help=f"write {PAGE}, with the verdict on each mutation after its run"
    )
    parser.add_argument("--part", type=part, default=(1, 1), metavar="I/N", help="only the I-th of N parts")
    args = parser.parse_args(argv)
    try:
        known = mutations(root)
        chosen = [m for m in known if not args.packages or m.package in args.packages]
        chosen = [m for m in chosen if args.only.lower() in f"{m.promise} {m.change} {m.file}".lower()]
        before = written(root)
        chosen = [m for m in chosen if not args.new or (m.package, m.change) not in before]
        chosen = chosen[args.part[0] - 1 :: args.part[1]]
        if not chosen:
            raise TableError(f"no mutation fits; packages are {', '.join(dict.fromkeys(m.package for m in known))}")
        if args.list:
            for mutation in chosen:
                print(f"{mutation.package}: {mutation.change} ({mutation.path})")
            return 0
        outcomes, day = [], datetime.datetime.now(datetime.UTC).date()
        for outcome in run(root, chosen, lambda line: print(line, file=sys.stderr, flush=True)):
            outcomes.append(outcome)
            if args.write:  # now, for the case that this run is interrupted; another one may have written meanwhile
                key = outcome.mutation.package, outcome.mutation.change
                (root / PAGE).write_text(page(known, written(root) | {key: f"{outcome.verdict} {day}"}))
    except TableError as error:
        print(f"mutation: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("mutation: interrupted; the copy is removed", file=sys.stderr)
        return 130
    if args.json:
        print(json.dumps([dataclasses.asdict(outcome) for outcome in outcomes], indent=2))
    print(f"{len(outcomes)} mutations, {sum(o.verdict == SEEN for o in outcomes)} seen", file=sys.stderr)
    for outcome in outcomes:
        if outcome.verdict != SEEN:
            place = f"{outcome.mutation.package}: {outcome.mutation.change}"
            print(f"{outcome.verdict}: {place}: {outcome.detail}", file=sys.stderr)
    verdicts = {outcome.verdict for outcome in outcomes}
    return 2 if WRONG in verdicts else 1 if SURVIVED in verdicts else 0


if __name__ == "__main__":
    sys.exit(main())
