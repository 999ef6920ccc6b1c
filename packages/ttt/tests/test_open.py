"""The page of `ttt open`: by HTTP, and as a person uses it, in a real browser where one is installed."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ttt_test_browser
from ttt_test_backends import ColourTable, Misbehaving, Wanderer

import ttt
from ttt._cli.main import main
from ttt._cli.page import PageServer
from ttt._grid.replay import replayed
from ttt._runs.saved import read_run
from ttt._tasks.loader import task_json

MIRROR = {
    "train": [{"input": [[1, 0], [0, 2]], "output": [[0, 1], [2, 0]]}, {"input": [[3, 3, 0]], "output": [[0, 3, 3]]}],
    "test": [{"input": [[5, 0, 7]]}],
}


@contextlib.contextmanager
def serving(backend: Any, saved: Any = None, tasks: ttt.TaskSet | None = None) -> Iterator[PageServer]:
    """A server in this process."""
    with PageServer(backend, saved, tasks or ttt.TaskSet(())) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


def ask(server: PageServer, path: str, body: Any = None, **headers: str) -> tuple[int, Any]:
    """The status and the JSON of a request, with the token unless other headers are given."""
    connection = http.client.HTTPConnection(*server.server_address[:2], timeout=200)  # type: ignore[arg-type]
    method = "GET" if body is None else "POST"
    connection.request(method, path, None if body is None else json.dumps(body), {"X-Token": server.token, **headers})
    reply = connection.getresponse()
    data = reply.read()
    connection.close()
    return reply.status, json.loads(data) if reply.headers["Content-Type"] == "application/json" else data.decode()


def test_a_puzzle_is_solved_over_http() -> None:
    """Solve, look until it is done: answers with the reason and its steps as grids."""
    with serving(ttt.named_backend("grid", stages=("search",))) as server:
        status, started = ask(server, "/api/solve", {"task": MIRROR, "seconds": 100})
        assert status == 200
        for _ in range(2000):
            status, now = ask(server, f"/api/job?id={started['id']}")
            if now["status"] != "solving":
                break
            threading.Event().wait(0.1)
        (answer,) = now["answers"]
        assert answer["first"]["grid"] == [[7, 0, 5]]
        assert answer["first"]["why"] == "mirrored left-right"
        assert answer["steps"] == [["mirrored left-right", [[[7, 0, 5]]]]]
        assert answer["first"]["confidence"] > 0.5


def test_without_the_token_there_is_nothing() -> None:
    """No token, a wrong one, or the name of another host: refused, for the page and for every question."""
    with serving(Wanderer()) as server:
        port = server.server_address[1]
        assert server.server_address[0] == "127.0.0.1"
        for headers in ({"X-Token": ""}, {"X-Token": "x" * 32}, {"Host": f"evil.example:{port}"}):
            for path, body in (("/api/run", None), ("/api/solve", {"task": MIRROR, "seconds": 5}), ("/api/stop", {})):
                assert ask(server, path, body, **headers)[0] == 403, (headers, path)
        assert ask(server, "/")[0] == 403, "the page wants it in its address"
        assert ask(server, f"/?token={server.token}x")[0] == 403
        status, page = ask(server, f"/?token={server.token}")
        assert status == 200
        assert "http:" not in page.replace("http://127.0.0.1", "")
        assert "https:" not in page, "nothing comes from elsewhere"


def test_mistakes_are_told() -> None:
    """A broken task, a time that is none, a text that is no task, and places that do not exist."""
    with serving(Wanderer()) as server:
        broken = {"train": [{"input": [[17]], "output": [[1]]}], "test": [{"input": [[1]]}]}
        status, said = ask(server, "/api/solve", {"task": broken, "seconds": 5})
        assert (status, "got colour 17" in said["error"]) == (400, True)
        assert ask(server, "/api/solve", {"task": MIRROR, "seconds": "soon"})[0] == 400
        assert ask(server, "/api/check", {"text": "nonsense"})[0] == 400
        assert ask(server, "/api/check", {"text": "[]"})[0] == 400
        assert ask(server, "/api/check", {"text": json.dumps(MIRROR)})[1]["task"] == MIRROR
        assert ask(server, "/api/nowhere")[0] == 404
        assert ask(server, "/api/task?id=none")[0] == 400
        assert ask(server, "/api/job?id=none")[0] == 400
        connection = http.client.HTTPConnection(*server.server_address[:2], timeout=200)  # type: ignore[arg-type]
        connection.request("POST", "/api/check", headers={"X-Token": server.token, "Content-Length": str(1 << 30)})
        assert connection.getresponse().status == 413
        connection.close()


def test_a_big_paste_and_an_odd_text_are_told() -> None:
    """A browser sends the whole text before it reads: it then sees why; half a character pair is no end of the line."""
    with serving(Wanderer()) as server:
        status, said = ask(server, "/api/check", {"text": "x" * (3 << 20)})
        assert (status, said["error"]) == (413, "wanted at most 1048576 bytes")
        assert ask(server, "/api/check", {"text": "\ud800"})[0] == 400


def test_a_browser_that_goes_away_is_no_fault(capfd: pytest.CaptureFixture[str]) -> None:
    """A closed tab resets its connection: no traceback in the terminal, and the next request is answered."""
    with serving(Wanderer()) as server:
        for _ in range(5):
            with socket.create_connection(server.server_address[:2]) as gone:  # type: ignore[arg-type]
                gone.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                gone.sendall(b"POST /api/check HTTP/1.1\r\nHost: 127.0.0.1:1\r\n")
        assert ask(server, "/api/run")[0] == 200
    assert "Traceback" not in capfd.readouterr().err


def test_a_port_that_cannot_be_opened_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    """A port that is taken, and numbers that are none."""
    with serving(Wanderer()) as server:
        for port in (server.server_address[1], 70000, -1):
            assert main(["open", "--no-browser", f"--port={port}"]) == 2
            assert f"--port {port}: cannot be opened" in capsys.readouterr().err


def test_closing_ends_what_is_being_solved() -> None:
    """The process of a puzzle ends with the server (the leak check looks), and a new puzzle ends the one before."""
    with serving(Wanderer(0.01)) as server:
        first = ask(server, "/api/solve", {"task": MIRROR, "seconds": 100})[1]["id"]
        second = ask(server, "/api/solve", {"task": MIRROR, "seconds": 100})[1]["id"]
        assert ask(server, f"/api/job?id={first}")[0] == 400
        assert ask(server, f"/api/job?id={second}")[0] == 200


def test_a_failed_solver_is_shown() -> None:
    """An error of the backend reaches the page."""
    with serving(Misbehaving("raises")) as server:
        job = ask(server, "/api/solve", {"task": MIRROR, "seconds": 100})[1]["id"]
        for _ in range(2000):
            now = ask(server, f"/api/job?id={job}")[1]
            if now["status"] != "solving":
                break
            threading.Event().wait(0.1)
        assert (now["status"], "no idea" in now["error"]) == ("failed", True)


def test_steps_are_replayed() -> None:
    """Compositions and derived inputs, step by step; words that name no transformation end the list."""
    grid = ttt.as_grid([[0, 0, 0], [0, 3, 4], [0, 0, 0]])
    shown = replayed("cropped to what is drawn, then mirrored left-right", [grid], [grid], grid)
    assert [(words, [g.tolist() for g in grids]) for words, grids in shown] == [
        ("cropped to what is drawn", [[[3, 4]]]),
        ("mirrored left-right", [[[4, 3]]]),
    ]
    assert replayed("colour by the weather", [grid], [grid], grid) == []


def finished_run(tasks: list[ttt.Task], folder: Path) -> Path:
    """The folder of a run with right answers and wrong ones."""
    run = ttt.run(tasks, backend=ColourTable(), budget="8 steps", folder=folder)
    for _ in run:
        pass
    return folder


def test_a_finished_run_is_shown(sample_arc_tasks: list[ttt.Task], integration_test_dir: Path) -> None:
    """The list of tasks with their outcome, and each task with its truth and the run's answers."""
    saved = read_run(finished_run(sample_arc_tasks[:2], integration_test_dir / "run"))
    with serving(ColourTable(), saved) as server:
        listed = ask(server, "/api/run")[1]
        assert [(t["id"], t["word"]) for t in listed["tasks"]] == [("identity", "solved"), ("mirror", "solved")]
        shown = ask(server, "/api/task?id=mirror")[1]
        assert shown["task"] == task_json(sample_arc_tasks[1])
        assert shown["answers"][0]["first"]["grid"] == shown["task"]["test"][0]["output"]


