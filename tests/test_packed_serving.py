"""ternary packs a network and zerocopy publishes it: several workers answer from one copy of the 2-bit weights."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import ternary
import zerocopy

SOURCE = """
model Wide(width: int = 4096) {
  body = repeat(4) ternary Linear(width, width, bias=false)
  forward(x: float[N, width]) -> float[N, width] { return body(x) }
}
"""

# A worker says what it answers, and how much of the segment's memory counts as its own part.
WORKER = """
import json, pickle, sys, torch
torch.set_num_threads(1)
ref, device = pickle.loads(bytes.fromhex(sys.argv[1])), sys.argv[2]
model = ref.load(device=device)
x = torch.linspace(-1, 1, 2 * 4096, device=device).reshape(2, 4096)
torch.save(model(x).cpu(), sys.argv[3])
print("ready", flush=True)
sys.stdin.readline()

def of_segment(field):
    total, inside = 0, False
    for line in open("/proc/self/smaps"):
        if "-" in line.split()[0] and ":" not in line.split()[0]:
            inside = line.rstrip().endswith(".zc")
        elif inside and line.startswith(field + ":"):
            total += int(line.split()[1]) * 1024
    return total

print(json.dumps({"pss": of_segment("Pss"), "written": of_segment("Anonymous")}), flush=True)
sys.stdin.readline()
"""


@pytest.mark.timeout(300)
def test_workers_serve_from_one_packed_copy(device: str, tmp_path: Path) -> None:
    """Four workers answer exactly as the unshared model; their shares of the weights add up to one copy."""
    torch.manual_seed(0)
    packed = ternary.pack(ternary.compile(SOURCE)())
    size = sum(t.nbytes for t in (*packed.parameters(), *packed.buffers()))
    assert size < 4 * 4096 * 4096 * 4 / 15
    x = torch.linspace(-1, 1, 2 * 4096).reshape(2, 4096)
    expected = packed.to(device)(x.to(device)).cpu()

    count = 4
    ref = zerocopy.publish(packed.to("cpu"), name="packed-serving")
    token = pickle.dumps(ref).hex()
    outputs = [tmp_path / f"{number}.pt" for number in range(count)]
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", WORKER, token, device, str(output)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for output in outputs
    ]
    try:
        for worker in workers:
            assert worker.stdout is not None
            assert worker.stdout.readline() == "ready\n"
        # All four have it mapped now, so the kernel divides the shared pages among them.
        shares = []
        for worker in workers:
            assert worker.stdin is not None
            assert worker.stdout is not None
            worker.stdin.write("\n")
            worker.stdin.flush()
            shares.append(json.loads(worker.stdout.readline()))
    finally:
        for worker in workers:
            worker.communicate("\n")
        zerocopy.unpublish(ref)
    for output in outputs:
        assert torch.equal(torch.load(output), expected)
    if device == "cpu":
        assert sum(share["written"] for share in shares) == 0
        assert 0.9 * size <= sum(share["pss"] for share in shares) <= 1.1 * size
