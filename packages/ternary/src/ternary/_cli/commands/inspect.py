"""Show layers, zeros and bytes of a model file."""

from __future__ import annotations

import argparse
import json
import math
import sys


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of this command."""
    parser.add_argument("model", help="a .safetensors file of this library")
    parser.add_argument("--picture", help="draw it to this file (PNG, SVG or PDF)")


def run(a: argparse.Namespace) -> int:
    """Run the command; return its exit status."""
    from ternary import _modelfile as modelfile
    from ternary import _plot as plot

    found = modelfile.info(a.model)
    rows = []
    for name, entry in found.layers.items():
        size = math.prod(entry.shape)
        packed = found.tensor_bytes.get((name + "." if name else "") + "weight.packed", 0)
        rows.append({"layer": name, "shape": list(entry.shape), "zeros": entry.zeros / max(1, size), "bytes": packed})
    if a.json:
        whole = {"model": found.model, "arguments": found.arguments, "bytes": found.file_bytes, "layers": rows}
        print(json.dumps(whole, indent=2))
    else:
        print(
            f"{found.model}({', '.join(f'{k}={v!r}' for k, v in found.arguments.items())}), {found.file_bytes:,} bytes"
        )
        for row in rows:
            print(f"{row['layer']!s:40} {row['shape']!s:20} zeros {row['zeros']:6.1%} {row['bytes']:>10,} bytes")
    if a.picture:
        plot.model_picture(found, a.picture)
        print(f"picture: {a.picture}", file=sys.stderr)
    return 0
