"""Pictures of grids and tasks: coloured text for a terminal, PNG for files."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.style import Style
from rich.table import Table
from rich.text import Text

from ttt.values import Grid, Task

PALETTE = (
    "#000000", "#0074d9", "#ff4136", "#2ecc40", "#ffdc00", "#aaaaaa", "#f012be", "#ff851b", "#7fdbff", "#870c25",
)  # fmt: skip
"""The colours in which ARC is usually shown, 0 to 9."""
LINE = (85, 85, 85)
PAPER = (255, 255, 255)


def grid_text(grid: Grid) -> Text:
    """Return a grid as terminal text: each cell is its digit on its colour, readable without colours too."""
    text = Text(no_wrap=True)
    for r, row in enumerate(grid.tolist()):
        if r:
            text.append("\n")
        for c in row:
            ink = "#ffffff" if c in (0, 1, 2, 6, 9) else "#000000"
            text.append(f"{c} ", Style(color=ink, bgcolor=PALETTE[c]))
    return text


def task_view(task: Task, *, width: int = 100, solutions: bool = True) -> RenderableType:
    """Return a task for the terminal, its pairs side by side."""
    parts: list[RenderableType] = [Text(f"task {task.id}", "bold")]
    boxes: list[tuple[str, Grid, Grid | None]] = [(f"train {i}", p.input, p.output) for i, p in enumerate(task.train)]
    boxes += [(f"test {i}", p.input, p.output if solutions else None) for i, p in enumerate(task.test)]
    row: list[RenderableType] = []
    used = 0
    for title, given, made in boxes:
        cells = 2 * (given.shape[1] + (made.shape[1] if made is not None else 0)) + 6
        if row and used + cells > width:
            parts.append(_side_by_side(row))
            row, used = [], 0
        row.append(Group(Text(title, "dim"), _pair(given, made)))
        used += cells
    parts.append(_side_by_side(row))
    return Group(*parts)


def _pair(given: Grid, made: Grid | None) -> RenderableType:
    if made is None:
        return grid_text(given)
    table = Table.grid(padding=(0, 1))
    table.add_row(grid_text(given), Text("→"), grid_text(made))
    return table


def _side_by_side(items: list[RenderableType]) -> RenderableType:
    table = Table.grid(padding=(0, 3))
    table.add_row(*items)
    return Padding(table, (0, 0, 1, 0))


def _rgb(colour: str) -> tuple[int, int, int]:
    return int(colour[1:3], 16), int(colour[3:5], 16), int(colour[5:7], 16)


RGB = np.array([_rgb(c) for c in PALETTE], np.uint8)
Image = npt.NDArray[np.uint8]


def grid_image(grid: Grid, cell: int = 12) -> Image:
    """Return a grid as an RGB image, `cell` pixels a cell with a thin line between, shape (h, w, 3)."""
    image = RGB[grid].repeat(cell, 0).repeat(cell, 1)
    image[::cell, :] = LINE
    image[:, ::cell] = LINE
    framed = np.empty((image.shape[0] + 1, image.shape[1] + 1, 3), np.uint8)
    framed[:] = LINE
    framed[:-1, :-1] = image
    return framed


def task_image(task: Task, cell: int = 12, gap: int = 14) -> Image:
    """Return a task as one image: a column per pair, input above output; unknown test outputs stay blank."""
    columns = []
    for pair in (*task.train, *task.test):
        stack = [grid_image(pair.input, cell)]
        stack += [] if pair.output is None else [grid_image(pair.output, cell)]
        columns.append(_join(stack, gap, axis=0))
    return _join(columns, gap, axis=1)


def _join(images: Sequence[Image], gap: int, axis: int) -> Image:
    across = 1 - axis
    size = max(i.shape[across] for i in images)
    length = sum(i.shape[axis] for i in images) + gap * (len(images) + 1)
    shape = (length, size, 3) if axis == 0 else (size, length, 3)
    sheet = np.empty(shape, np.uint8)
    sheet[:] = PAPER
    at = gap
    for image in images:
        h, w = image.shape[:2]
        if axis == 0:
            sheet[at : at + h, :w] = image
        else:
            sheet[:h, at : at + w] = image
        at += image.shape[axis] + gap
    return sheet


def png(image: Image) -> bytes:
    """Encode an RGB image of shape (h, w, 3) as a PNG file (ISO/IEC 15948, truecolour, no filter)."""
    height, width, _ = image.shape
    rows = np.zeros((height, 1 + 3 * width), np.uint8)
    rows[:, 1:] = image.reshape(height, 3 * width)

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows.tobytes(), 9)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body
