"""Damaged files of every kind: a typed error or a value, soon, and within ten times the file's memory."""

from __future__ import annotations

import json
import os
import random
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from ttt_test_backends import Wanderer

import ttt
from ttt._runs.records import Records
from ttt._runs.saved import read_run
from ttt._tasks.loader import task_json
from ttt.checkpoint import CheckpointStore
from ttt.results import calibration_error, fit_curve, read_calibration

SECONDS = float(os.environ.get("TTT_FUZZ_SECONDS", "20"))
"""How long to look for faults, over all kinds of files."""
SEED = int(os.environ.get("TTT_FUZZ_SEED", "20"))
LONGEST = 1.0
"""Seconds that one file may take; CPU time, so that other programs do not count."""
ALLOWED = 2_000_000
"""Bytes that reading anything may take, besides ten times the file's size."""

PIECES = [b"{", b"}", b"[", b"]", b",", b":", b'"', b"null", b"NaN", b"1e999", b"-1", b"10", b"99999999999999999999"]
PIECES += [b"true", b"[" * 3000, b"\\u0000", b"\xff\xfe", b"\x80\x04", b"PK\x03\x04", b'"train"', b"0.5", b"\n"]


def damaged(data: bytes, rng: random.Random) -> bytes:
    """Return data with a few random changes: bytes flipped, parts cut, doubled, or replaced by telling pieces."""
    out = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 5))):
        at = rng.randrange(len(out) + 1)
        end = min(len(out), at + rng.choice((0, 1, 4, 40)))
        match rng.randrange(5):
            case 0 if out:
                out[at % len(out)] ^= 1 << rng.randrange(8)
            case 1:
                del out[at:end]
            case 2:
                out[at:at] = out[at:end] * rng.choice((1, 3))
            case 3:
                out[at:end] = rng.choice(PIECES)
            case _:
                out[at:at] = rng.choice(PIECES)
    return bytes(out[: 1 << 20])


def readers(folder: Path) -> list[tuple[Path, Callable[[], object]]]:
    """Write one sound file of each kind; return each with what reads it."""
    rng = np.random.default_rng(0)
    grids = [ttt.as_grid(rng.integers(0, 10, (6, 7)).astype(np.uint8)) for _ in range(4)]
    task = ttt.Task("t", tuple(ttt.Pair(g, g) for g in grids[:3]), (ttt.Pair(grids[3]),))
    one, many, solutions = folder / "one.json", folder / "a_challenges.json", folder / "a_solutions.json"
    one.write_text(json.dumps(task_json(task)))
    many.write_text(json.dumps({"t": task_json(task), "u": task_json(task)}))
    solutions.write_text(json.dumps({"t": [grids[3].tolist()]}))
    run = ttt.run([task], backend=Wanderer(), budget="3 steps", folder=folder / "run")
    for _ in run:
        pass
    submission = folder / "s.json"
    run.write_submission(submission)
    record = next((folder / "run" / "records").glob("*.json"))
    store = CheckpointStore(folder / "store")
    version = store.folder / f"v{store.save({'w': np.arange(50.0)}, {'step': 3}, score=1.0):08d}"
    curves = folder / "curves.json"
    made = fit_curve([0.2, 0.8], [False, True])
    curves.write_text(json.dumps({"backend": "b", "curves": {"a": {"claimed": made.claimed, "true": made.true}}}))
    return [
        (one, lambda: ttt.load(one)),
        (many, lambda: ttt.load(many)),
        (solutions, lambda: ttt.load(many)),
        (submission, lambda: ttt.score(ttt.read_submission(submission), [task])),
        (record, lambda: Records(folder / "run" / "records").get(run._keys["t"], "t")),
        (folder / "run" / "run.json", lambda: read_run(folder / "run")),
        (folder / "run" / "tasks.json", lambda: read_run(folder / "run")),
        (version / "manifest.json", store.load),
        (version / "payload.safetensors", store.load),
        (curves, lambda: calibration_error([read_calibration(curves)("a", 0.5)], [True])),
    ]


@pytest.mark.slow
@pytest.mark.timeout(SECONDS + 600)
def test_damaged_files_are_typed_errors(integration_test_dir: Path) -> None:
    """Seeded: every change of every kind of file ends in a value or a TTTError. TTT_FUZZ_SECONDS makes it longer."""
    rng = random.Random(SEED)
    kinds = readers(integration_test_dir)
    sound = [path.read_bytes() for path, _ in kinds]
    tried = 0
    tracemalloc.start()
    try:
        end = time.monotonic() + SECONDS
        while time.monotonic() < end:
            at = rng.randrange(len(kinds))
            path, read = kinds[at]
            data = damaged(sound[at], rng)
            path.write_bytes(data)
            tracemalloc.reset_peak()
            before, begun = tracemalloc.get_traced_memory()[0], time.thread_time()
            try:
                read()
            except ttt.TTTError:
                pass
            except Exception as error:
                raise AssertionError(f"{path.name}: {type(error).__name__}: {error}\n{data[:300]!r}") from error
            assert time.thread_time() - begun < LONGEST, (path.name, data[:300])
            assert tracemalloc.get_traced_memory()[1] - before < 10 * len(data) + ALLOWED, (path.name, data[:300])
            path.write_bytes(sound[at])
            tried += 1
    finally:
        tracemalloc.stop()
    assert tried > 100
