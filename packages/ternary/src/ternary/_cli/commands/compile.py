"""Write the PyTorch source of a program."""

from __future__ import annotations

import argparse
import json
import sys

from ternary._cli.sources import locate
from ternary._wholefile import whole_file


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of this command."""
    parser.add_argument("source", help="a .tri file, a zoo name, or - for standard input")
    parser.add_argument("-o", "--output", help="where to (standard output by default)")
    parser.add_argument("--float", action="store_true", dest="as_float", help="float layers in place of ternary ones")


def run(a: argparse.Namespace) -> int:
    """Run the command; return its exit status."""
    from ternary._language.compiler import generate

    source, name = locate(a.source)
    code = generate(source, name=name, quantized=not a.as_float)
    if a.output:
        with whole_file(a.output) as temporary:
            temporary.write_text(code, encoding="utf-8")
    if a.json:
        print(json.dumps({"source": name, "code": code, "file": a.output}, indent=2))
    elif not a.output:
        sys.stdout.write(code)
    return 0
