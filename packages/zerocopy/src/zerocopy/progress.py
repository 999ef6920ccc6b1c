"""A progress bar on the terminal for work that takes as long as memory or a disk; knows nothing of models."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from zerocopy.errors import MissingExtraError


@contextmanager
def bar(title: str, total: int) -> Iterator[Callable[[int], object]]:
    """Show a bar on standard error for the length of a block; it goes when the work is done.

    Args:
        title: what is going on.
        total: bytes in all.

    Returns:
        A function that is told of so many bytes more.

    Raises:
        MissingExtraError: rich is not installed.
    """
    try:
        from rich.console import Console
        from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn
    except ImportError as error:
        raise MissingExtraError('a progress bar needs rich: pip install "pentad-zerocopy[cli]"') from error
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(binary_units=True), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as shown:
        task = shown.add_task(title, total=total)
        yield lambda nbytes: shown.advance(task, nbytes)
