"""Show every error of sources, with carets."""

from __future__ import annotations

import argparse
import json

from ternary._cli.sources import locate
from ternary.errors import CompileError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of this command."""
    parser.add_argument("sources", nargs="+", help="a .tri file, a zoo name, or - for standard input")


def run(a: argparse.Namespace) -> int:
    """Run the command; return its exit status."""
    from ternary._language.compiler import analyse, read_source

    found: list[dict[str, object]] = []
    for name in a.sources:
        try:
            text = read_source(*locate(name))
            diagnostics = analyse(text)[1].sorted()
        except CompileError as e:
            text, diagnostics = e.source, e.diagnostics
        found += [d.as_dict(text) for d in diagnostics]
        if not a.json:
            for d in diagnostics:
                print(d.render(text), end="\n\n")
            print(f"{text.name}: {len(diagnostics) or 'no'} error{'' if len(diagnostics) == 1 else 's'}")
    if a.json:
        print(json.dumps(found, indent=2))
    return int(bool(found))
