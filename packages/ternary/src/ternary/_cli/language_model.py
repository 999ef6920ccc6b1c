"""The options that the commands for language models share, and how they open a model."""

from __future__ import annotations

import argparse
from typing import Any

from ternary.errors import TernaryError

__all__ = ["add_model", "add_sampling", "open_model", "start"]


def add_model(parser: argparse.ArgumentParser, *, optional: bool = False) -> None:
    """Add the model and how to open it.

    Args:
        parser: The command's parser.
        optional: Whether the command works without one.
    """
    parser.add_argument(
        "model",
        nargs="?" if optional else None,
        help="a model file, a Hugging Face folder, a GGUF file, or the name of a model in the cache of the Hub",
    )
    parser.add_argument("--threads", type=int, default=0, help="threads of a step, 0 for one per processor")
    parser.add_argument("--kernel", default="auto", help="the kernel to use (default: the fastest one)")
    parser.add_argument(
        "--context", type=int, default=0, help="longest sequence in tokens, 0 for the model's own limit"
    )
    parser.add_argument("--cache-bits", type=int, choices=(8, 16), default=16, help="bits of the keys and values kept")


def add_sampling(parser: argparse.ArgumentParser) -> None:
    """Add how tokens are chosen."""
    parser.add_argument("--max-tokens", type=int, help="most tokens to generate")
    parser.add_argument("--temperature", type=float, help="0 takes the most likely token")
    parser.add_argument("--top-k", type=int, help="how many of the most likely tokens are candidates")
    parser.add_argument("--top-p", type=float, help="keep the smallest set of candidates with this probability")
    parser.add_argument("--min-p", type=float, help="drop candidates below this times the largest probability")
    parser.add_argument("--repetition-penalty", type=float, help="above 1, tokens that occurred become less likely")
    parser.add_argument("--seed", type=int, help="makes the choices repeatable")
    parser.add_argument("--stop", action="append", help="a text that ends the generation; may be given again")


def open_model(a: argparse.Namespace) -> Any:
    """Open the model; wrong options become errors of the command line."""
    from ternary.llm import load

    try:
        return load(a.model, kernel=a.kernel, threads=a.threads, cache_bits=a.cache_bits, context=a.context)
    except ValueError as e:
        raise e if isinstance(e, TernaryError) else TernaryError(str(e)) from None


def _options(a: argparse.Namespace) -> dict[str, Any]:
    names = ("max_tokens", "temperature", "top_k", "top_p", "min_p", "repetition_penalty", "seed", "stop")
    return {name: getattr(a, name) for name in names}


def start(model: Any, prompt: Any, a: argparse.Namespace) -> Any:
    """Begin a generation; wrong options become errors of the command line."""
    try:
        return model.generate(prompt, **_options(a))
    except ValueError as e:
        raise e if isinstance(e, TernaryError) else TernaryError(str(e)) from None
