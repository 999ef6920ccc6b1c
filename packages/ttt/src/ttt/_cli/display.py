"""The live display of a run in the terminal."""

from __future__ import annotations

import time
from types import TracebackType

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from ttt._events import Event, Finished, Improved, Started, TaskResult
from ttt.results import solved
from ttt.values import Task


class Display:
    """A live panel with one line per running task and a bar for the whole; plain lines where there is no terminal."""

    def __init__(
        self, tasks: tuple[Task, ...], console: Console, *, quiet: bool = False, calibrated: bool = True
    ) -> None:
        self._tasks = {t.id: t for t in tasks}
        self._console = console
        self._quiet = quiet
        self._calibrated = calibrated
        self._begun = time.monotonic()
        self._running: dict[str, tuple[float, Improved | None]] = {}
        self._done: set[str] = set()
        self._live = Live(console=console, refresh_per_second=4, get_renderable=self._render, transient=True)

    def __enter__(self) -> Display:
        if not self._quiet and self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        self._live.stop()

    def show(self, event: Event) -> None:
        """Update the display with an event."""
        match event:
            case Started(task_id):
                self._running[task_id] = (time.monotonic(), None)
            case Improved(task_id):
                begun, _ = self._running.get(task_id, (time.monotonic(), None))
                self._running[task_id] = (begun, event)
            case Finished(task_id, result):
                self._running.pop(task_id, None)
                self._done.add(task_id)
                if not self._quiet:
                    line = result_line(self._tasks[task_id], result, calibrated=self._calibrated)
                    self._console.print(line, highlight=False)

    def _render(self) -> RenderableType:
        now = time.monotonic()
        table = Table.grid(padding=(0, 2))
        table.add_row(
            Text(f"{len(self._done)}/{len(self._tasks)} tasks"),
            ProgressBar(total=max(1, len(self._tasks)), completed=len(self._done), width=30),
            Text(f"{now - self._begun:.0f} s"),
        )
        for task_id, (begun, best) in list(self._running.items()):
            stage = best.stage if best else "starting"
            table.add_row(
                Text("  " + task_id, "cyan"),
                ProgressBar(total=1.0, completed=best.fraction if best else 0.0, width=30),
                Text(f"{now - begun:.0f} s  {stage}"),
            )
        return Group(Text(), table)


def result_line(task: Task, result: TaskResult, *, calibrated: bool = True) -> Text:
    """Return one line about a finished task; without calibrated confidence it shows no percentage."""
    right = solved(task, result)
    mark, style = {True: ("solved", "green"), False: ("wrong ", "red"), None: ("      ", "dim")}[right]
    if not result.answered:
        mark, style = "none  ", "yellow"
    line = Text.assemble((mark, style), "  ", (result.task_id, "bold"))
    why = result.predictions[0].first
    confidence = f"{result.confidence:4.0%}" if calibrated else "    "
    line.append(f"  {confidence}  {result.seconds:5.1f} s  {result.peak_memory / 1e6:4.0f} MB  ")
    line.append(f"{why.stage}: {why.why}" if why.why and result.answered else why.stage, "dim")
    if result.reason:
        line.append(f"  stopped by {result.reason}", "yellow")
    if result.error:
        line.append(f"  {result.error}", "red")
    if result.reused:
        line.append("  from record", "dim")
    return line
