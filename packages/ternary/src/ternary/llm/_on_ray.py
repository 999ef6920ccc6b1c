"""The server as a deployment of Ray Serve; its replicas on one node share the weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ternary.errors import MissingExtraError
from ternary.llm._shared import Reference

__all__ = ["deployment"]

DEPLOYMENT = "model"
"""One name for every model: Ray Serve ends all replicas of a deployment whose name is gone, and then starts others."""


def deployment(
    source: str | Path | Reference,
    *,
    name: str | None = None,
    replicas: int = 1,
    parallel: int = 8,
    queue: int = 64,
    ray_actor_options: dict[str, Any] | None = None,
    **options: Any,
) -> Any:
    """Return an application for `ray.serve.run` that speaks the protocol of OpenAI, as `ternary serve` does.

    Run it again with another source to roll out a new version: Ray Serve replaces one replica after the other, and the
    others answer. With a single replica no one answers meanwhile.

    Args:
        source: A model file that every node can open, or a reference of `publish`.
        name: What the model is called in answers; None for the name of its file.
        replicas: How many processes answer. Each needs its own processors: see `threads` of `load`.
        parallel: Requests that run at once in a replica.
        queue: Requests that may wait in a replica; those beyond are answered 429.
        ray_actor_options: What Ray reserves for a replica, such as `{"num_cpus": 2}`.
        **options: Passed to `load`, such as `threads=2`.

    Raises:
        MissingExtraError: Ray Serve or the extra `serve` is not installed.

    Example:
        >>> from ternary import llm
        >>> app = llm.deployment("model.ternary", replicas=2, threads=1)  # doctest: +SKIP
        >>> ray.serve.run(app)  # doctest: +SKIP
    """
    try:
        from ray import serve

        import ternary.llm._server  # noqa: F401 - a missing extra is named here, not in a replica
    except ImportError as e:
        raise MissingExtraError(f"{e.name} is needed here; pip install 'pentad-ternary[serve]' 'ray[serve]'") from e

    def build() -> Any:
        from ternary.llm import application

        return application(source, name=name, parallel=parallel, queue=queue, **options)

    made = serve.deployment(serve.ingress(build)())
    return made.options(name=DEPLOYMENT, num_replicas=replicas, ray_actor_options=ray_actor_options or {}).bind()
