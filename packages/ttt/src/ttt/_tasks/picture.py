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

from ttt._tasks.lettering import lettered
from ttt.values import Grid, Prediction, Task, same

PALETTE = (
    "#000000", "#0074d9", "#ff4136", "#2ecc40", "#ffdc00", "#aaaaaa", "#f012be", "#ff851b", "#7fdbff", "#870c25",
)  # fmt: skip
"""The colours in which ARC is usually shown, 0 to 9."""
LINE = (85, 85, 85)
PAPER, INK = (255, 255, 255), (60, 60, 60)

Mask = npt.NDArray[np.bool_]


def differences(made: Grid, truth: Grid) -> Mask:
    """Return which cells of an answer are wrong; all that lie outside the truth are."""
    wrong = np.ones(made.shape, bool)
    h, w = min(made.shape[0], truth.shape[0]), min(made.shape[1], truth.shape[1])
    wrong[:h, :w] = made[:h, :w] != truth[:h, :w]
    return wrong


def grid_text(grid: Grid, wrong: Mask | None = None) -> Text:
    """Return a grid as terminal text: each cell is its digit on its colour, readable without colours too.

    Args:
        grid: The grid.
        wrong: Cells to mark, with an exclamation mark.
    """
    text = Text(no_wrap=True)
    for r, row in enumerate(grid.tolist()):
        if r:
            text.append("\n")
        for column, c in enumerate(row):
            mark = "!" if wrong is not None and wrong[r, column] else " "
            ink = "#ffffff" if c in (0, 1, 2, 6, 9) else "#000000"
            text.append(f"{c}{mark}", Style(color=ink, bgcolor=PALETTE[c], bold=mark == "!"))
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


def answer_view(task: Task, predictions: Sequence[Prediction], *, percentages: bool = True) -> RenderableType:
    """Return the attempts of a task for the terminal, beside the truth where it is known; wrong cells are marked."""
    parts: list[RenderableType] = []
    for i, (pair, guess) in enumerate(zip(task.test, predictions, strict=True)):
        row: list[RenderableType] = [Group(Text(f"test {i}", "dim"), grid_text(pair.input))]
        reasons = []
        for n, attempt in ((1, guess.first), (2, guess.second)):
            wrong = None if pair.output is None else differences(attempt.grid, pair.output)
            verdict = "" if pair.output is None else ", right" if same(attempt.grid, pair.output) else ", wrong"
            sure = f"{attempt.confidence:.0%} " if percentages else ""
            title = Text(f"attempt {n}{verdict}", "dim", no_wrap=True)
            row.append(Group(title, grid_text(attempt.grid, wrong)))
            reasons.append(Text(f"attempt {n}: {sure}{attempt.stage}: {attempt.why}", "dim"))
        if pair.output is not None:
            row.append(Group(Text("truth", "dim"), grid_text(pair.output)))
        parts += [_side_by_side(row), *reasons, Text()]
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


def grid_image(grid: Grid, cell: int = 12, wrong: Mask | None = None) -> Image:
    """Return a grid as an RGB image, `cell` pixels a cell with a thin line between, shape (h, w, 3).

    Args:
        grid: The grid.
        cell: Pixels per cell.
        wrong: Cells to cross out, in white with a black edge, which shows on every colour.
    """
    image = RGB[grid].repeat(cell, 0).repeat(cell, 1)
    image[::cell, :] = LINE
    image[:, ::cell] = LINE
    framed = np.empty((image.shape[0] + 1, image.shape[1] + 1, 3), np.uint8)
    framed[:] = LINE
    framed[:-1, :-1] = image
    for r, c in np.argwhere(wrong) if wrong is not None else ():
        _cross(framed[r * cell + 1 : (r + 1) * cell, c * cell + 1 : (c + 1) * cell])
    return framed


def _cross(place: Image) -> None:
    """Draw a cross into a square of an image."""
    rows, columns = np.indices(place.shape[:2])
    off = np.minimum(abs(rows - columns), abs(rows + columns - (place.shape[0] - 1)))
    place[off <= 1] = (0, 0, 0)
    place[off == 0] = PAPER


def _labelled(image: Image, text: str) -> Image:
    """Return an image with a line of text above it."""
    dots = lettered(text)
    out = np.empty((dots.shape[0] + 4 + image.shape[0], max(dots.shape[1], image.shape[1]), 3), np.uint8)
    out[:] = PAPER
    out[: dots.shape[0], : dots.shape[1]][dots] = INK
    out[dots.shape[0] + 4 :, : image.shape[1]] = image
    return out


def task_image(task: Task, cell: int = 12, gap: int = 14) -> Image:
    """Return a task as one image: a labelled column per pair, input above output; unknown outputs stay blank."""
    columns = []
    named = [
        *((f"train {i}", p) for i, p in enumerate(task.train)),
        *((f"test {i}", p) for i, p in enumerate(task.test)),
    ]
    for name, pair in named:
        stack = [_labelled(grid_image(pair.input, cell), f"{name}, input")]
        stack += [] if pair.output is None else [_labelled(grid_image(pair.output, cell), "output")]
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
