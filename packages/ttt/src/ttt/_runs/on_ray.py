"""Tasks on a Ray cluster: each Ray task supervises a worker process on its node, so that budgets are enforced there."""

from __future__ import annotations

import contextlib
import pickle
import queue
import sys
import threading
from collections import deque
from dataclasses import replace
from typing import Any

from ttt._backend import sharing
from ttt._events import Event, Finished, TaskResult
from ttt._runs.supervise import Job, supervise
from ttt.errors import MissingExtraError
from ttt.results import choose

Sink = queue.SimpleQueue[Event | BaseException | None]


def connect() -> bool:
    """Connect to the cluster that Ray finds, or start one on this machine; return whether it was started here.

    Raises:
        MissingExtraError: Ray is not installed.
    """
    try:
        import ray
    except ImportError as error:
        raise MissingExtraError('the Ray pool needs Ray: pip install "pentad-ttt[ray]"') from error
    if ray.is_initialized():
        return False
    ray.init(include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    return True


def _solve_on_node(path: list[str], job: bytes) -> Any:
    """Yield the events of one task; runs in a Ray worker, which may not have the driver's import path."""
    sys.path += [p for p in path if p not in sys.path]
    mine: Job = pickle.loads(job)
    with sharing(mine.backend) as backend:
        yield from supervise(replace(mine, backend=backend), threading.Event())


def drive(jobs: list[Job], events: Sink, stop: threading.Event, workers: int, started: bool) -> None:
    """Queue the events of all jobs, at most `workers` at a time, then None; shut Ray down if `connect` started it."""
    import ray

    try:
        remote = ray.remote(num_cpus=1, num_returns="streaming", max_retries=2)(_solve_on_node)
        waiting = deque(jobs)
        running: dict[Any, Job] = {}
        while (waiting and not stop.is_set()) or running:
            while waiting and len(running) < workers and not stop.is_set():
                job = waiting.popleft()
                running[remote.remote([p for p in sys.path if p], pickle.dumps(job))] = job
            if stop.is_set():
                for stream in running:
                    with contextlib.suppress(Exception):  # a stream that has just ended cannot be cancelled
                        ray.cancel(stream)
                break
            for stream in ray.wait(list(running), num_returns=1, timeout=0.2)[0]:
                try:
                    events.put(ray.get(next(stream)))
                except StopIteration:
                    running.pop(stream)
                except ray.exceptions.RayError as error:
                    events.put(_lost(running.pop(stream), error))
    except BaseException as error:
        events.put(error)
    finally:
        if started:
            ray.shutdown()
        events.put(None)


def _lost(job: Job, error: Exception) -> Finished:
    said = str(error).strip().splitlines()
    text = f"WorkerDiedError: the Ray task was lost: {said[-1] if said else type(error).__name__}"
    return Finished(job.task.id, TaskResult(job.task.id, choose(job.task, None), "failed", error=text))
