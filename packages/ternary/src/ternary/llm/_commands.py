"""The commands `chat`, `generate`, `serve` and `convert` of the command line."""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import time
from collections.abc import Callable
from typing import Any

from ternary.errors import MissingExtraError, TernaryError

__all__ = ["add_commands"]

_AddCommand = Callable[[str, Callable[[argparse.Namespace], int], str], argparse.ArgumentParser]


def add_commands(command: _AddCommand) -> None:
    """Add the commands for language models to the command line's parser."""
    c = command("generate", _generate, "Continue a text with a ternary language model.")
    _add_model(c)
    c.add_argument("prompt", help="the text to continue, or - for standard input")
    c.add_argument("--chat", action="store_true", help="send the text as a user's message, through the chat template")
    c.add_argument("--json", action="store_true", help="print one JSON object with the text and what it took")
    _add_sampling(c)

    c = command("chat", _chat, "Talk with a ternary language model; /exit or Ctrl-D ends, /new starts over.")
    _add_model(c)
    c.add_argument("--system", help="a system message to start from")
    _add_sampling(c)

    c = command("serve", _serve, "Serve a ternary language model over HTTP, with the protocol of OpenAI.")
    _add_model(c)
    c.add_argument("--host", default="127.0.0.1", help="address to listen on (default %(default)s)")
    c.add_argument("--port", type=int, default=8000, help="port to listen on, 0 for a free one (default %(default)s)")
    c.add_argument("--name", help="what the model is called (its file's name by default)")
    c.add_argument("--parallel", type=int, default=8, help="requests that run at once (default %(default)s)")
    c.add_argument("--queue", type=int, default=64, help="requests that may wait (default %(default)s)")

    c = command("convert", _convert, "Write a model file of a Hugging Face folder or a GGUF file.")
    c.add_argument("source", help="a folder with config.json and .safetensors files, or a .gguf file")
    c.add_argument("output", help="where to, by custom ending in .ternary")
    c.add_argument(
        "--weights",
        choices=("exact", "absmean"),
        help="exact refuses weights that are not ternary, absmean quantizes float weights as BitNet b1.58 does",
    )


def _add_model(c: argparse.ArgumentParser) -> None:
    c.add_argument("model", help="a model file, a Hugging Face folder or a GGUF file")
    c.add_argument("--threads", type=int, default=0, help="threads of a step, 0 for one per processor")
    c.add_argument("--kernel", default="auto", help="the kernel to use (default: the fastest one)")
    c.add_argument("--context", type=int, default=0, help="longest sequence in tokens, 0 for the model's own limit")
    c.add_argument("--cache-bits", type=int, choices=(8, 16), default=16, help="bits of the keys and values kept")


def _add_sampling(c: argparse.ArgumentParser) -> None:
    c.add_argument("--max-tokens", type=int, help="most tokens to generate")
    c.add_argument("--temperature", type=float, help="0 takes the most likely token")
    c.add_argument("--top-k", type=int, help="how many of the most likely tokens are candidates")
    c.add_argument("--top-p", type=float, help="keep the smallest set of candidates with this probability")
    c.add_argument("--min-p", type=float, help="drop candidates below this times the largest probability")
    c.add_argument("--repetition-penalty", type=float, help="above 1, tokens that occurred become less likely")
    c.add_argument("--seed", type=int, help="makes the choices repeatable")
    c.add_argument("--stop", action="append", help="a text that ends the generation; may be given again")


def _load(a: argparse.Namespace) -> Any:
    from ternary.llm import load

    try:
        return load(a.model, kernel=a.kernel, threads=a.threads, cache_bits=a.cache_bits, context=a.context)
    except ValueError as e:
        raise e if isinstance(e, TernaryError) else TernaryError(str(e)) from None


def _options(a: argparse.Namespace) -> dict[str, Any]:
    names = ("max_tokens", "temperature", "top_k", "top_p", "min_p", "repetition_penalty", "seed", "stop")
    return {name: getattr(a, name) for name in names}


def _start(model: Any, prompt: Any, a: argparse.Namespace) -> Any:
    """Begin a generation; wrong options become errors of the command line."""
    try:
        return model.generate(prompt, **_options(a))
    except ValueError as e:
        raise e if isinstance(e, TernaryError) else TernaryError(str(e)) from None


def _generate(a: argparse.Namespace) -> int:
    begin = time.perf_counter()
    text = sys.stdin.read() if a.prompt == "-" else a.prompt
    model = _load(a)
    opened = time.perf_counter()
    generation = _start(model, [{"role": "user", "content": text}] if a.chat else text, a)
    pieces, first = [], None
    with contextlib.closing(generation):
        for piece in generation:
            first = time.perf_counter() if first is None else first
            pieces.append(piece)
            if not a.json:
                print(piece, end="", flush=True)
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
    print(json.dumps(row, indent=1, ensure_ascii=False))
    return 0


def _chat(a: argparse.Namespace) -> int:
    model = _load(a)
    start = [{"role": "system", "content": a.system}] if a.system else []
    messages = list(start)
    show = sys.stdin.isatty()
    while True:
        try:
            line = input("> " if show else "")
        except EOFError:
            return 0
        if line.strip() == "/exit":
            return 0
        if line.strip() == "/new":
            messages = list(start)
            continue
        if not line.strip():
            continue
        messages.append({"role": "user", "content": line})
        pieces = []
        generation = _start(model, messages, a)
        try:
            with contextlib.closing(generation):
                for piece in generation:
                    pieces.append(piece)
                    print(piece, end="", flush=True)
        except KeyboardInterrupt:
            print(" [interrupted]", end="")
        print()
        messages.append({"role": "assistant", "content": "".join(pieces)})


def _serve(a: argparse.Namespace) -> int:
    try:
        import uvicorn

        from ternary.llm._server import application
    except ImportError as e:
        raise MissingExtraError(f"{e.name} is needed here; pip install 'pentad-ternary[serve]'") from e
    from pathlib import Path

    from ternary.llm._batching import Scheduler

    model = _load(a)
    model.tokenizer  # noqa: B018 - a model without one is refused now, and not at the first request
    try:
        scheduler = Scheduler(model, parallel=a.parallel, queue=a.queue)
    except ValueError as e:
        raise TernaryError(str(e)) from None
    name = a.name or Path(a.model).resolve().stem
    server = uvicorn.Server(
        uvicorn.Config(application(model, scheduler, name), host=a.host, port=a.port, log_level="info")
    )
    try:
        server.run()
    finally:
        scheduler.close()
    return 0 if server.started else 1


def _convert(a: argparse.Namespace) -> int:
    from pathlib import Path

    from ternary.llm import convert

    convert(a.source, a.output, weights=a.weights)
    print(f"{a.output}: {Path(a.output).stat().st_size:,} bytes")
    return 0
