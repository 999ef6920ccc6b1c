"""The pool on a Ray cluster: an actor on each node runs a pool of that node's processes.

Budgets are enforced and work folders lie on the node; events come back in batches. A node where the actor cannot
start, for example without ttt, is left out, and the tasks of a node that dies go to others.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import psutil

from ttt._backend import Backend, preflight, sharing
from ttt._events import Finished, Improved
from ttt._runs.devices import slots_of, uses_gpu, visible_gpus
from ttt._runs.pool import Brought, LocalPool, Lost, Message, Note
from ttt._runs.supervise import INTERRUPT_GRACE, Job
from ttt._runs.work_folder import pack, unpack
from ttt.errors import MissingExtraError, TTTError

BATCH = 0.25
"""Seconds for which a node collects events before it sends them."""
WAIT = 1.0
"""Seconds for which a node waits for an event before it reports that there is none."""
LOOK = 2.0
"""Seconds between two looks for nodes that have joined."""
BRING_EVERY = 60.0
"""Seconds between two copies of a running task's checkpoints."""
ACTOR_LOSSES = 3
"""Failures after which a node is left out although it is still alive."""
FOLDER = "ttt-node-"


def connect() -> bool:
    """Connect to the cluster that Ray finds, or start one on this machine; return whether this call did.

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


class NodePool:
    """A pool of one node's processes; lives in a Ray actor there."""

    def __init__(self, path: Sequence[str], backends: bytes, slots: int, per_gpu: int) -> None:
        """Prepare the node.

        Args:
            path: The driver's import path, searched after the node's own.
            backends: The pickled backends of the run.
            slots: Tasks at a time.
            per_gpu: Tasks per GPU, for backends that use one.
        """
        sys.path += [p for p in path if p not in sys.path]
        _remove_left_folders()
        self._open = contextlib.ExitStack()
        self._backends: list[Backend] = []
        for backend in pickle.loads(backends):
            preflight(backend, workers=slots, gpu_tasks=per_gpu)
            self._backends.append(self._open.enter_context(sharing(backend)))
        gpus = visible_gpus() if any(map(uses_gpu, self._backends)) else ()
        self._pool = LocalPool(slots_of(min(slots, len(gpus) * per_gpu) if gpus else slots, gpus, per_gpu=per_gpu))
        self._folder = Path(tempfile.mkdtemp(prefix=f"{FOLDER}{os.getpid()}-"))
        self._work: dict[str, tuple[Path, Path, float]] = {}
        self._refused: list[Message] = []

    def slots(self) -> int:
        """Return how many tasks this node takes at a time."""
        return self._pool.free()

    def submit(self, job: Job, backend: int, files: dict[str, bytes]) -> None:
        """Start a job with one of the backends, and the checkpoints that it has from before."""
        try:
            self._pool.submit(replace(job, backend=self._backends[backend], workdir=self._work_folder(job, files)))
        except Exception as error:  # the job goes to another node
            self._refused.append(Lost(job.task.id, f"{type(error).__name__}: {error}"))

    def _work_folder(self, job: Job, files: dict[str, bytes]) -> Path | None:
        if job.workdir is None:
            return None
        here = self._folder / job.workdir.name
        try:
            unpack(files, here)
        except OSError:  # a full disk: the task keeps no checkpoints
            return None
        self._work[job.task.id] = (job.workdir, here, time.monotonic())
        return here

    def messages(self, wait: float, batch: float) -> list[Message]:
        """Return the events since the last call, of each task's improvements only the last.

        Args:
            wait: Seconds to wait for the first.
            batch: Seconds to collect more after it.
        """
        found, self._refused = self._refused, []
        found += self._pool.messages(wait if not found else 0.001)
        if found:
            time.sleep(batch)
            found += self._pool.messages(0.001)
        newest = {m.task_id: m for m in found if isinstance(m, Improved)}
        kept: list[Message] = [m for m in found if not isinstance(m, Improved) or newest[m.task_id] is m]
        return [*self._checkpoints(kept), *kept]

    def _checkpoints(self, messages: Sequence[Message]) -> list[Message]:
        """Return the work folders that are due: of interrupted tasks, and now and then of running ones."""
        ended = {m.task_id: m.result for m in messages if isinstance(m, Finished)}
        brought: list[Message] = []
        for task_id, (home, here, copied) in list(self._work.items()):
            result = ended.get(task_id)
            if (result is None and time.monotonic() - copied > BRING_EVERY) or (
                result and result.reason == "interrupt"
            ):
                self._work[task_id] = (home, here, time.monotonic())
                if files := pack(here):
                    brought.append(Brought(home, files))
            if result is not None:
                del self._work[task_id]
                shutil.rmtree(here, ignore_errors=True)
        return brought

    def interrupt(self) -> None:
        """Ask all running jobs to end."""
        self._pool.interrupt()

    def close(self) -> None:
        """End all jobs, and remove what was made on this node."""
        self._pool.close()
        self._open.close()
        shutil.rmtree(self._folder, ignore_errors=True)


