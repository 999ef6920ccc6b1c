"""Write a model file again with another encoding."""

from __future__ import annotations

import argparse
import json


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of this command."""
    parser.add_argument("model", help="a .safetensors file of this library")
    parser.add_argument("output", help="where to")
    parser.add_argument(
        "--encoding", choices=("2bit", "base3"), default="base3", help="4 or 5 weights a byte (default %(default)s)"
    )


def run(a: argparse.Namespace) -> int:
    """Run the command; return its exit status."""
    from ternary import _modelfile as modelfile

    before = modelfile.info(a.model)
    after = modelfile.save(modelfile.load(a.model), a.output, arguments=before.arguments, encoding=a.encoding)
    if a.json:
        print(json.dumps({"file": a.output, "bytes": after.file_bytes, "bytes_before": before.file_bytes}, indent=2))
    else:
        print(f"{a.output}: {after.file_bytes:,} bytes, before {before.file_bytes:,}")
    return 0