@pytest.mark.skipif(ttt_test_browser.installed() is None, reason="no Chromium is installed")
@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_person_draws_a_puzzle_and_sees_why(integration_test_dir: Path) -> None:
    """In a real browser: draw a mirror puzzle, press Solve, read the reason, see a step, correct a cell, read the JSON.

    TTT_PICTURES names a folder for screenshots.
    """
    pictures = Path(os.environ.get("TTT_PICTURES", str(integration_test_dir)))
    with (
        serving(ttt.named_backend("grid", stages=("search",))) as server,
        ttt_test_browser.browser(integration_test_dir) as page,
    ):
        page.size(1200, 900)
        page.go(server.address)
        page.wait("document.body && document.body.dataset.ready")

        def cell(section: str, pair: int, grid: int, where: str) -> str:
            box = f"document.querySelectorAll('#{section} .pair')[{pair}].querySelectorAll('.grid')[{grid}]"
            return f"{box}.querySelector('[data-at=\"{where}\"]')"

        def pick(colour: int) -> None:
            page.click(f"document.querySelectorAll('.swatch')[{colour}]")

        # Two examples and a test, each mirrored left-right: no other rule of one step fits them.
        for pair, marks in enumerate(({2: "0,0", 3: "1,0"}, {4: "0,1", 6: "2,0", 3: "1,2"})):
            for colour, where in marks.items():
                pick(colour)
                page.click(cell("train", pair, 0, where))
                row, column = where.split(",")
                page.click(cell("train", pair, 1, f"{row},{2 - int(column)}"))
        pick(7)
        page.click(cell("test", 0, 0, "1,0"))
        pick(8)
        page.click(cell("test", 0, 0, "2,1"))
        page.click("document.getElementById('solve')")
        page.wait("document.querySelector('.why') && !document.getElementById('solve').disabled", 90)
        assert "mirrored left-right" in page.run("document.querySelector('.why').innerText")
        assert page.run("document.querySelectorAll('.steps figure').length") == 2
        answer = "JSON.parse(document.getElementById('text').value).test[0].output"
        assert page.run(answer) == [[0, 0, 0], [0, 0, 7], [0, 8, 0]]
        page.picture(pictures / "open-wide.png")
        pick(1)
        page.click("document.querySelector('#answers [data-at=\"0,0\"]')")
        assert page.run(answer) == [[1, 0, 0], [0, 0, 7], [0, 8, 0]]
        page.size(390, 800)
        page.picture(pictures / "open-narrow.png")
        assert page.run("document.documentElement.scrollWidth <= innerWidth"), "nothing is wider than a phone"
        assert page.faults == []


