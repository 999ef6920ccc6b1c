"""Continue a text with a ternary language model."""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import time

from ternary._cli.language_model import add_model, add_sampling, open_model, start


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of this command."""
    add_model(parser)
    parser.add_argument("prompt", help="the text to continue, or - for standard input")
    parser.add_argument(
        "--chat", action="store_true", help="send the text as a user's message, through the chat template"
    )
    parser.add_argument(
        "--stream",
        action="store_true",
        help="with --json: a line for each piece of text as it comes, the whole at the end",
    )
    add_sampling(parser)


def run(a: argparse.Namespace) -> int:
    """Run the command; return its exit status."""
    begin = time.perf_counter()
    text = sys.stdin.read() if a.prompt == "-" else a.prompt
    model = open_model(a)
    opened = time.perf_counter()
    generation = start(model, [{"role": "user", "content": text}] if a.chat else text, a)
    pieces, first = [], None
    with contextlib.closing(generation):
        for piece in generation:
            first = time.perf_counter() if first is None else first
            pieces.append(piece)
            if not a.json:
                print(piece, end="", flush=True)
            elif a.stream:
                print(json.dumps({"piece": piece}, ensure_ascii=False), flush=True)
    end = time.perf_counter()
    if not a.json:
        print()
        return 0
    row = {
        "text": "".join(pieces),
        "finish": generation.finish,
        "prompt_tokens": generation.prompt_tokens,
        "tokens": len(generation.tokens),
        "open_seconds": opened - begin,
        "first_token_seconds": None if first is None else first - opened,
        "seconds": end - opened,
    }
    print(json.dumps(row, indent=None if a.stream else 2, ensure_ascii=False))
    return 0
