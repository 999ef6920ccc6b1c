"""Serve a ternary language model over HTTP, with the protocol of OpenAI."""

from __future__ import annotations

import argparse

from ternary._cli.language_model import add_model, open_model
from ternary.errors import MissingExtraError, TernaryError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of this command."""
    add_model(parser)
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default %(default)s)")
    parser.add_argument(
        "--port", type=int, default=8000, help="port to listen on, 0 for a free one (default %(default)s)"
    )
    parser.add_argument("--name", help="what the model is called (its file's name by default)")
    parser.add_argument("--parallel", type=int, default=8, help="requests that run at once (default %(default)s)")
    parser.add_argument("--queue", type=int, default=64, help="requests that may wait (default %(default)s)")


def run(a: argparse.Namespace) -> int:
    """Run the command; return its exit status."""
    try:
        import uvicorn

        from ternary.llm._server import application
    except ImportError as e:
        raise MissingExtraError(f"{e.name} is needed here; pip install 'pentad-ternary[serve]'") from e
    from pathlib import Path

    from ternary.llm._batching import Scheduler
    from ternary.llm._hubcache import model_name

    model = open_model(a)
    model.tokenizer  # noqa: B018 - a model without one is refused now, and not at the first request
    try:
        scheduler = Scheduler(model, parallel=a.parallel, queue=a.queue)
    except ValueError as e:
        raise TernaryError(str(e)) from None
    name = a.name or model_name(Path(a.model))
    server = uvicorn.Server(
        uvicorn.Config(application(model, scheduler, name), host=a.host, port=a.port, log_level="info")
    )
    try:
        server.run()
    finally:
        scheduler.close()
    return 0 if server.started else 1