def _remove_left_folders() -> None:
    """Remove the folders of this user's actors that were killed."""
    for folder in Path(tempfile.gettempdir()).glob(f"{FOLDER}*"):
        with contextlib.suppress(OSError, ValueError):
            about = folder.lstat()
            if about.st_uid == os.geteuid() and not psutil.pid_exists(int(folder.name.split("-")[2])):
                shutil.rmtree(folder, ignore_errors=True)


@dataclass(eq=False)
class _Node:
    """A node as the driver sees it: its actor, and what it is waited for."""

    id: str
    address: str
    actor: Any
    waiting: Any
    cpus: int
    slots: int | None = None
    running: set[str] = field(default_factory=set)


class RayPool:
    """The nodes of a cluster as one pool.

    Args:
        backends: The backends of the run; each job names one of them.
        workers: Tasks at a time, None for as many as the cluster has CPUs.
        per_gpu: Tasks per GPU, for backends that use one.
    """

    def __init__(self, backends: Sequence[Backend], workers: int | None, per_gpu: int = 1) -> None:
        self._started = connect()
        self._backends = tuple(backends)
        self._pickled = pickle.dumps(self._backends)
        self._workers = workers
        self._per_gpu = per_gpu
        self._nodes: dict[str, _Node] = {}
        self._faults: dict[str, list[str]] = {}
        self._looked = 0.0
        self._stopped = False
        self._notes: list[Message] = []
        self._look()

    def _look(self) -> None:
        """Start an actor on every node that has none."""
        import ray

        self._looked = time.monotonic()
        for node in ray.nodes():
            cpus = int(node["Resources"].get("CPU", 0))
            left_out = len(self._faults.get(node["NodeID"], ())) >= ACTOR_LOSSES
            if node["Alive"] and cpus and node["NodeID"] not in self._nodes and not left_out:
                self._nodes[node["NodeID"]] = self._node(node, cpus)

    def _node(self, node: dict[str, Any], cpus: int) -> _Node:
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        slots = min(cpus, self._workers or cpus)
        gpus = int(node["Resources"].get("GPU", 0)) if any(map(uses_gpu, self._backends)) else 0
        options = {
            "num_cpus": slots,
            "num_gpus": gpus,
            "max_concurrency": 4,
            "scheduling_strategy": NodeAffinitySchedulingStrategy(node["NodeID"], soft=False),
        }
        path = [os.path.abspath(p) for p in sys.path]
        actor = ray.remote(NodePool).options(**options).remote(path, self._pickled, slots, self._per_gpu)
        return _Node(node["NodeID"], node["NodeManagerAddress"], actor, actor.slots.remote(), slots)

    def cpus(self) -> int:
        """Return how many tasks the nodes of now can take at a time."""
        return max(1, sum(n.cpus for n in self._nodes.values()))

    def free(self) -> int:
        """Return how many jobs the nodes that are ready can take now."""
        running = sum(len(n.running) for n in self._nodes.values())
        free = sum(n.slots - len(n.running) for n in self._nodes.values() if n.slots is not None)
        return free if self._workers is None else min(free, self._workers - running)

    def submit(self, job: Job) -> None:
        """Send a job to the node with the most free slots."""
        ready = [n for n in self._nodes.values() if n.slots is not None]
        node = max(ready, key=lambda n: (n.slots or 0) - len(n.running))
        files = pack(job.workdir) if job.workdir is not None and job.workdir.is_dir() else {}
        backend = next(i for i, b in enumerate(self._backends) if b is job.backend)
        node.running.add(job.task.id)
        node.actor.submit.remote(replace(job, backend=None), backend, files)  # type: ignore[arg-type]
        if node.waiting is None:
            node.waiting = node.actor.messages.remote(WAIT, self._patience())

    def _patience(self) -> float:
        """Return the seconds for which a node may hold back a batch: longer with more nodes, for the driver's sake."""
        return BATCH * max(1.0, len(self._nodes) / 4)

    def messages(self, timeout: float) -> list[Message]:
        """Return what the nodes have reported.

        Raises:
            TTTError: No node can solve tasks; the message gives each node's reason.
        """
        import ray

        if time.monotonic() - self._looked > LOOK and not self._stopped:
            self._look()
        found, self._notes = self._notes, []
        by_ref = {n.waiting: n for n in self._nodes.values() if n.waiting is not None}
        if not by_ref:
            if not self._nodes:
                self._raise_without_nodes()
            time.sleep(timeout)
            return found
        ready, _ = ray.wait(list(by_ref), num_returns=1, timeout=timeout)
        if ready:
            ready, _ = ray.wait(list(by_ref), num_returns=len(by_ref), timeout=0)
        for ref in ready:
            found += self._heard(by_ref[ref], ref)
        return found

    def _heard(self, node: _Node, ref: Any) -> list[Message]:
        import ray

        node.waiting = None
        try:
            said = ray.get(ref)
        except Exception as error:  # whatever keeps a node's actor from working, its tasks go elsewhere
            return self._failed(node, error)
        if node.slots is None:
            node.slots = int(said)
            return []
        messages: list[Message] = said
        node.running -= {m.task_id for m in messages if isinstance(m, Finished | Lost)}
        if node.running:
            node.waiting = node.actor.messages.remote(WAIT, self._patience())
        return messages

    def _failed(self, node: _Node, error: Exception) -> list[Message]:
        import ray

        said = [line.strip() for line in str(error).strip().splitlines() if line.strip()]
        reason = said[-1] if said else type(error).__name__
        cause = next((line for line in reversed(said) if "Error: " in line), reason)
        reason = f"node {node.address}: {cause}"
        faults = self._faults.setdefault(node.id, [])
        # An actor that never became ready would fail again; one that worked may have been killed.
        faults += [reason] * (ACTOR_LOSSES if node.slots is None else 1)
        del self._nodes[node.id]
        with contextlib.suppress(Exception):
            ray.kill(node.actor)
        notes: list[Message] = [Note(f"{reason}; it is left out")] if len(faults) >= ACTOR_LOSSES else []
        return [*notes, *(Lost(task_id, reason) for task_id in sorted(node.running))]

    def _raise_without_nodes(self) -> None:
        self._look()
        if not self._nodes:
            reasons = sorted({faults[-1] for faults in self._faults.values()}) or ["the cluster has no node with a CPU"]
            raise TTTError(f"no node of the cluster can solve tasks: {'; '.join(reasons)}")

    def interrupt(self) -> None:
        """Ask the running jobs of all nodes to end."""
        self._stopped = True
        for node in self._nodes.values():
            node.actor.interrupt.remote()

    def close(self) -> None:
        """End all jobs and actors; shut Ray down if this pool started it."""
        import ray

        closing = [n.actor.close.remote() for n in self._nodes.values()]
        if closing:
            with contextlib.suppress(Exception):
                ray.wait(closing, num_returns=len(closing), timeout=INTERRUPT_GRACE + 3)
        for node in self._nodes.values():
            with contextlib.suppress(Exception):
                ray.kill(node.actor)
        self._nodes = {}
        if self._started:
            ray.shutdown()
