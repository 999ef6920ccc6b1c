"""Time compiling and one forward pass of a network."""

from __future__ import annotations

import argparse
import json
import time

from ternary._cli.sources import locate
from ternary._cli.values import positive, sizes
from ternary.errors import TernaryError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of this command."""
    parser.add_argument("source", help="a .tri file, a zoo name, or - for standard input")
    parser.add_argument("--shape", type=sizes, required=True, help="input shape, such as 1,3,224,224")
    parser.add_argument("--repeat", type=positive, default=10, help="forward passes (default %(default)s)")


def run(a: argparse.Namespace) -> int:
    """Run the command; return its exit status."""
    import statistics

    import torch

    from ternary._language.compiler import compile as compile_source

    source, name = locate(a.source)
    begin = time.perf_counter()
    made = compile_source(source, name=name)
    compiled = time.perf_counter() - begin
    model = made().eval()
    times = []
    with torch.inference_mode():
        try:
            x = torch.randn(a.shape)
            model(x)
        except (RuntimeError, TypeError) as e:
            raise TernaryError(f"{name} does not take one input of shape {list(a.shape)}: {e}") from None
        for _ in range(a.repeat):
            begin = time.perf_counter()
            model(x)
            times.append(time.perf_counter() - begin)
    row = {
        "compile_ms": 1e3 * compiled,
        "forward_ms": 1e3 * statistics.median(times),
        "parameters": sum(p.numel() for p in model.parameters()),
        "threads": torch.get_num_threads(),
    }
    print(json.dumps(row, indent=2) if a.json else "\n".join(f"{k:12} {v:,.2f}" for k, v in row.items()))
    return 0
