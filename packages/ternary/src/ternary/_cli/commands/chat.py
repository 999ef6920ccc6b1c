"""Talk with a ternary language model; /exit ends, /new starts over, Ctrl-C ends an answer."""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
from typing import Any

from ternary._cli.language_model import add_model, add_sampling, open_model
from ternary._cli.language_model import start as start_generation
from ternary.errors import ContextLengthError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of this command."""
    add_model(parser)
    parser.add_argument("--system", help="a system message to start from")
    add_sampling(parser)


def run(a: argparse.Namespace) -> int:
    """Run the command; return its exit status."""
    model = open_model(a)
    start = [{"role": "system", "content": a.system}] if a.system else []
    messages = list(start)
    show = sys.stdin.isatty()
    while True:
        try:
            line = input("> " if show else "")
        except (EOFError, KeyboardInterrupt):
            return 0
        if line.strip() == "/exit":
            return 0
        if line.strip() == "/new":
            messages = list(start)
            continue
        if not line.strip():
            continue
        messages.append({"role": "user", "content": line})
        pieces: list[str] = []
        try:
            generation = _begin(model, messages, len(start), a)
        except ContextLengthError as e:
            messages.pop()
            print(f"ternary: {e}", file=sys.stderr)
            continue
        try:
            with contextlib.closing(generation):
                for piece in generation:
                    pieces.append(piece)
                    if not a.json:
                        print(piece, end="", flush=True)
        except KeyboardInterrupt:
            if not a.json:
                print(" [interrupted]", end="")
        messages.append({"role": "assistant", "content": "".join(pieces)})
        print(json.dumps({**messages[-1], "finish": generation.finish}, ensure_ascii=False) if a.json else "")


def _begin(model: Any, messages: list[dict[str, str]], kept: int, a: argparse.Namespace) -> Any:
    """Begin an answer; leave out the oldest turns behind the first `kept` messages until the rest fits."""
    while True:
        try:
            return start_generation(model, messages, a)
        except ContextLengthError:
            if len(messages) - kept < 3:
                raise
            del messages[kept : kept + 2]
