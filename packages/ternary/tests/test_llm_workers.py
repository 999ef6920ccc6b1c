"""Several processes behind one address: they answer alike, are replaced when they die or hang, and end with it."""

from __future__ import annotations

import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path
from types import SimpleNamespace

import pytest

from ternary.errors import ServerStartError
from ternary.llm import load, serve

openai = pytest.importorskip("openai")
psutil = pytest.importorskip("psutil")
pytest.importorskip("uvicorn")

pytestmark = [
    pytest.mark.timeout(600),
    pytest.mark.skipif(sys.platform == "win32", reason="descriptors are inherited as on Linux and macOS"),
]
words = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("llm_words.py"))))


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    """A model file with a tokenizer."""
    return words.save_words(tmp_path_factory.mktemp("workers") / "small.ternary")


def running(port):
    """How many requests a worker runs."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=200) as answer:
        return json.load(answer)["running"]


def test_workers_answer_and_are_replaced(path) -> None:
    """One address for two processes; one killed amid a stream and one stopped are replaced; at last none is left."""
    expected = load(path).generate("the quick", max_tokens=5).text()
    with serve(path, workers=2, threads=1) as served:
        served.wait()
        first = served.ready
        with openai.OpenAI(base_url=served.url + "/v1", api_key="none", max_retries=20) as client:

            def ask():
                answer = client.completions.create(model="small", prompt="the quick", max_tokens=5, timeout=10)
                return answer.choices[0].text, answer.model

            assert {ask() for _ in range(6)} == {(expected, "small")}
            for port in first.values():  # each of them also answers alone
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=200) as answer:
                    assert json.load(answer)["status"] == "ok"
            pieces = iter(client.completions.create(model="small", prompt="the", **words.ENDLESS))
            next(pieces)
            killed, stopped = sorted(first, key=lambda pid: not running(first[pid]))
            os.kill(killed, signal.SIGKILL)
            with pytest.raises(openai.APIError):  # the text is not whole, and says so
                list(pieces)
            os.kill(stopped, signal.SIGSTOP)
            assert ask() == (expected, "small")  # once another one is there
            words.eventually(lambda: len(set(served.ready) - set(first)) == 2)
            assert served.restarts >= 2
            assert set(served.ready.values()) == set(first.values())
            assert ask() == (expected, "small")
        last = [psutil.Process(pid) for pid in served.ready]
    assert not any(process.is_running() for process in last)


def test_a_model_that_cannot_be_opened_is_an_error(tmp_path) -> None:
    """`wait` does not wait for processes that end one after the other."""
    with serve(tmp_path / "none.ternary", workers=1) as served, pytest.raises(ServerStartError, match="0 of 1 workers"):
        served.wait()


def test_wrong_counts_are_refused(path) -> None:
    """No process is started for them."""
    with pytest.raises(ValueError, match="workers=0"):
        serve(path, workers=0)


def test_workers_do_not_outlive_the_command(path) -> None:
    """`ternary serve --workers 2`: after kill -9 of the command its workers end too."""
    run = [sys.executable, "-m", "ternary", "serve", str(path), "--workers", "2", "--port", "0", "--threads", "1"]
    with subprocess.Popen(run, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert "2 workers running on http://127.0.0.1:" in process.stderr.readline()
            workers = psutil.Process(process.pid).children()
            assert len(workers) == 2
        finally:
            process.kill()
    _, alive = psutil.wait_procs(workers, timeout=200)
    assert alive == []


def run_program(folder: Path, text: str, *arguments: object, cwd: Path | None = None) -> subprocess.Popen[str]:
    """Start a program in a file of its own, its output in pipes."""
    (program := folder / "program.py").write_text(text, encoding="utf-8")
    run = [sys.executable, str(program), *map(str, arguments)]
    return subprocess.Popen(
        run, cwd=cwd, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def has_ipv6() -> bool:
    """Whether this machine has the address ::1."""
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        return False
    return True


@pytest.mark.skipif(not has_ipv6(), reason="this machine has no address ::1")
def test_workers_answer_at_an_address_of_ipv6(path) -> None:
    """The host may be of either family."""
    with serve(path, workers=1, host="::1", threads=1) as served:
        served.wait()
        assert served.url == f"http://[::1]:{served.port}"
        with urllib.request.urlopen(served.url + "/health") as answer:
            assert json.load(answer)["status"] == "ok"


def test_an_address_in_use_is_an_error_at_once(path) -> None:
    """It comes from `serve`, and no process is started."""
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(OSError, match="in use"):
        serve(path, workers=1, port=taken.getsockname()[1])


def test_closed_streams_and_a_folder_with_modules_of_known_names(path, tmp_path) -> None:
    """A worker gets its sockets where a program has closed its standard streams, and imports nothing of its folder."""
    (folder := tmp_path / "folder").mkdir()
    for name in ("json", "pickle", "uvicorn", "ternary"):
        (folder / f"{name}.py").write_text("raise SystemExit('the wrong module')", encoding="utf-8")
    text = """if True:
        import os, sys, urllib.request
        from ternary.llm import serve
        os.close(0), os.close(1)
        with serve(sys.argv[1], workers=1, threads=1) as served:
            served.wait()
            print(urllib.request.urlopen(served.url + "/health").status, file=sys.stderr)
    """
    with run_program(tmp_path, text, path, cwd=folder) as process:
        _, said = process.communicate(timeout=300)
    assert said.splitlines()[-1] == "200"


def test_workers_end_though_a_forked_process_holds_their_input(path, tmp_path) -> None:
    """After kill -9 of a program its workers end, whatever it has forked meanwhile."""
    text = """if True:
        import os, signal, sys
        from ternary.llm import serve
        served = serve(sys.argv[1], workers=1, threads=1)
        served.wait()
        if (child := os.fork()) == 0:
            signal.pause()
        print(child, *served.ready, flush=True)
        signal.pause()
    """
    with run_program(tmp_path, text, path) as process:
        try:
            child, worker = (psutil.Process(int(pid)) for pid in process.stdout.readline().split())
        finally:
            process.kill()
    try:
        _, alive = psutil.wait_procs([worker], timeout=60)
        assert alive == []
        assert child.is_running()
    finally:
        child.kill()


def test_workers_start_once_descriptors_are_left(path, tmp_path) -> None:
    """A program that can open no more files is told so, and its workers start as soon as it can."""
    text = """if True:
        import logging, os, resource, sys
        import ternary.llm._server
        from ternary.errors import ServerStartError
        from ternary.llm import serve
        logging.disable()
        resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
        held = []
        try:
            while True:
                held.append(os.open(os.devnull, os.O_RDONLY))
        except OSError:
            os.close(held.pop()), os.close(held.pop())
        with serve(sys.argv[1], workers=1, threads=1) as served:
            try:
                served.wait()
            except ServerStartError as error:
                print(error)
            for descriptor in held:
                os.close(descriptor)
            served.wait()
            print(len(served.ready))
    """
    with run_program(tmp_path, text, path) as process:
        said, _ = process.communicate(timeout=300)
    reason, ready = said.splitlines()
    assert "0 of 1 workers could start" in reason
    assert "Too many open files" in reason
    assert ready == "1"
