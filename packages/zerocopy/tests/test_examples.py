"""The programs in examples/ run as they stand."""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

EXAMPLES = Path(__file__).parents[1] / "examples"
pytestmark = [
    pytest.mark.timeout(300),
    pytest.mark.skipif(not EXAMPLES.is_dir(), reason="the examples are not beside an installed wheel's tests"),
]


def test_many_workers(fresh_run: Any) -> None:
    """Two spawned workers see both versions, and have nothing of the weights to themselves."""
    printed = fresh_run(str(EXAMPLES / "many_workers.py"), "2").stdout
    assert printed.count("versions seen: [1, 2]") == 2, printed


def test_fastapi_workers(tmp_path: Path, eventually: Any) -> None:
    """Two uvicorn workers answer by HTTP with the model's sums, from one segment that goes with them."""
    pytest.importorskip("fastapi")
    pytest.importorskip("uvicorn")
    command = [
        "-m",
        "uvicorn",
        "--app-dir",
        str(EXAMPLES),
        "--port",
        "0",
        "--workers",
        "2",
        "fastapi_workers:app",
    ]
    segments = tmp_path / "segments"
    environment = {**os.environ, "EXAMPLE_DIRECTORY": str(segments)}
    with (tmp_path / "said").open("w") as said:
        server = subprocess.Popen([sys.executable, *command], env=environment, stderr=said)
    rows = torch.ones(2, 1024)

    def address() -> str:
        return next(iter(re.findall(r"http://127\.0\.0\.1:\d+", (tmp_path / "said").read_text())), "")

    def post() -> dict[str, Any]:
        body, headers = json.dumps(rows.tolist()).encode(), {"Content-Type": "application/json"}
        with urllib.request.urlopen(urllib.request.Request(f"{address()}/", body, headers), timeout=100) as got:
            return dict(json.load(got))

    def answers() -> bool:
        try:
            return bool(post())
        except OSError:
            return False

    try:
        assert eventually(lambda: bool(address()) and answers())
        torch.manual_seed(0)
        model = nn.Sequential(*[nn.Linear(1024, 1024) for _ in range(8)]).eval()
        seen = [post() for _ in range(30)]
        with torch.no_grad():
            wanted = model(rows).sum(1)
        assert all(torch.allclose(torch.tensor(each["sums"]), wanted, atol=1e-4) for each in seen)
        assert server.pid not in {each["worker"] for each in seen}
        assert len(list(segments.glob("*.zc"))) == 1
    finally:
        server.terminate()
        server.wait(200)
    assert eventually(lambda: list(segments.iterdir()) == [])


@pytest.mark.slow
def test_ray_actors(fresh_run: Any) -> None:
    """Two actors and a task give the model's answers, and the actors switch to the second version."""
    pytest.importorskip("ray")
    printed = fresh_run(str(EXAMPLES / "ray_actors.py"), "2").stdout
    assert "answers are the model's: True\nversions: [2, 2]" in printed, printed


def free_port() -> int:
    """A port that nothing listens on, between those that Ray's workers take and those that systems choose."""
    while True:
        port = 20000 + secrets.randbelow(12000)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


def test_prefork_server(tmp_path: Path, eventually: Any) -> None:
    """Two forked workers answer by HTTP with the current version, before a reload and after it; nothing is left."""
    command = [sys.executable, "-W", "ignore", str(EXAMPLES / "prefork_server.py"), "2", "0", str(tmp_path)]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)

    def get(path: str = "", data: bytes | None = None) -> dict[str, Any]:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/{path}", data, timeout=100) as got:
            return dict(json.load(got))

    try:
        assert server.stdout is not None
        port = int(re.fullmatch(r"version 1 on port (\d+), .*\n", server.stdout.readline())[1])  # type: ignore[index]
        seen = [get() for _ in range(20)]
        assert {(each["version"], each["answer"]) for each in seen} == {(1, 1.0)}
        assert server.pid not in {each["worker"] for each in seen}
        assert get("publish", b"")["asked"] == server.pid
        assert eventually(lambda: get()["version"] == 2)
        seen = [get() for _ in range(20)]
        assert {(each["version"], each["answer"]) for each in seen} == {(2, 2.0)}
    finally:
        server.terminate()
        server.communicate(timeout=200)
    assert server.returncode == 0
    assert eventually(lambda: list(tmp_path.iterdir()) == [])


@pytest.mark.parametrize("start", ["fork", pytest.param("spawn", marks=pytest.mark.slow)])
def test_dataloader_workers(start: str, fresh_run: Any) -> None:
    """Workers of a DataLoader compute what the model does, and write nothing."""
    printed = fresh_run("-W", "ignore", str(EXAMPLES / "dataloader_workers.py"), "2", start).stdout
    assert printed == "64 items by 2 workers, as the model's: True\nweights written by workers: 0\n"


@pytest.mark.slow
def test_peft_adapters(fresh_run: Any) -> None:
    """Two workers switch adapters per request, and a retrained adapter stores its own weights alone."""
    pytest.importorskip("peft")
    lines = fresh_run("-W", "ignore", str(EXAMPLES / "peft_adapters.py"), "2").stdout.splitlines()
    assert lines[:2] == ["30 answers of 3 adapters by 2 workers are right: True", "weights written by workers: 0"]
    stored, total = (int(word) for word in lines[2].replace(" of ", " ").split() if word.isdigit())
    assert stored * 20 < total


@pytest.mark.slow
def test_ray_data(fresh_run: Any) -> None:
    """A data set is predicted by two workers as the model would."""
    pytest.importorskip("ray.data")
    printed = fresh_run("-W", "ignore", str(EXAMPLES / "ray_data.py"), "2").stdout
    assert "200 rows by 2 workers, as the model's: True" in printed, printed


@pytest.mark.slow
def test_ray_serve(fresh_run: Any) -> None:
    """Two replicas answer by HTTP with the first version, and after a reload with the second."""
    pytest.importorskip("ray.serve")
    printed = fresh_run("-W", "ignore", str(EXAMPLES / "ray_serve.py"), "2", str(free_port())).stdout
    assert "version 1: [4.0]\nversion 2: [8.0]\n" in printed, printed
