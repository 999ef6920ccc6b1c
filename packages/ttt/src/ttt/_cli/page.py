"""The command `open`: a page on this machine to draw a puzzle, solve it, and see how; the same for a finished run."""

from __future__ import annotations

import argparse
import hmac
import json
import secrets
import sys
import threading
import webbrowser
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.resources import files
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from ttt._backend import preflight
from ttt._budget import Budget
from ttt._cli.arguments import Commands, add_backend, add_json, backends_of, print_json
from ttt._events import Finished, Improved, Started
from ttt._runs.run import Run, run
from ttt._runs.saved import SavedRun, read_run
from ttt._tasks.loader import looks_like_task, parse_json, parse_task, task_json
from ttt._tasks.sources import TaskSet, load
from ttt.errors import TTTError
from ttt.results import solved
from ttt.values import Attempt, Prediction, Task

MAX_BODY = 1 << 20
MAX_REFUSED = 64 << 20
"""A larger body of up to this size is read and thrown away before it is refused."""
LONGEST = 600.0
"""Seconds that a puzzle may be solved for."""
HOST = "127.0.0.1"


def add_commands(sub: Commands) -> None:
    """Add this command to the command line."""
    text = (
        "Open a page on this machine: draw or paste a puzzle, press Solve, watch answers and reasons come, correct a "
        "cell, export JSON. With a run's folder, or with tasks, the page shows these. It works offline; the address "
        "holds a token, and other machines cannot reach it."
    )
    p = sub.add_parser("open", help="draw and solve a puzzle in the browser, or look at a run", description=text)
    p.add_argument("source", nargs="?", metavar="RUN_OR_TASKS", help="a run's folder, or tasks")
    p.add_argument("--port", type=int, default=0, help="default: a free one")
    p.add_argument("--no-browser", action="store_true", help="only print the address")
    add_backend(p)
    add_json(p)
    p.set_defaults(function=open_command)


def open_command(args: argparse.Namespace) -> int:
    """`ttt open`; runs until Ctrl-C."""
    saved, tasks = None, TaskSet(())
    if args.source is not None:
        if (Path(args.source) / "run.json").is_file():
            saved = read_run(Path(args.source))
        else:
            tasks = load(args.source)
    backend, *others = backends_of(args)
    if others:
        raise TTTError(f"open solves with one backend, got {1 + len(others)}; name one")
    preflight(backend)
    with PageServer(backend, saved, tasks, port=args.port) as server:
        if args.json:
            print_json({"address": server.address})
        else:
            print(f"open {server.address}  (Ctrl-C ends it)", flush=True)
        if not args.no_browser:
            webbrowser.open(server.address)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            return 0
    return 0


class Solving:
    """One puzzle being solved, and its best answers so far."""

    def __init__(self, backend: Any, task: Task, seconds: float) -> None:
        self.id = secrets.token_hex(8)
        self.task = task
        self._run: Run = run([task], backend=backend, budget=Budget(seconds=seconds))
        self._lock = threading.Lock()
        self._predictions: tuple[Prediction, ...] = ()
        self._state: dict[str, Any] = {"status": "solving", "stage": "starting", "fraction": 0.0, "error": None}
        self._thread = threading.Thread(target=self._solve, daemon=True)
        self._thread.start()

    def _solve(self) -> None:
        try:
            for event in self._run:
                with self._lock:
                    match event:
                        case Started():
                            self._state["stage"] = "started"
                        case Improved():
                            self._predictions = event.predictions
                            self._state |= {"stage": event.stage, "fraction": event.fraction}
                        case Finished():
                            self._predictions = event.result.predictions
                            done = {"status": event.result.status, "stage": event.result.stage}
                            self._state |= {**done, "fraction": 1.0, "error": event.result.error}
        except Exception as error:  # shown on the page, which would otherwise wait for ever
            with self._lock:
                self._state |= {"status": "failed", "error": f"{type(error).__name__}: {error}"}

    def stop(self) -> None:
        """Ask it to end, and wait until its process has."""
        self._run.interrupt()
        self._thread.join()

    def now(self) -> dict[str, Any]:
        """Return its state and its answers as JSON values."""
        with self._lock:
            state, predictions = dict(self._state), self._predictions
        shown = [p for p in predictions if p.first.stage != "fallback" or state["status"] != "solving"]
        complete = bool(predictions) and len(shown) == len(predictions)
        answers = answers_json(self.task, predictions, percentages=self._run.calibrated) if complete else []
        return {"id": self.id, **state, "answers": answers}


