"""The server as an ASGI application, for uvicorn, for Ray Serve, or inside another application."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from ternary.errors import MissingExtraError
from ternary.llm._convert import load
from ternary.llm._shared import Reference

__all__ = ["application"]


def application(
    source: str | Path | Reference, *, name: str = "ternary", parallel: int = 8, queue: int = 64, **options: Any
) -> Any:
    """Open a model and return an ASGI application that speaks the protocol of OpenAI, as `ternary serve` does.

    The model and its thread close when the application's lifespan ends, which servers such as uvicorn signal.

    Args:
        source: A model file, or a reference of `publish`.
        name: What the model is called in answers.
        parallel: Requests that run at once.
        queue: Requests that may wait; those beyond are answered 429.
        **options: Passed to `load`, such as `threads=2`.

    Raises:
        MissingExtraError: The extra `serve` is not installed.

    Example:
        >>> import asyncio, tempfile
        >>> from ternary import llm
        >>> config = llm.ModelConfig(64, hidden=32, inner=64, layers=1, heads=2, kv_heads=1, head_size=16, context=32)
        >>> llm.save(llm.Decoder(config, ternary=True), path := tempfile.mkdtemp() + "/m.ternary")
        >>> app = llm.application(path, name="tiny", threads=1)
        >>> async def lifespan():
        ...     async with app.router.lifespan_context(app):  # as uvicorn.run(app) does
        ...         return app.routes[0].path
        >>> asyncio.run(lifespan())
        '/v1/chat/completions'
    """
    try:
        from ternary.llm._server import application as serving
    except ImportError as e:
        raise MissingExtraError(f"{e.name} is needed here; pip install 'pentad-ternary[serve]'") from e
    from ternary.llm._batching import Scheduler

    model = load(source, **options)
    try:
        scheduler = Scheduler(model, parallel=parallel, queue=queue)
    except BaseException:
        model.close()
        raise

    @asynccontextmanager
    async def lifespan(_: Any) -> AsyncIterator[None]:
        try:
            yield
        finally:
            scheduler.close()
            model.close()

    return serving(model, scheduler, name, lifespan=lifespan)