@pytest.mark.skipif(ttt_test_browser.installed() is None, reason="no Chromium is installed")
@pytest.mark.slow
@pytest.mark.timeout(300)
def test_reports_and_runs_fit_a_phone(sample_arc_tasks: list[ttt.Task], integration_test_dir: Path) -> None:
    """The report at two widths, and the page with a run: nothing is cut off, wrong cells are marked."""
    from ttt._cli.report import write_report

    pictures = Path(os.environ.get("TTT_PICTURES", str(integration_test_dir)))
    folder = integration_test_dir / "run"
    run = ttt.run(sample_arc_tasks, backend=Wanderer(), budget="3 steps", folder=folder)
    for _ in run:
        pass
    write_report(folder, integration_test_dir / "report.html")
    saved = read_run(folder)
    with serving(ColourTable(), saved) as server, ttt_test_browser.browser(integration_test_dir) as page:
        for name, width in (("wide", 1200), ("narrow", 390)):
            page.size(width, 900)
            page.go((integration_test_dir / "report.html").as_uri())
            page.wait("document.querySelectorAll('.miss').length > 5 && document.readyState === 'complete'")
            assert page.run("document.documentElement.scrollWidth <= innerWidth"), name
            page.picture(pictures / f"report-{name}.png")
            page.go(server.address)
            page.wait("document.body && document.body.dataset.ready && !!document.querySelector('.cell.wrong')")
            assert page.run("document.documentElement.scrollWidth <= innerWidth"), name
            page.picture(pictures / f"run-{name}.png")
        assert page.faults == []


def test_the_command_opens_the_page(integration_test_dir: Path) -> None:
    """`ttt open` as a user gives it: the address is printed at once, answers with the page, and Ctrl-C ends it."""
    command = [sys.executable, "-m", "ttt", "open", "--no-browser", "--json", "--set", 'stages=["search"]']
    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        text=True,
        cwd=integration_test_dir,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),  # ignored in a background job
    ) as child:
        try:
            assert child.stdout is not None
            text = ""
            while not text.endswith("}\n") and (line := child.stdout.readline()):
                text += line
            address = json.loads(text)["address"]
            with urllib.request.urlopen(address, timeout=200) as reply:
                assert b"Solve" in reply.read()
            child.send_signal(signal.SIGINT)
            assert child.wait(200) == 0
        finally:
            child.kill()


def test_a_backend_that_cannot_solve_is_refused_before_the_page_opens(
    integration_test_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A wrong folder, a misspelt device and two backends: one line, and status 2."""
    model = f"model={integration_test_dir}"
    for arguments, said in (
        (["--backend", "lm", "--set", model], "no config.json"),
        (["--backend", "vit", "--set", "device=cudda"], "no such device"),
        (["--backend", "grid", "--backend", "vit"], "one backend"),
        (["--recipe", "lm"], "lm needs model"),
    ):
        assert main(["open", "--no-browser", *arguments]) == 2
        assert said in capsys.readouterr().err
