"""Several processes that serve one model at one address. One that ends, or hangs, is replaced."""

from __future__ import annotations

import http.client
import logging
import os
import pickle
import socket
import subprocess
import sys
import threading
import time
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from typing import Any, Self

from ternary.errors import MissingExtraError, ServerStartError
from ternary.llm._versions import Source

__all__ = ["Workers", "serve"]

SILENT = 10.0
"""A worker whose `/health` has not answered for so many seconds is replaced."""
START = 300.0
"""Seconds that a worker may take to start."""
EVERY = 0.5
"""Seconds between two looks at a worker."""
PAUSE, LONGEST_PAUSE = 0.1, 10.0
"""Seconds until a worker that ended before it answered is started again, twice as long each time; and at most."""
_log = logging.getLogger(__name__)


def serve(
    source: Source,
    *,
    workers: int = 2,
    host: str = "127.0.0.1",
    port: int = 0,
    name: str | None = None,
    parallel: int = 8,
    queue: int = 64,
    **options: Any,
) -> Workers:
    """Serve a model by several processes at one address, as `ternary serve --workers` does, and return at once.

    The system gives each connection to a process that takes it. A process that ends, or hangs, is replaced; so a client
    whose connection breaks should try again. The processes end when the result is closed or this process ends. With a
    model file, a reference or a follower they share one copy of the weights. This needs Linux or macOS.

    Args:
        source: The model, or what looks up its newest version, as for `application`. It is pickled.
        workers: How many processes. Each needs its own processors: see `threads` of `load`.
        host: The address to listen on, of either family, such as `::1`; of a name its first address, IPv4 before IPv6.
        port: The port, 0 for a free one.
        name: What the model is called in answers; None for the name of its file, or of each version's file.
        parallel: Requests that run at once in a process.
        queue: Requests that may wait in a process; those beyond are answered 429.
        **options: Passed to `load`, such as `threads=2`.

    Returns:
        The processes, as a context manager.

    Raises:
        MissingExtraError: The extra `serve` is not installed.
        OSError: The address is in use or not of this machine, or this process may open no more files.

    Example:
        >>> import tempfile, urllib.request
        >>> from ternary import llm
        >>> config = llm.ModelConfig(64, hidden=32, inner=64, layers=1, heads=2, kv_heads=1, head_size=16, context=32)
        >>> llm.save(llm.Decoder(config, ternary=True), path := tempfile.mkdtemp() + "/m.ternary")
        >>> with llm.serve(path, workers=1, threads=1) as served:
        ...     served.wait()
        ...     urllib.request.urlopen(served.url + "/health").status
        200
    """
    try:
        import ternary.llm._server  # noqa: F401 - a missing extra is named here, not in a worker
    except ImportError as e:
        raise MissingExtraError(f"{e.name} is needed here; pip install 'pentad-ternary[serve]'") from e
    if workers < 1:
        raise ValueError(f"got workers={workers}; wanted at least 1")
    settings = {"source": source, "name": name, "parallel": parallel, "queue": queue, **options}
    return Workers(pickle.dumps(settings), workers, _listen(host, port))


def _listen(host: str, port: int) -> socket.socket:
    """Listen at the first address of a host, under a descriptor that is no standard stream of a worker.

    A program that has closed its standard streams gets their descriptors for what it opens next.
    """
    import fcntl  # not on Windows, where `serve` does not run

    found = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    family, _, _, _, address = min(found, key=lambda entry: entry[0] != socket.AF_INET)
    made = socket.create_server(address, family=family, backlog=2048)
    if made.fileno() > 2:
        return made
    with made:
        return socket.socket(fileno=fcntl.fcntl(made.fileno(), fcntl.F_DUPFD_CLOEXEC, 3))


@dataclass(eq=False)
class _Worker:
    """One worker: where it alone answers, its present process, and whether that has answered yet."""

    own: socket.socket = field(default_factory=lambda: _listen("127.0.0.1", 0))
    process: subprocess.Popen[bytes] | None = None
    ready: bool = False

    @property
    def port(self) -> int:
        return int(self.own.getsockname()[1])


