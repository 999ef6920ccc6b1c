"""What each export format weighs on disk, against the float32 weights of the same network."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from measure import row

import ternary
from ternary.export import FORMATS, export


def ternary_mlp() -> torch.nn.Module:
    """Nothing but ternary weights, so that the file's size is that of the format."""
    layers = [ternary.nn.TernaryLinear(1024, 1024, bias=False) for _ in range(4)]
    return torch.nn.Sequential(*layers).eval()


def rows(quick: bool) -> list[dict[str, Any]]:
    """Bytes of every format, for ternary layers alone and for ResNet-18 with its float ends."""
    torch.set_num_threads(1)
    found = []
    networks = [("4 ternary layers of 1024x1024", ternary_mlp(), torch.randn(2, 1024))]
    if not quick:
        networks.append(("ResNet18", ternary.zoo.load("resnet18")().eval(), torch.randn(2, 3, 64, 64)))
    for name, model, example in networks:
        full = sum(p.numel() * 4 for p in model.parameters())
        for kind in FORMATS if not quick else ("safetensors", "base3", "onnx", "gguf"):
            with tempfile.TemporaryDirectory() as folder:
                begin = time.perf_counter()
                try:
                    size: int | None = export(model, Path(folder), [kind], example=example).files[0].bytes
                except ternary.TernaryError as error:
                    print(f"{kind}: {error}")
                    size = None
                took = time.perf_counter() - begin
            target = 1 / 15 if name != "ResNet18" else None
            metric = f"{name} as {kind} on disk (written in {took:.1f} s)"
            found.append(row(metric, "bytes", size, "fp32", full, target))
    return found
