"""Walks: lines go on from things, cell by cell, and turn or bounce where they meet something."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from ttt._grid.drawing.registry import IN, OUT, Line
from ttt._grid.geometry import DIAGONALS, STEPS, Mask, Step
from ttt._grid.scene import Scene
from ttt.values import Grid

MOST_STARTS, LONGEST = 24, 500
(
    STOPS,
    TURNS_RIGHT,
    TURNS_LEFT,
    BOUNCES,
    GOES_ROUND_RIGHT,
    GOES_ROUND_LEFT,
    PASSES,
    COVERS,
    ZIGZAG,
    ZAGZIG,
    LOWER_RIGHT,
    HIGHER_RIGHT,
) = range(12)
MEETING = {
    "ending where they meet something": STOPS,
    "turning right where they meet something": TURNS_RIGHT,
    "turning left where they meet something": TURNS_LEFT,
    "turning right at the lower of two colours and left at the higher": LOWER_RIGHT,
    "turning left at the lower of two colours and right at the higher": HIGHER_RIGHT,
    "bouncing off": BOUNCES,
    "winding right, a cell apart": GOES_ROUND_RIGHT,
    "winding left, a cell apart": GOES_ROUND_LEFT,
    "bouncing to the left and right until the top or bottom": ZIGZAG,
    "bouncing up and down until the left or right side": ZAGZIG,
    "passing below what they meet": PASSES,
    "passing over what they meet": COVERS,
}
"""What lines do in front of things and, if they bounce or wind, of borders."""
WINDING = (GOES_ROUND_RIGHT, GOES_ROUND_LEFT)
BOUNCING = (BOUNCES, ZIGZAG, ZAGZIG)
OWN = -1
"""Stands for the colour of the thing that a line comes from."""
INWARDS, ALONG = "inwards", "along"
WAYS: dict[str, Step | str] = {
    **STEPS,
    **DIAGONALS,
    "away from the border": INWARDS,
    "on from both ends of lines": ALONG,
}

Start = tuple[int, int, Step, int]
"""Row and column of the cell that a line comes from, its direction, and the colour of the cell."""


def walked(source: int | None, way: Step | str, meeting: int, colour: int, s: Scene) -> Grid | None:
    """Draw lines from some things.

    Args:
        source: The colour of the things; None for single cells.
        way: The direction, away from the border that a cell touches, or along lines.
        meeting: What they do where they meet something.
        colour: Of the lines; `OWN` for that of the thing.
        s: The grid.
    """
    starts = list(_starts(source, way, s))
    if not 1 <= len(starts) <= MOST_STARTS:
        return None
    out = s.grid.copy()
    for r, c, step, own in starts:
        _walk(out, s, (r, c), step, own if colour == OWN else colour, meeting)
    return None if np.array_equal(out, s.grid) else out


def _starts(source: int | None, way: Step | str, s: Scene) -> Iterator[Start]:
    height, width = s.grid.shape
    for t in s.things("piece"):
        if source is not None and t.colour != source:
            continue
        if way == ALONG:
            yield from _ends(t.mask, t.top, t.left, t.colour)
        elif t.mask.size == 1:
            if isinstance(way, str):
                inwards = (int(t.top == 0) - int(t.top == height - 1), int(t.left == 0) - int(t.left == width - 1))
                if any(inwards):
                    yield t.top, t.left, inwards, t.colour
            else:
                yield t.top, t.left, way, t.colour


def _ends(mask: Mask, top: int, left: int, colour: int) -> Iterator[Start]:
    """Yield both ends of a straight or diagonal line of cells, each with the direction outwards."""
    h, w = mask.shape
    if mask.size < 2:
        return
    if min(h, w) == 1:
        step = int(h > 1), int(w > 1)
        yield top, left, (-step[0], -step[1]), colour
        yield top + h - 1, left + w - 1, step, colour
    elif h == w and mask.sum() == h and (mask.diagonal().all() or mask[:, ::-1].diagonal().all()):
        falls = bool(mask.diagonal().all())
        yield top, left if falls else left + w - 1, (-1, -1 if falls else 1), colour
        yield top + h - 1, left + w - 1 if falls else left, (1, 1 if falls else -1), colour


def _walk(out: Grid, s: Scene, at: Step, step: Step, colour: int, meeting: int) -> None:
    """Draw one line."""
    for _ in range(LONGEST):
        way = _way_on(out, s, at, step, meeting)
        if way is None:
            return
        step = way
        at = at[0] + step[0], at[1] + step[1]
        if meeting != PASSES or not s.front[at]:
            out[at] = colour


def _way_on(out: Grid, s: Scene, at: Step, step: Step, meeting: int) -> Step | None:
    """Return the direction in which a line goes on from a cell, None where it ends."""
    (r, c), ahead = at, (at[0] + step[0], at[1] + step[1])
    if meeting in WINDING:
        if not _crowded(out, at, step, s.background):
            return step
        step = turned(step, meeting == GOES_ROUND_RIGHT)
        return None if _crowded(out, at, step, s.background) else step
    if meeting in BOUNCING:
        down, across = _blocked(s, r + step[0], c), _blocked(s, r, c + step[1])
        if (meeting == ZIGZAG and down) or (meeting == ZAGZIG and across):
            return None
        if _blocked(s, *ahead):
            step = _bounced(step, down, across)
        return None if _blocked(s, r + step[0], c + step[1]) else step
    if not _inside(out, *ahead) or (meeting == STOPS and s.front[ahead]):
        return None
    if meeting in (PASSES, COVERS) or not s.front[ahead]:
        return step
    right = meeting == TURNS_RIGHT
    if meeting in (LOWER_RIGHT, HIGHER_RIGHT):
        others = [k for k in np.flatnonzero(s.counts).tolist() if k not in (s.background, int(out[at]))]
        if len(others) != 2:
            return None
        right = (int(s.grid[ahead]) == others[0]) == (meeting == LOWER_RIGHT)
    step = turned(step, right)
    return None if _blocked(s, r + step[0], c + step[1]) else step


def _inside(out: Grid, r: int, c: int) -> bool:
    return bool(0 <= r < out.shape[0] and 0 <= c < out.shape[1])


def _blocked(s: Scene, r: int, c: int) -> bool:
    """Return whether a cell is drawn or lies outside."""
    return not _inside(s.grid, r, c) or bool(s.front[r, c])


def _crowded(out: Grid, at: Step, step: Step, background: int) -> bool:
    """Return whether a winding line has no room: the next cell is taken, or the one behind it is drawn."""
    near, far = ((at[0] + n * step[0], at[1] + n * step[1]) for n in (1, 2))
    if not _inside(out, *near) or out[near] != background:
        return True
    return _inside(out, *far) and bool(out[far] != background)


def turned(step: Step, right: bool) -> Step:
    """Return a direction a quarter to the right or left."""
    return (step[1], -step[0]) if right else (-step[1], step[0])


def _bounced(step: Step, down: bool, across: bool) -> Step:
    """Return a direction after it meets something in its row or column, or in both, or only at its corner."""
    if not (step[0] and step[1]) or down == across:
        return -step[0], -step[1]
    return (-step[0] if down else step[0]), (-step[1] if across else step[1])


_FROM = {
    f"{way}, {meeting}": (step, turn)
    for way, step in WAYS.items()
    for meeting, turn in MEETING.items()
    if turn not in BOUNCING or isinstance(step, str) or (step[0] and step[1])
}


def wound(right: bool, colour: int, s: Scene) -> Grid | None:
    """Wind a line from the top left corner inwards over an empty grid, a cell apart, clockwise or the other way."""
    if s.front.any() or min(s.grid.shape) < 2:
        return None
    out = s.grid.copy()
    out[0, 0] = colour
    _walk(out, s, (0, 0), (0, 1) if right else (1, 0), colour, GOES_ROUND_RIGHT if right else GOES_ROUND_LEFT)
    return out


def joined(rows_last: bool, over: bool, s: Scene) -> Grid | None:
    """Join cells of one colour in rows and columns, from the first to the last of each line.

    Args:
        rows_last: Whether lines in rows cover those in columns.
        over: Whether lines cover other things too.
        s: The grid.
    """
    drawn = [c for c in np.flatnonzero(s.counts).tolist() if c != s.background]
    out = s.grid.copy()
    for axis in (0, 1) if rows_last else (1, 0):
        for c in drawn:
            mask = s.grid == c
            after = np.logical_or.accumulate(mask, axis=axis)
            before = np.flip(np.logical_or.accumulate(np.flip(mask, axis), axis=axis), axis)
            out[after & before & ~mask & (over | ~s.front)] = c
    return None if np.array_equal(out, s.grid) else out


def walked_in(way: Step | str, meeting: int, colour: int, s: Scene) -> Grid | None:
    """Draw lines from single cells in one colour."""
    return walked(None, way, meeting, colour, s)


def walked_from(way: Step | str, meeting: int, source: int, s: Scene) -> Grid | None:
    """Draw lines from the things of one colour, in that colour."""
    return walked(source, way, meeting, OWN, s)


WALKS = (
    Line(
        "a line in colour {colour} wound from the top left corner inwards, {}",
        wound,
        1.3,
        {"clockwise": (True,), "anticlockwise": (False,)},
        OUT,
    ),
    Line(
        "equal colours joined from the first to the last of each row and column, {}",
        joined,
        1.3,
        {
            f"{words} on top{end}": (rows, over)
            for rows, words in ((True, "rows"), (False, "columns"))
            for over, end in ((False, ""), (True, ", over other things"))
        },
    ),
    Line("lines drawn {}", walked, 1.4, {w: (None, *a, OWN) for w, a in _FROM.items()}),
    Line("lines in colour {colour} drawn {}", walked_in, 1.5, _FROM, OUT),
    Line("lines drawn from colour {colour} {}", walked_from, 1.5, _FROM, IN),
)
