"""Two replicas of Ray Serve answer the official client of OpenAI from one published copy of the weights."""

from __future__ import annotations

import contextlib
import os
import runpy
import secrets
import socket
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("openai")
pytest.importorskip("starlette")
pytest.importorskip("zerocopy")
pytest.importorskip("ray")

HERE = Path(__file__).parent
PROGRAM = """
import os, sys
import ray
from ray import serve
import openai
from ternary import llm

path, port = sys.argv[1], int(sys.argv[2])
ray.init("local", num_cpus=3, include_dashboard=False, logging_level="error")
serve.start(http_options={"host": "127.0.0.1", "port": port})
ref = llm.publish(path)
app = llm.deployment(ref, name="small", replicas=2, threads=1, context=64, ray_actor_options={"num_cpus": 0.5})
serve.run(app, route_prefix="/")
expected = llm.load(path, threads=1).generate("the quick", max_tokens=5).text()
with openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none") as client:
    asked = {"model": "small", "prompt": "the quick", "max_tokens": 5}
    found = {client.completions.create(**asked).choices[0].text for _ in range(8)}
    parts = client.completions.create(**asked, stream=True)
    found.add("".join(part.choices[0].text for part in parts))
assert found == {expected}, (found, expected)
replicas = serve.status().applications["default"].deployments["model"].replica_states
print("replicas", replicas, flush=True)
assert sum(replicas.values()) == 2
serve.shutdown()
ray.shutdown()
print("served", flush=True)
os._exit(0)
"""


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_two_replicas_on_ray_serve(tmp_path: Path) -> None:
    """Eight answers and a stream equal what the model generates alone."""
    folder, _ = runpy.run_path(str(HERE / "llm_models.py"))["folder_of"](tmp_path)
    from ternary.llm import convert

    convert(folder, tmp_path / "m.ternary")
    port = 0
    while not port:  # between those that Ray's workers take and those that systems choose
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", chosen := 20000 + secrets.randbelow(12000)))
            port = chosen
    run = [sys.executable, "-c", PROGRAM, str(tmp_path / "m.ternary"), str(port)]
    environment = {**os.environ, "PYTHONWARNINGS": "ignore", "RAY_USAGE_STATS_ENABLED": "0"}
    done = subprocess.run(run, capture_output=True, text=True, timeout=380, check=False, env=environment)
    assert "served" in done.stdout, done.stdout[-2000:] + done.stderr[-4000:]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="Pss is counted on Linux")
@pytest.mark.timeout(300)
def test_workers_hold_one_copy(tmp_path: Path) -> None:
    """Four workers hold less than two copies of the weights, above what their interpreters take."""
    from ternary.llm import ModelConfig

    config = ModelConfig(8000, hidden=1024, inner=4096, layers=24, heads=16, kv_heads=4, head_size=64, context=64)
    runpy.run_path(str(HERE / "llm_random.py"))["write_random"](config, tmp_path / "m.ternary")
    script = HERE.parent / "examples" / "shared_workers.py"
    run = [sys.executable, str(script), str(tmp_path / "m.ternary"), "--workers", "1", "4", "--tokens", "2"]
    done = subprocess.run(run, capture_output=True, text=True, timeout=280, check=True)
    one, four = (float(line.split(": ")[1].split(" MB")[0]) * 1e6 for line in done.stdout.splitlines()[1:3])
    size = (tmp_path / "m.ternary").stat().st_size
    assert four - 4 * (one - size) < 2 * size
