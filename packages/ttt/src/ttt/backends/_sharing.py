"""One copy of a base model's weights per machine, mapped by all workers (extra `zerocopy`)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from ttt.errors import MissingExtraError

if TYPE_CHECKING:
    from zerocopy import ModelRef


@contextmanager
def published(build: Callable[[], Any]) -> Iterator[ModelRef]:
    """Publish a model in shared memory for the block; yield a reference that worker processes load it by.

    Weights are mapped copy-on-write: no process can change them for another, and the bits are those of the file.

    Raises:
        MissingExtraError: Zerocopy is not installed.
    """
    try:
        import zerocopy

        publish, unpublish = zerocopy.publish, zerocopy.unpublish
    except (ImportError, AttributeError) as error:  # another project has the same import name
        raise MissingExtraError('sharing weights needs zerocopy: pip install "pentad-ttt[zerocopy]"') from error
    ref = publish(build())
    try:
        yield ref
    finally:
        unpublish(ref)


@contextmanager
def on_this_node(ref: ModelRef) -> Iterator[ModelRef]:
    """Yield a reference to the model for the processes of this node; a remote model is fetched once per node."""
    with ref.on_this_node() as here:
        yield here
