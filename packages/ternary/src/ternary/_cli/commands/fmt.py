"""Rewrite sources in the one canonical form."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from ternary._wholefile import whole_file
from ternary.errors import CompileError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of this command."""
    parser.add_argument("sources", nargs="+", help=".tri files, or - to filter standard input")
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if a file would change")


def run(a: argparse.Namespace) -> int:
    """Run the command; return its exit status."""
    from ternary._language.formatter import format_source

    broken = False
    changed: list[str] = []
    for name in a.sources:
        path = Path(name).resolve()  # a link stays one
        try:
            text = format_source(sys.stdin.read(), name="<stdin>") if name == "-" else format_source(path)
        except CompileError as e:
            print(e, file=sys.stderr)
            broken = True
            continue
        if name == "-":
            print(json.dumps({"text": text}, indent=2) if a.json else text, end="\n" if a.json else "")
        elif text != path.read_text(encoding="utf-8"):
            changed.append(name)
            if not a.json:
                print(f"{'would reformat' if a.check else 'reformatted'} {name}")
            if not a.check:
                with whole_file(path) as temporary:
                    temporary.write_text(text, encoding="utf-8")
    if a.json and a.sources != ["-"]:
        print(json.dumps({"written": not a.check, "changed": changed}, indent=2))
    return int(broken or (a.check and bool(changed)))
