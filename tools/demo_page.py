"""What the demo measured, and the page that shows it: one HTML document that needs no other file."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any


@dataclass(frozen=True, slots=True)
class Fact:
    """One measurement.

    Attributes:
        library: The library.
        what: What was measured, in words.
        measured: The figure with its unit. It is what another run finds too.
        detail: Times and amounts, which depend on what else the machine does.
        bars: Values that the page draws side by side, by name; the figure first.
        pictures: SVG drawings for the page, by caption.
    """

    library: str
    what: str
    measured: str
    detail: str = ""
    bars: dict[str, float] | None = None
    pictures: dict[str, str] | None = None


PALETTE = ("#000", "#0074d9", "#ff4136", "#2ecc40", "#ffdc00", "#aaa", "#f012be", "#ff851b", "#7fdbff", "#870c25")
CELL, GAP = 9, 24


def drawing(pairs: Sequence[tuple[Any, Any]], second: str) -> str:
    """Draw pairs of grids as SVG, one pair a row, under the headings "input" and `second`."""
    left = max(given.shape[1] for given, _ in pairs) * CELL + GAP
    parts, y = [f"<text x='0' y='10'>input</text><text x='{left}' y='10'>{escape(second)}</text>"], 16
    for pair in pairs:
        for x, grid in zip((0, left), pair, strict=True):
            for (row, column), colour in np_cells(grid):
                place = f"x='{x + column * CELL}' y='{y + row * CELL}' width='{CELL}' height='{CELL}'"
                parts.append(f"<rect {place} fill='{PALETTE[colour]}' stroke='#555' stroke-width='0.5'/>")
        y += max(grid.shape[0] for grid in pair) * CELL + GAP // 2
    width = left + max(made.shape[1] for _, made in pairs) * CELL + 1
    label = f"Grids: input and {escape(second)}"
    size = f"width='{max(width, left + 70)}' height='{y}' font-size='11'"
    return f"<svg role='img' aria-label='{label}' {size}>{''.join(parts)}</svg>"


def np_cells(grid: Any) -> Iterator[tuple[tuple[int, int], int]]:
    """Yield the place and colour of each cell of a grid."""
    for row, line in enumerate(grid.tolist()):
        for column, colour in enumerate(line):
            yield (row, column), colour


STYLE = """
body { margin: 0 auto; max-width: 1000px; padding: 32px 24px 60px; font: 15px/1.5 system-ui, sans-serif }
h1 { margin: 0 } h2 { margin: 36px 0 8px } .soft, figcaption { color: #667085; font-size: 13px }
table { border-collapse: collapse; width: 100% } td { border-top: 1px solid #e3e6eb; padding: 6px 8px 6px 0 }
td:last-child { text-align: right; font-weight: 600; white-space: nowrap }
.bar { display: grid; grid-template-columns: 270px 1fr; gap: 12px; align-items: center; font-size: 13px; margin: 3px 0 }
.bar i { display: block; height: 14px; border-radius: 3px; background: #b8c0cc; min-width: 1px }
.bar.first i { background: #3f51b5 }
.tasks { display: flex; flex-wrap: wrap; gap: 22px; margin-top: 12px } figure { margin: 0 }
figcaption { max-width: 460px } svg { max-width: 460px; margin-right: 30px; vertical-align: top; fill: #667085 }
"""


def page(facts: list[Fact], seconds: float) -> str:
    """Render the measurements as one HTML document without scripts and without other files."""
    parts = [f"<!doctype html><html lang=en><meta charset=utf-8><title>Pentad</title><style>{STYLE}</style>"]
    parts.append(f"<h1>Pentad</h1><p class=soft>Measured on this machine within {seconds:.0f} s.</p>")
    for library in dict.fromkeys(fact.library for fact in facts):
        own = [fact for fact in facts if fact.library == library]
        rows = "".join(
            f"<tr><td>{escape(f.what)}<div class=soft>{escape(f.detail)}</div></td><td>{escape(f.measured)}</td></tr>"
            for f in own
        )
        parts.append(f"<h2>{library}</h2><table>{rows}</table>")
        for fact in own:
            parts.append(_bars(fact.bars or {}))
            parts.append("<div class=tasks>")
            for caption, data in (fact.pictures or {}).items():
                parts.append(f"<figure>{data}<figcaption>{escape(caption)}</figcaption></figure>")
            parts.append("</div>")
    return "".join(parts)


def _bars(values: dict[str, float]) -> str:
    longest = max(values.values(), default=0) or 1
    bars = []
    for number, (name, value) in enumerate(values.items()):
        kind = "bar first" if number == 0 else "bar"
        width = f"{100 * max(value, 0) / longest:.2f}%"
        bar = f"<div><i style='width:{width}'></i></div>"
        bars.append(f"<div class='{kind}'><span>{escape(name)}: {value:.1f}</span>{bar}</div>")
    return "".join(bars)
