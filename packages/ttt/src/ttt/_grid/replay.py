"""Replays the steps that an answer's words name, so that they can be shown as pictures."""

from __future__ import annotations

from collections.abc import Sequence

from ttt._grid.compose.engine import applied
from ttt._grid.compose.pieces import Piece
from ttt._grid.compose.table import GIVES_LIST, TAKES_LIST, Primitive, primitives
from ttt._grid.scene import Scene
from ttt._grid.transforms import TRANSFORMS
from ttt.values import Grid, as_grid

THEN = ", then "
MOST_SHOWN = 6
"""Pieces of one step that are shown."""


def replayed(why: str, inputs: Sequence[Grid], outputs: Sequence[Grid], grid: Grid) -> list[tuple[str, list[Grid]]]:
    """Return each step of an answer's words with the grids that it makes of one input.

    Args:
        why: The words of the answer, such as "cropped to what is drawn, then turned upside down".
        inputs: All inputs of the task.
        outputs: Its training outputs.
        grid: The input to show the steps on.

    Returns:
        The steps up to the first that is no transformation with a name; none where the first is not.
    """
    words = why.split("; ")[0].split(THEN)
    by_composing = _composed(words, primitives(inputs, outputs), grid)
    return max(by_composing, _transformed(words, grid), key=len)


def _composed(words: Sequence[str], table: Sequence[Primitive], grid: Grid) -> list[tuple[str, list[Grid]]]:
    named = {p.words: p for p in table}
    source = Piece(0, 0, grid)
    pieces, several, shown = [source], False, []
    for word in words:
        step = named.get(word)
        if step is None:
            break
        takes_list = step.function in TAKES_LIST
        if not (takes_list or step.maps if several else not takes_list):
            break
        made = applied(step, pieces, source)
        if not made:
            break
        pieces, several = made, step.function in GIVES_LIST or (several and step.maps)
        shown.append((word, [as_grid(p.cells) for p in pieces[:MOST_SHOWN]]))
    return shown


def _transformed(words: Sequence[str], grid: Grid) -> list[tuple[str, list[Grid]]]:
    shown: list[tuple[str, list[Grid]]] = []
    for word in words:
        step = TRANSFORMS.get(word)
        made = None if step is None else step.make(Scene(grid))
        if made is None or not made.size:
            break
        grid = as_grid(made)
        shown.append((word, [grid]))
    return shown
