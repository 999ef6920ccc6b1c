"""Serve a ternary language model over HTTP, with the protocol of OpenAI.

`--follow NAME` serves what `ternary share` has in shared memory under that name, always in its newest version.
"""

from __future__ import annotations

import argparse
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
    from ternary.llm._versions import Versions

    options = {"kernel": a.kernel, "threads": a.threads, "cache_bits": a.cache_bits, "context": a.context}
    source = _source(a)
    try:
        versions = Versions(source, a.name, a.parallel, a.queue, options)
    except ValueError as e:
        raise e if isinstance(e, TernaryError) else TernaryError(str(e)) from None
    try:
        versions.current.model.tokenizer  # noqa: B018 - a model without one is refused now, not at the first request
        config = uvicorn.Config(application(versions), host=a.host, port=a.port, log_level="info")
        server = uvicorn.Server(config)
        server.run()
    finally:
        versions.close()
    return 0 if server.started else 1


def _source(a: argparse.Namespace) -> Any:
    if (a.model is None) == (a.follow is None):
        raise TernaryError("give either a model or --follow NAME")
    if a.follow is None:
        return a.model
    try:
        import zerocopy
    except ImportError as e:
        raise MissingExtraError("following needs zerocopy; pip install 'pentad-ternary[share]'") from e
    try:
        return zerocopy.follow(a.follow)
    except (zerocopy.ZerocopyError, ValueError) as e:
        raise TernaryError(str(e)) from None
