"""Serve a ternary language model over HTTP, with the protocol of OpenAI.

`--follow NAME` serves what `ternary share` has in shared memory under that name, always in its newest version.
"""

from __future__ import annotations

import argparse
import sys
import threading
from typing import Any

from ternary._cli.language_model import add_model
from ternary.errors import MissingExtraError, TernaryError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of this command."""
    add_model(parser, optional=True)
    parser.add_argument("--follow", metavar="NAME", help="serve the newest version under a name of `ternary share`")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default %(default)s)")
    parser.add_argument(
        "--port", type=int, default=8000, help="port to listen on, 0 for a free one (default %(default)s)"
    )
    parser.add_argument(
        "--workers", type=int, default=1, help="processes that answer at the address (default %(default)s)"
    )
    parser.add_argument("--name", help="what the model is called (its file's name by default)")
    parser.add_argument("--parallel", type=int, default=8, help="requests that run at once (default %(default)s)")
    parser.add_argument("--queue", type=int, default=64, help="requests that may wait (default %(default)s)")


def run(a: argparse.Namespace) -> int:
    """Run the command; return its exit status."""
    try:
        import uvicorn

        from ternary.llm._connections import configuration
        from ternary.llm._server import application
    except ImportError as e:
        raise MissingExtraError(f"{e.name} is needed here; pip install 'pentad-ternary[serve]'") from e
    from ternary.llm._versions import Versions

    options = {"kernel": a.kernel, "threads": a.threads, "cache_bits": a.cache_bits, "context": a.context}
    try:
        if a.workers != 1:
            return _serve_by_workers(a, options)
        versions = Versions(_source(a), a.name, a.parallel, a.queue, options)
    except ValueError as e:
        raise e if isinstance(e, TernaryError) else TernaryError(str(e)) from None
    try:
        versions.current.model.tokenizer  # noqa: B018 - a model without one is refused now, not at the first request
        server = uvicorn.Server(configuration(application(versions), host=a.host, port=a.port, log_level="info"))
        server.run()
    finally:
        versions.close()
    return 0 if server.started else 1


def _serve_by_workers(a: argparse.Namespace, options: dict[str, Any]) -> int:
    from ternary.llm import serve

    options |= {"name": a.name, "parallel": a.parallel, "queue": a.queue}
    with serve(_source(a), workers=a.workers, host=a.host, port=a.port, **options) as served:
        served.wait()
        print(f"{a.workers} workers running on {served.url} (Press CTRL+C to quit)", file=sys.stderr, flush=True)
        threading.Event().wait()
    return 0


def _source(a: argparse.Namespace) -> Any:
    if (a.model is None) == (a.follow is None):
        raise TernaryError("give either a model or --follow NAME")
    if a.follow is None:
        return a.model
    from ternary.llm._shared import follow_name

    return follow_name(a.follow)