def answers_json(task: Task, predictions: tuple[Prediction, ...], *, percentages: bool) -> list[dict[str, Any]]:
    """Return answers for the page: both attempts per test input, and the steps of the first one as grids."""
    from ttt._grid.replay import replayed  # here, because the search takes half a second to load

    def attempt(a: Attempt) -> dict[str, Any]:
        known = a.confidence if percentages else None
        return {"grid": a.grid.tolist(), "confidence": known, "stage": a.stage, "why": a.why}

    inputs = [p.input for p in (*task.train, *task.test)]
    outputs = [p.output for p in task.train if p.output is not None]
    made = []
    for pair, guess in zip(task.test, predictions, strict=True):
        steps = replayed(guess.first.why, inputs, outputs, pair.input)
        shown = [[words, [g.tolist() for g in grids]] for words, grids in steps]
        made.append({"first": attempt(guess.first), "second": attempt(guess.second), "steps": shown})
    return made


class PageServer(ThreadingHTTPServer):
    """Serves the page to this machine's browser, and to nobody without the token.

    Args:
        backend: What solves the puzzles.
        saved: A run to look at, None for none.
        tasks: Tasks to choose from, where there is no run.
        port: The port, 0 for a free one.
    """

    daemon_threads = True

    def __init__(self, backend: Any, saved: SavedRun | None, tasks: TaskSet, *, port: int = 0) -> None:
        self._job: Solving | None = None
        self._jobs = threading.Lock()
        try:
            super().__init__((HOST, port), _Handler)
        except (OSError, OverflowError) as error:
            raise TTTError(f"--port {port}: cannot be opened ({error}); use another, or 0 for a free one") from error
        self.token = secrets.token_urlsafe(24)
        self.backend, self.saved = backend, saved
        self.tasks = {t.id: t for t in (saved.tasks if saved is not None else tasks)}

    @property
    def address(self) -> str:
        """The page's address, with its token."""
        return f"http://{HOST}:{self.server_address[1]}/?token={self.token}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Print what went wrong, but for a browser that has gone away: that is no fault."""
        if not isinstance(sys.exc_info()[1], ConnectionError | TimeoutError):
            super().handle_error(request, client_address)

    def server_close(self) -> None:
        """Close the socket and end what is being solved."""
        super().server_close()
        self.stop()

    def solve(self, task: Task, seconds: float) -> dict[str, Any]:
        """Start to solve a puzzle; what was being solved ends."""
        with self._jobs:
            before, self._job = self._job, None
            if before is not None:
                before.stop()
            self._job = Solving(self.backend, task, seconds)
            return {"id": self._job.id}

    def stop(self) -> None:
        """End what is being solved."""
        with self._jobs:
            if self._job is not None:
                self._job.stop()

    def job(self, job_id: str) -> dict[str, Any]:
        """Return the state of the puzzle being solved."""
        job = self._job
        if job is None or job.id != job_id:
            raise TTTError("another puzzle is being solved now")
        return job.now()

    def run_json(self) -> dict[str, Any]:
        """Return the list of tasks, each with a word on its outcome."""
        words = {True: "solved", False: "wrong", None: ""}
        tasks = []
        for task in self.tasks.values():
            result = self.saved.results.get(task.id) if self.saved is not None else None
            tasks.append({"id": task.id, "word": words[solved(task, result)] if result is not None else ""})
        return {"name": "" if self.saved is None else str(self.saved.folder), "tasks": tasks}

    def task_json(self, task_id: str) -> dict[str, Any]:
        """Return one task with the run's answers to it."""
        task = self.tasks.get(task_id)
        if task is None:
            raise TTTError(f"no task {task_id!r} here")
        result = self.saved.results.get(task_id) if self.saved is not None else None
        answers: list[dict[str, Any]] = []
        state = ""
        if result is not None and self.saved is not None:
            answers = answers_json(task, result.predictions, percentages=self.saved.calibrated)
            state = f"{result.status}, {result.cpu_seconds:.1f} CPU-s"
        return {"task": task_json(task), "answers": answers, "state": state}


