"""Progress of long work in bytes: the callback that the work reports to, and a bar on the terminal."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from zerocopy.errors import MissingExtraError

Tick = Callable[[int], object]  # called with the number of bytes that were processed since the last call


def no_tick(_nbytes: int) -> None:
    """Ignore progress."""


@contextmanager
def bar(title: str, total: int) -> Iterator[Tick]:
    """Show a progress bar on standard error while the block runs.

    Args:
        title: Text beside the bar.
        total: Total number of bytes.

    Yields:
        A callback that advances the bar by a number of bytes.

    Raises:
        MissingExtraError: Rich is not installed.
    """
    try:
        from rich.console import Console
        from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn
    except ImportError as error:
        raise MissingExtraError('a progress bar needs rich: pip install "pentad-zerocopy[cli]"') from error
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        DownloadColumn(binary_units=True),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as shown:
        task = shown.add_task(title, total=total)
        yield lambda nbytes: shown.advance(task, nbytes)
