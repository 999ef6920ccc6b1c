"""Write a model file of a Hugging Face folder or a GGUF file."""

from __future__ import annotations

import argparse
import json


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of this command."""
    parser.add_argument("source", help="a folder with config.json and .safetensors files, or a .gguf file")
    parser.add_argument("output", help="where to, by custom ending in .ternary")
    parser.add_argument(
        "--weights",
        choices=("exact", "absmean"),
        help="exact refuses weights that are not ternary, absmean quantizes float weights as BitNet b1.58 does",
    )


def run(a: argparse.Namespace) -> int:
    """Run the command; return its exit status."""
    from pathlib import Path

    from ternary.llm import convert

    convert(a.source, a.output, weights=a.weights)
    size = Path(a.output).stat().st_size
    print(json.dumps({"file": a.output, "bytes": size}, indent=2) if a.json else f"{a.output}: {size:,} bytes")
    return 0