class _Handler(BaseHTTPRequestHandler):
    server: PageServer
    server_version = "ttt"
    sys_version = ""
    timeout = 30

    def do_GET(self) -> None:
        """Answer the page, or one of its questions."""
        place = urlsplit(self.path)
        query = {k: v[0] for k, v in parse_qs(place.query).items()}
        if not self._allowed(query.get("token", "") if place.path == "/" else self.headers.get("X-Token", "")):
            return
        if place.path == "/":
            self._page()
            return
        answers = {
            "/api/run": self.server.run_json,
            "/api/task": lambda: self.server.task_json(query.get("id", "")),
            "/api/job": lambda: self.server.job(query.get("id", "")),
        }
        self._answer(answers.get(place.path))

    def do_POST(self) -> None:
        """Solve, stop, or check a text."""
        if not self._allowed(self.headers.get("X-Token", "")):
            return
        length = self.headers.get("Content-Length", "")
        if not length.isdecimal() or int(length) > MAX_BODY:
            # A browser shows an answer only when it could send the whole text.
            left = int(length) if length.isdecimal() and int(length) <= MAX_REFUSED else 0
            while left > 0 and (part := self.rfile.read(min(left, 1 << 16))):
                left -= len(part)
            self._send(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, {"error": f"wanted at most {MAX_BODY} bytes"})
            return
        body = self.rfile.read(int(length))
        answers = {"/api/solve": self._solve, "/api/stop": self._stop, "/api/check": self._check}
        wanted = answers.get(urlsplit(self.path).path)
        self._answer(None if wanted is None else lambda: wanted(parse_json(body, "the page")))

    def _solve(self, value: Any) -> Any:
        seconds = value.get("seconds") if isinstance(value, dict) else None
        if not isinstance(seconds, int | float) or not 0 < seconds <= LONGEST:
            raise TTTError(f"seconds: got {seconds!r}, wanted a number above 0, at most {LONGEST:g}")
        task = parse_task("drawn", value.get("task"))
        return self.server.solve(task.without_solutions(), float(seconds))

    def _stop(self, _value: Any) -> Any:
        self.server.stop()
        return {}

    def _check(self, value: Any) -> Any:
        text = value.get("text") if isinstance(value, dict) else None
        parsed = parse_json(str(text).encode(errors="surrogatepass"), "the text")
        if not looks_like_task(parsed):
            raise TTTError('the text: wanted one task, {"train": [...], "test": [...]}')
        return {"task": task_json(parse_task("pasted", parsed))}

    def _allowed(self, token: str) -> bool:
        """Refuse requests without the token, and those that a page of another name has sent here."""
        host = self.headers.get("Host", "").rpartition(":")[0]
        if host in (HOST, "localhost") and hmac.compare_digest(token.encode(), self.server.token.encode()):
            return True
        self._send(HTTPStatus.FORBIDDEN, {"error": "use the address that ttt open printed"})
        return False

    def _page(self) -> None:
        nonce = secrets.token_urlsafe(16)
        text = files("ttt._cli").joinpath("page.html").read_text("utf-8").replace("NONCE", nonce)
        policy = f"default-src 'none'; script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'; connect-src 'self'"
        headers = {"Content-Security-Policy": f"{policy}; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"}
        self._write(HTTPStatus.OK, text.encode(), "text/html; charset=utf-8", headers)

    def _answer(self, make: Any) -> None:
        if make is None:
            self._send(HTTPStatus.NOT_FOUND, {"error": "no such place"})
            return
        try:
            self._send(HTTPStatus.OK, make())
        except TTTError as error:
            self._send(HTTPStatus.BAD_REQUEST, {"error": str(error)})

    def _send(self, status: HTTPStatus, value: Any) -> None:
        self._write(status, json.dumps(value).encode(), "application/json", {})

    def _write(self, status: HTTPStatus, data: bytes, kind: str, headers: dict[str, str]) -> None:
        self.send_response(status)
        always = {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer"}
        for name, text in {**always, **headers, "Content-Type": kind, "Content-Length": str(len(data))}.items():
            self.send_header(name, text)
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: Any) -> None:
        """Log nothing: an address holds the token."""
