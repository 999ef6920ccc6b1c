"""Several processes behind one address: they answer alike, are replaced when they die or hang, and end with it."""

from __future__ import annotations

import json
import os
import runpy
import signal
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


def test_workers_answer_and_are_replaced(path) -> None:
    """One address for two processes; one that is killed and one that is stopped are replaced; at last none is left."""
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
            killed, stopped = first
            os.kill(killed, signal.SIGKILL)
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
