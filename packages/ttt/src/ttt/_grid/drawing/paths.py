"""Paths: things are joined by the way over empty cells that has the fewest turns or the fewest steps."""

from __future__ import annotations

import heapq
from collections.abc import Iterator

import numpy as np

from ttt._grid.drawing.registry import OUT, Line
from ttt._grid.geometry import STEPS, Step
from ttt._grid.scene import Scene
from ttt._grid.things import Thing
from ttt.values import Grid

State = tuple[Step, Step]
"""A cell, and the direction in which it was reached."""
MOST_PATHS = 8
OWN = -1
"""Stands for the colour of the things that are joined."""


def joined(straight: bool, paint: int, s: Scene) -> Grid | None:
    """Join both pieces of each colour that has two, else the only pieces of the two rarest colours.

    Args:
        straight: Whether few turns matter more than few steps.
        paint: The colour of the paths; `OWN` for that of the things.
        s: The grid.
    """
    ends = list(_ends(s))
    if not 1 <= len(ends) <= MOST_PATHS:
        return None
    out = s.grid.copy()
    for a, b in ends:
        for cell in _path(s, a, b, straight) or ():
            out[cell] = a.colour if paint == OWN else paint
    return None if np.array_equal(out, s.grid) else out


def joined_in(straight: bool, colour: int, s: Scene) -> Grid | None:
    """Join things by paths of one colour."""
    return joined(straight, colour, s)


def _ends(s: Scene) -> Iterator[tuple[Thing, Thing]]:
    pieces = s.things("piece")
    by_colour = {c: [t for t in pieces if t.colour == c] for c in dict.fromkeys(t.colour for t in pieces)}
    pairs = [(p[0], p[1]) for p in by_colour.values() if len(p) == 2]
    if pairs:
        yield from pairs
    elif len(by_colour) > 1:
        rarest = sorted(by_colour, key=lambda c: int(s.counts[c]))[:2]
        if all(len(by_colour[c]) == 1 for c in rarest):
            yield by_colour[rarest[0]][0], by_colour[rarest[1]][0]


def _path(s: Scene, a: Thing, b: Thing, straight: bool) -> list[Step] | None:
    """Return the empty cells of the best way from one thing to the other, None where there is none."""
    cells = [(int(r) + a.top, int(c) + a.left) for r, c in np.argwhere(a.mask)]
    goal = {(int(r) + b.top, int(c) + b.left) for r, c in np.argwhere(b.mask)}
    height, width = s.grid.shape
    best: dict[State, tuple[int, int]] = {(cell, step): (0, 0) for cell in cells for step in STEPS.values()}
    before: dict[State, State] = {}
    queue = [(cost, state) for state, cost in best.items()]
    heapq.heapify(queue)
    while queue:
        cost, state = heapq.heappop(queue)
        (r, c), step = state
        if (r, c) in goal:
            return _back(before, state)
        if cost > best[state]:
            continue
        for way in STEPS.values():
            y, x = r + way[0], c + way[1]
            if not (0 <= y < height and 0 <= x < width) or (s.front[y, x] and (y, x) not in goal):
                continue
            turn = int(way != step)
            more = (cost[0] + turn, cost[1] + 1) if straight else (cost[0] + 1, cost[1] + turn)
            following = (y, x), way
            if following not in best or more < best[following]:
                best[following], before[following] = more, state
                heapq.heappush(queue, (more, following))
    return None


def _back(before: dict[State, State], state: State) -> list[Step]:
    """Return the cells between both ends of a way, backwards."""
    found = []
    while state in before:
        state = before[state]
        found.append(state[0])
    return found[:-1]


PATHS = (
    Line(
        "things of one colour, or the two rarest, joined over empty cells with the fewest {}",
        joined,
        1.4,
        {"turns": (True, OWN), "steps": (False, OWN)},
    ),
    Line(
        "things of one colour, or the two rarest, joined in colour {colour} over empty cells with the fewest {}",
        joined_in,
        1.4,
        {"turns": (True,), "steps": (False,)},
        OUT,
    ),
)
