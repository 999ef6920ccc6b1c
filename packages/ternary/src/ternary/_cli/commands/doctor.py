"""Say which kernel runs packed layers here and why, and what is installed."""

from __future__ import annotations

import argparse
import json


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add no options: this command has none of its own."""
    del parser


def run(a: argparse.Namespace) -> int:
    """Run the command; return its exit status."""
    from ternary.runtime import doctor

    report = doctor()
    print(json.dumps(report.as_dict(), indent=2) if a.json else report)
    return 0
