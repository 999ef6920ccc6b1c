"""The server as an ASGI application, for uvicorn, for Ray Serve, or inside another application."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from ternary.errors import MissingExtraError, ModelClosedError
from ternary.llm._versions import Source, Versions

__all__ = ["application"]


def application(source: Source, *, name: str | None = None, parallel: int = 8, queue: int = 64, **options: Any) -> Any:
    """Open a model and return an ASGI application that speaks the protocol of OpenAI, as `ternary serve` does.

    The model and its thread close when the application's lifespan ends, which servers such as uvicorn signal.

    A source with a method `get`, such as `zerocopy.follow(name)`, may change its model while requests run. Each request
    is answered wholly by the version that is newest when it comes. An older version closes when its last request has
    ended. A version that cannot be opened is logged, `/health` says why, and the one before answers on.

    Args:
        source: A model file, a reference of `publish`, or an object whose `get()` returns the newest version, any value
            that tells it from others, and the model, in one of these forms.
        name: What the model is called in answers; None for the name of its file, or of each version's file.
        parallel: Requests that run at once.
        queue: Requests that may wait; those beyond are answered 429.
        **options: Passed to `load`, such as `threads=2`.

    Returns:
        The application. `application.state.status()` returns what `/health` says.

    Raises:
        MissingExtraError: The extra `serve` is not installed.
        ModelClosedError: From a second lifespan.

    Example:
        >>> import asyncio, tempfile
        >>> from ternary import llm
        >>> config = llm.ModelConfig(64, hidden=32, inner=64, layers=1, heads=2, kv_heads=1, head_size=16, context=32)
        >>> llm.save(llm.Decoder(config, ternary=True), path := tempfile.mkdtemp() + "/m.ternary")
        >>> app = llm.application(path, name="tiny", threads=1)
        >>> async def lifespan():
        ...     async with app.router.lifespan_context(app):  # as uvicorn.run(app) does
        ...         return app.routes[0].path, app.state.status()["model"]
        >>> asyncio.run(lifespan())
        ('/v1/chat/completions', 'tiny')
    """
    try:
        from ternary.llm._server import application as serving
    except ImportError as e:
        raise MissingExtraError(f"{e.name} is needed here; pip install 'pentad-ternary[serve]'") from e
    versions = Versions(source, name, parallel, queue, options)

    @asynccontextmanager
    async def lifespan(_: Any) -> AsyncIterator[None]:
        if versions.closed:
            raise ModelClosedError("the application's lifespan has ended, and its model is closed; make another one")
        try:
            yield
        finally:
            versions.close()

    return serving(versions, lifespan=lifespan)