class Workers:
    """Processes that answer at one address; see `serve`.

    Args:
        settings: The pickled arguments of `application`.
        count: How many processes.
        listening: Where they answer.

    Attributes:
        port: The port of the address.
        url: The address, such as `http://127.0.0.1:8000`.
        restarts: How many processes were replaced.
    """

    def __init__(self, settings: bytes, count: int, listening: socket.socket):
        self._settings, self._listening = settings, listening
        host, self.port = listening.getsockname()[:2]
        self.url = f"http://{f'[{host}]' if ':' in host else host}:{self.port}"
        self.restarts = 0
        self._ending, self._why = threading.Event(), "their error output says why"
        with ExitStack() as opened:
            opened.enter_context(listening)
            self._workers = [_Worker() for _ in range(count)]
            opened.pop_all()
        self._threads = [threading.Thread(target=self._keep, args=(worker,), daemon=True) for worker in self._workers]
        for thread in self._threads:
            thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *raised: object) -> None:
        self.close()

    @property
    def ready(self) -> dict[int, int]:
        """The processes that answer: by process number, the port of 127.0.0.1 where each answers alone.

        Monitors ask each process there for `/metrics`.
        """
        found = [(w.process, w.port) for w in self._workers if w.ready]
        return {process.pid: port for process, port in found if process is not None and process.poll() is None}

    def wait(self, timeout: float = START) -> None:
        """Wait until every process answers.

        Args:
            timeout: Seconds.

        Raises:
            ServerStartError: They do not, or cannot start.
        """
        end, before = time.monotonic() + timeout, self.restarts
        while len(self.ready) < len(self._workers):
            late = time.monotonic() > end
            if late or (not self.ready and self.restarts > before + 2 * len(self._workers)):
                why = f" in {timeout} s" if late else ""
                found = f"{len(self.ready)} of {len(self._workers)} workers could start{why}"
                raise ServerStartError(f"{found}; {self._why}")
            time.sleep(EVERY / 10)

    def close(self) -> None:
        """Let running requests end for some seconds, and end all processes."""
        self._ending.set()
        for thread in self._threads:
            thread.join()
        for held in (self._listening, *(worker.own for worker in self._workers)):
            held.close()

    def _keep(self, worker: _Worker) -> None:
        """Keep one worker running."""
        pause = PAUSE
        while not self._ending.is_set():
            try:
                process = worker.process = self._start(worker)
            except OSError as error:  # no descriptor, process or memory is left: some may be later
                self._why = str(error)
                _log.warning("a worker cannot be started, and is tried again: %s", error)
                answered = False
            else:
                answered = self._watch(worker, process)
                _end(process, 5.0 if self._ending.is_set() else 0.0)
            self.restarts += not self._ending.is_set()
            pause = PAUSE if answered else min(2 * pause, LONGEST_PAUSE)
            if not answered:
                self._ending.wait(pause)

    def _watch(self, worker: _Worker, process: subprocess.Popen[bytes]) -> bool:
        """Watch a process until it ends, hangs or is to end; return whether it has ever answered."""
        seen, answered = time.monotonic() + START - SILENT, False
        while process.poll() is None and time.monotonic() - seen < SILENT and not self._ending.wait(EVERY):
            if _answers(worker.port):
                seen, worker.ready, answered = time.monotonic(), True, True
        worker.ready = False
        return answered

    def _start(self, worker: _Worker) -> subprocess.Popen[bytes]:
        places = (self._listening.fileno(), worker.own.fileno())
        # It finds modules where this process does, and not in the working folder.
        paths = os.pathsep.join(os.path.abspath(path) for path in sys.path)
        command = [sys.executable, "-P", "-m", "ternary.llm._worker_process", str(os.getpid()), *map(str, places)]
        # In a session of its own: Ctrl-C at the terminal reaches this process alone, which then ends its workers.
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=_inherited(1),
            stderr=_inherited(2),
            pass_fds=places,
            start_new_session=True,
            env={**os.environ, "PYTHONPATH": paths},
        )
        assert process.stdin is not None  # it is a pipe
        with suppress(OSError):  # it has ended
            process.stdin.write(self._settings)
            process.stdin.flush()
        return process


def _inherited(stream: int) -> int | None:
    """Return what `Popen` takes for a standard stream of this process, which may be closed."""
    try:
        os.fstat(stream)
    except OSError:
        return subprocess.DEVNULL
    return None


def _end(process: subprocess.Popen[bytes], patience: float) -> None:
    """End a worker by the end of its input, or kill it after some seconds."""
    if patience:
        with suppress(subprocess.TimeoutExpired):
            process.communicate(timeout=patience)
    process.kill()
    process.communicate()


def _answers(port: int) -> bool:
    """Return whether a worker answers within some seconds, which is long enough on a busy machine."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=3)
    try:
        connection.request("GET", "/health")
        return connection.getresponse().status == http.client.OK
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()
