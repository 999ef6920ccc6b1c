"""Reads ARC JSON strictly; an error names task, pair, row and column."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ttt._files import read_regular
from ttt.errors import InvalidTaskError, UnreadableFileError
from ttt.values import Pair, Task, as_grid

MAX_BYTES = 64 << 20
"""Largest file that is read; the largest public ARC file is about 5 MB."""
MAX_PAIRS = 100
"""Most training or test pairs in one task."""
PAIRS_PER_TASK = 5
"""Generated pairs that become one task: the last one is its test."""
MAX_ID = 200
"""Longest task id, in characters."""


@dataclass(frozen=True, slots=True)
class Rejected:
    """A refused task: its id, its apparent number of test inputs, and the reason.

    Example:
        >>> ttt.Rejected("broken", tests=1, reason="has no 'train'").reason
        "has no 'train'"

    Attributes:
        id: The task's id.
        tests: How many test inputs it seems to have.
        reason: Why it was refused.
    """

    id: str
    tests: int
    reason: str


def read_json(path: Path, max_bytes: int = MAX_BYTES) -> Any:
    """Read one JSON file more strictly than Python's json does.

    Raises:
        UnreadableFileError: Too large, not UTF-8, not JSON, NaN or infinity, a duplicate key, nested too deep.
    """
    try:
        data = read_regular(path, max_bytes)
    except OSError as error:
        raise UnreadableFileError(f"{path}: cannot be read: {error.strerror}") from error
    return parse_json(data, str(path))


def parse_json(data: bytes, where: str) -> Any:
    """Parse UTF-8 JSON strictly; `where` names it in messages. See read_json."""
    if data[:2] == b"\x1f\x8b" or data[:4] == b"PK\x03\x04":
        raise UnreadableFileError(f"{where}: is compressed; unpack it first")
    if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise UnreadableFileError(f"{where}: is UTF-16 or UTF-32, wanted UTF-8; save it as UTF-8")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UnreadableFileError(f"{where}: byte {error.start} is not UTF-8; save it as UTF-8") from error
    if "\x00" in text[:4]:
        raise UnreadableFileError(f"{where}: holds zero bytes, as UTF-16 does; save it as UTF-8")
    try:
        return json.loads(text, object_pairs_hook=_no_duplicates, parse_constant=_no_constant)
    except json.JSONDecodeError as error:
        raise UnreadableFileError(
            f"{where}: line {error.lineno}, column {error.colno}: not JSON: {error.msg}"
        ) from error
    except RecursionError as error:
        raise UnreadableFileError(f"{where}: nested too deep") from error
    except ValueError as error:
        raise UnreadableFileError(f"{where}: {error}") from error


def _no_duplicates(items: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in items:
        if key in found:
            raise ValueError(f"the key {key[:60]!r} occurs twice in one object")
        found[key] = value
    return found


def _no_constant(name: str) -> Any:
    raise ValueError(f"holds {name}, which is not JSON and no colour")


def looks_like_task(value: Any) -> bool:
    """Return whether parsed JSON is one task rather than a collection of tasks."""
    return isinstance(value, dict) and ("train" in value or "test" in value)


def looks_like_pairs(value: Any) -> bool:
    """Return whether parsed JSON is a list of pairs, as generators of pairs write it."""
    return isinstance(value, list) and bool(value) and all(isinstance(p, dict) and "input" in p for p in value)


def looks_like_answers(value: Any) -> bool:
    """Return whether parsed JSON is a submission: answers by task id, and no tasks."""
    return isinstance(value, dict) and any(
        isinstance(entry, list) and entry and isinstance(entry[0], dict) and "attempt_1" in entry[0]
        for entry in value.values()
    )


def parse_pairs(name: str, pairs: list[Any]) -> tuple[list[Task], list[Rejected]]:
    """Check a list of generated pairs and cut it into tasks, `name-0` first; a last part of one pair is left out.

    A task with a bad pair is rejected, the others are kept.
    """
    parts = [pairs[i : i + PAIRS_PER_TASK] for i in range(0, len(pairs), PAIRS_PER_TASK)]
    made = {f"{name}-{n}": {"train": part[:-1], "test": part[-1:]} for n, part in enumerate(parts) if len(part) > 1}
    if not made:
        return [], [Rejected(name, 1, f"task {name}: has one pair, wanted two or more")]
    return parse_collection(made, name)


def parse_task(task_id: str, value: Any, solutions: Any = None) -> Task:
    """Check one parsed task.

    Args:
        task_id: Its id, from the file name or the key.
        value: `{"train": [{"input": …, "output": …}], "test": [{"input": …}]}`; a
            test output may be null or []; other keys are ignored.
        solutions: The outputs of its test inputs, in order, from a separate solutions file.

    Raises:
        InvalidTaskError: The task breaks the format; the message gives task, pair, row and column.
    """
    if not task_id or len(task_id) > MAX_ID or not task_id.isprintable():
        raise InvalidTaskError(f"task id {task_id[:60]!r}: wanted 1 to {MAX_ID} printable characters")
    where = f"task {task_id}"
    if not isinstance(value, dict):
        raise InvalidTaskError(f"{where}: got {type(value).__name__}, wanted an object with 'train' and 'test'")
    train = _pairs(value, "train", where, outputs=True)
    test = _pairs(value, "test", where, outputs=False)
    if solutions is not None:
        if not isinstance(solutions, list) or len(solutions) != len(test):
            got = len(solutions) if isinstance(solutions, list) else type(solutions).__name__
            raise InvalidTaskError(f"{where}: got {got} solutions for {len(test)} test inputs")
        test = tuple(
            Pair(pair.input, None if _unknown(cells) else as_grid(cells, f"{where}, solution {i}"))
            for i, (pair, cells) in enumerate(zip(test, solutions, strict=True))
        )
    return Task(task_id, train, test)


def _pairs(value: dict[str, Any], key: str, where: str, *, outputs: bool) -> tuple[Pair, ...]:
    pairs = value.get(key)
    if not isinstance(pairs, list):
        got = "nothing" if key not in value else type(pairs).__name__
        raise InvalidTaskError(f"{where}: {key!r}: got {got}, wanted a list of pairs")
    if not 1 <= len(pairs) <= MAX_PAIRS:
        raise InvalidTaskError(f"{where}: has {len(pairs)} {key} pairs, wanted 1 to {MAX_PAIRS}")
    return tuple(_pair(p, f"{where}, {key} pair {i}", outputs=outputs) for i, p in enumerate(pairs))


def _pair(value: Any, where: str, *, outputs: bool) -> Pair:
    if not isinstance(value, dict):
        raise InvalidTaskError(f"{where}: got {type(value).__name__}, wanted an object with 'input'")
    if "input" not in value:
        raise InvalidTaskError(f"{where}: has no 'input'")
    given = as_grid(value["input"], f"{where}, input")
    if outputs and "output" not in value:
        raise InvalidTaskError(f"{where}: has no 'output'")
    if not outputs and _unknown(value.get("output")):
        return Pair(given)
    return Pair(given, as_grid(value["output"], f"{where}, output"))


def _unknown(output: Any) -> bool:
    """Return whether a test output is left open: absent, null or an empty list."""
    return output is None or output == []


def parse_collection(value: Any, where: str, solutions: Any = None) -> tuple[list[Task], list[Rejected]]:
    """Check `{id: task}` with an optional `{id: [output, …]}`; a bad task is rejected, the others are kept.

    Raises:
        UnreadableFileError: The value is not an object.
    """
    if not isinstance(value, Mapping):
        raise UnreadableFileError(f"{where}: got {type(value).__name__}, wanted one task or an object of tasks by id")
    if solutions is not None and not isinstance(solutions, Mapping):
        raise UnreadableFileError(f"{where}: solutions: got {type(solutions).__name__}, wanted an object by id")
    tasks: list[Task] = []
    rejected: list[Rejected] = []
    for task_id, raw in value.items():
        try:
            tasks.append(parse_task(task_id, raw, None if solutions is None else solutions.get(task_id)))
        except InvalidTaskError as error:
            rejected.append(Rejected(task_id, count_tests(raw), str(error)))
    return tasks, rejected


def count_tests(raw: Any) -> int:
    """Return the apparent number of test inputs of a refused task, at least one."""
    tests = raw.get("test") if isinstance(raw, dict) else None
    return min(max(len(tests), 1), MAX_PAIRS) if isinstance(tests, list) else 1


def task_json(task: Task) -> dict[str, Any]:
    """Return a task as a JSON object in the original format."""

    def pair(p: Pair) -> dict[str, Any]:
        known = {} if p.output is None else {"output": p.output.tolist()}
        return {"input": p.input.tolist(), **known}

    return {"train": [pair(p) for p in task.train], "test": [pair(p) for p in task.test]}
