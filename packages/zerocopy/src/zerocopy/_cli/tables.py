"""Show a report as tables in the terminal."""

from __future__ import annotations

import time
from collections.abc import Callable

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from zerocopy._report import Report, size

_SEGMENT_COLUMNS = ("model", "version", "weights", "stored here", "tensors", "by value", "readers", "state")
_VIEW_COLUMNS = (
    "process", "model", "mapped", "in memory", "its share", "private", "because it wrote", "shares no more",
    "private elsewhere",
)  # fmt: skip

_DEVICE_COLUMNS = ("model", "device", "weights", "processes")


def print_report(what: Report) -> None:
    """Print the tables of a report."""
    Console().print(_tables(what))


def watch_report(look: Callable[[], Report], seconds: float) -> None:
    """Show the tables of a new report at an interval, until interrupted."""
    with Live(_tables(look()), auto_refresh=False) as live:
        while True:
            time.sleep(seconds)
            live.update(_tables(look()), refresh=True)


def _tables(what: Report) -> Group:
    unread = [Text(entry) for entry in what.not_read()]
    devices = Table(*_DEVICE_COLUMNS, title="On GPUs")
    for copy in what.devices:
        _add(devices, copy.model, copy.device, size(copy.nbytes), ", ".join(map(str, copy.holders)))
    below = [devices, *unread] if what.devices else unread
    if not what.segments and not what.views:
        return Group(Text(f"nothing is published in {what.directory}"), *below)
    segments = Table(*_SEGMENT_COLUMNS, title="Published")
    for info in sorted(what.segments, key=lambda entry: (entry.name, entry.version)):
        state = "removed, still read" if info.gone else "current" if info.current else ""
        _add(
            segments, info.name, str(info.version), size(info.model_nbytes), size(info.stored_nbytes),
            str(info.tensors), size(info.by_value), str(info.readers), state,
        )  # fmt: skip
    views = Table(*_VIEW_COLUMNS, title="Processes")
    names = {info.file: f"{info.name} {info.version}" for info in what.segments}
    for view in what.views:
        _add(
            views, f"{view.pid} {view.command[:30]}", names.get(view.segment, view.segment), size(view.mapped),
            size(view.resident), size(view.proportional), size(view.private), view.wrote(),
            view.replaced(), size(view.private_elsewhere),
        )  # fmt: skip
    return Group(segments, views, *below)


def _add(table: Table, *cells: str) -> None:
    table.add_row(*map(Text, cells))  # as text: a name or command in brackets is not markup
