"""The programs in examples/ run as they stand."""

from __future__ import annotations

import json
import os
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
    pytest.mark.timeout(240),
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
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [
        "-m",
        "uvicorn",
        "--app-dir",
        str(EXAMPLES),
        "--port",
        str(port),
        "--workers",
        "2",
        "fastapi_workers:app",
    ]
    environment = {**os.environ, "EXAMPLE_DIRECTORY": str(tmp_path)}
    server = subprocess.Popen([sys.executable, *command], env=environment, stderr=subprocess.DEVNULL)
    rows = torch.ones(2, 1024)

    def post() -> dict[str, Any]:
        body, headers = json.dumps(rows.tolist()).encode(), {"Content-Type": "application/json"}
        with urllib.request.urlopen(
            urllib.request.Request(f"http://127.0.0.1:{port}/", body, headers), timeout=30
        ) as got:
            return dict(json.load(got))

    def answers() -> bool:
        try:
            return bool(post())
        except OSError:
            return False

    try:
        assert eventually(answers, 120)
        torch.manual_seed(0)
        model = nn.Sequential(*[nn.Linear(1024, 1024) for _ in range(8)]).eval()
        seen = [post() for _ in range(30)]
        with torch.no_grad():
            wanted = model(rows).sum(1)
        assert all(torch.allclose(torch.tensor(each["sums"]), wanted, atol=1e-4) for each in seen)
        assert server.pid not in {each["worker"] for each in seen}
        assert len(list(tmp_path.glob("*.zc"))) == 1
    finally:
        server.terminate()
        server.wait(60)
    assert eventually(lambda: list(tmp_path.iterdir()) == [])


@pytest.mark.slow
def test_ray_actors(fresh_run: Any) -> None:
    """Two actors and a task give the model's answers, and the actors switch to the second version."""
    pytest.importorskip("ray")
    printed = fresh_run(str(EXAMPLES / "ray_actors.py"), "2").stdout
    assert "answers are the model's: True\nversions: [2, 2]" in printed, printed
