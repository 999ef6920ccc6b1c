"""What a growing rule may ask of the cells around one, and in which poses it holds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ttt._grid.geometry import Mask, Numbers, Step
from ttt._grid.scene import Scenes, enclosed, seen
from ttt.values import Grid

Colours = npt.NDArray[np.int8]
"""A colour for every cell of all inputs in one row, and `OUTSIDE` at the end."""
Pose = tuple[Step, Step]
"""A turn or reflection as a matrix: rows and columns of a step after it."""

OUTSIDE = 10
"""What lies beyond the border."""
DRAWN = 11
"""Any colour but the background."""
BUT = 20
"""Plus a colour: any drawn colour but that one."""

EIGHT_WAYS: list[Step] = [(r, c) for r in (-1, 0, 1) for c in (-1, 0, 1) if (r, c) != (0, 0)]
NEAR: list[Step] = [(r, c) for r in range(-2, 3) for c in range(-2, 3) if (r, c) != (0, 0)]
OFFSETS: list[Step] = NEAR + [(n * r, n * c) for n in (3, 4) for r, c in EIGHT_WAYS]
"""Where conditions look."""
COPIED: list[Step] = [(n * r, n * c) for n in (1, 2, 3, 4) for r, c in EIGHT_WAYS]
"""Where a colour may be copied from."""

_TURNS: list[Pose] = [((1, 0), (0, 1)), ((0, -1), (1, 0)), ((-1, 0), (0, -1)), ((0, 1), (-1, 0))]
_MIRRORED: list[Pose] = [((a, -b), (c, -d)) for (a, b), (c, d) in _TURNS]
POSES: dict[str, list[Pose]] = {
    "": _TURNS[:1],
    ", also with left and right exchanged": [_TURNS[0], _MIRRORED[0]],
    ", also with up and down exchanged": [_TURNS[0], _MIRRORED[2]],
    ", also turned": _TURNS,
    ", also turned and reflected": _TURNS + _MIRRORED,
}
"""The poses that all rules of a program hold in, by their words."""


@dataclass(frozen=True, slots=True)
class Condition:
    """Something that is so at a cell or not.

    Args:
        kind: "given" and "now" ask for a colour at an offset, before growing and at the moment; "same" for the colour
            that is copied, at an offset; "seen" for the first drawn colour given in a direction, "same seen" for the
            one that is copied there; "not given" and "not seen" are the opposites; "enclosed" asks whether no way over
            background leads to the border.
        offset: Rows and columns away.
        value: A colour, `OUTSIDE`, `DRAWN`, or `BUT` plus a colour; of "enclosed" 1 for yes.
    """

    kind: str
    offset: Step
    value: int

    @property
    def cost(self) -> float:
        """Length of its description."""
        extra = 0.25 * max(0, max(map(abs, self.offset)) - 1)
        if self.kind in ("given", "now", "same"):
            return 0.7 + extra + 0.2 * (self.value >= BUT)
        if self.kind in ("not given", "not seen"):
            return 0.9
        return 0.7

    @property
    def words(self) -> str:
        """The condition in words."""
        rows, columns = self.offset
        if self.kind == "enclosed":
            return "enclosed" if self.value else "not enclosed"
        if self.kind in ("seen", "same seen", "not seen"):
            what = "the same" if self.kind == "same seen" else _of_colour(self.value)
            return f"{what} is {'not ' * (self.kind == 'not seen')}seen {_way(rows, columns).replace('1 ', '')}"
        if self.kind == "same":
            return f"the same is {_way(rows, columns)}"
        verb = {"given": "was", "not given": "was not", "now": "is"}[self.kind]
        return f"{_of_colour(self.value)} {verb} {_way(rows, columns)}"


def _of_colour(value: int) -> str:
    if value >= BUT:
        return f"something but colour {value - BUT}"
    return {OUTSIDE: "the border", DRAWN: "something"}.get(value, f"colour {value}")


def _way(rows: int, columns: int) -> str:
    parts = [f"{abs(rows)} {'up' if rows < 0 else 'down'}"] * bool(rows)
    parts += [f"{abs(columns)} {'left' if columns < 0 else 'right'}"] * bool(columns)
    return " ".join(parts)


def posed(step: Step, pose: Pose) -> Step:
    """Turn or mirror a step."""
    (a, b), (c, d) = pose
    return a * step[0] + b * step[1], c * step[0] + d * step[1]


class Field:
    """The cells of all inputs of a task in one row, training first.

    Args:
        inputs: All inputs, of the outputs' sizes, training first.
        outputs: The training outputs.
        scenes: The inputs' scenes, which others use too.
    """

    def __init__(self, inputs: Sequence[Grid], outputs: Sequence[Grid], scenes: Scenes) -> None:
        self.shapes = [g.shape for g in inputs]
        self.n = sum(g.size for g in inputs)
        self.known = sum(g.size for g in outputs)
        self.scenes = scenes.of(inputs)
        self.given = _row([g.ravel() for g in inputs])
        self.background = _row([np.full(s.grid.size, s.background) for s in self.scenes])
        self.wanted = _row([g.ravel() for g in outputs])[:-1]
        self._at: dict[Step, Numbers] = {}
        self._seen: dict[Step, Colours] = {}

    def at(self, offset: Step) -> Numbers:
        """Return for each cell the index of the cell at an offset, that of the end of the row beyond the border."""
        if offset not in self._at:
            parts, start = [], 0
            for h, w in self.shapes:
                r, c = np.indices((h, w)).reshape(2, -1) + np.array(offset)[:, None]
                inside = (r >= 0) & (r < h) & (c >= 0) & (c < w)
                parts.append(np.where(inside, start + r * w + c, self.n))
                start += h * w
            self._at[offset] = np.concatenate(parts)
        return self._at[offset]

    def seen(self, step: Step) -> Colours:
        """Return for each cell the first drawn colour given in a direction."""
        if step not in self._seen:
            self._seen[step] = np.concatenate([seen(s, step).ravel() for s in self.scenes]).astype(np.int8)
        return self._seen[step]

    def cut(self, state: Colours) -> list[Grid]:
        """Turn the colours of all cells back into grids."""
        ends = np.cumsum([h * w for h, w in self.shapes])
        parts = np.split(state[: self.n], ends[:-1])
        return [p.reshape(s).astype(np.uint8) for p, s in zip(parts, self.shapes, strict=True)]


def _row(parts: Sequence[npt.NDArray[np.generic]]) -> Colours:
    return np.concatenate([*parts, [OUTSIDE]]).astype(np.int8)


def holds(field: Field, state: Colours, condition: Condition, pose: Pose, copied: Colours | None = None) -> Mask:
    """Return for each cell whether a condition holds there in a pose.

    Args:
        field: The cells.
        state: Their colours at the moment.
        condition: What is asked.
        pose: Turns the condition's offset.
        copied: For each cell the colour that "same" asks for.
    """
    where = posed(condition.offset, pose)
    if condition.kind == "not given":
        return np.asarray(field.given[field.at(where)] != condition.value)
    if condition.kind == "not seen":
        return np.asarray(field.seen(where) != condition.value)
    if condition.kind in ("given", "now"):
        at = field.at(where)
        colours = (field.given if condition.kind == "given" else state)[at]
        return has(colours, condition.value, field.background[at])
    if condition.kind == "same":
        return np.asarray(state[field.at(where)] == copied)
    if condition.kind in ("seen", "same seen"):
        return np.asarray(field.seen(where) == (condition.value if condition.kind == "seen" else copied))
    inside = np.concatenate([enclosed(s).ravel() for s in field.scenes])
    return np.asarray(inside == bool(condition.value))


def has(colours: Colours, value: int, background: Colours) -> Mask:
    """Return where a colour is the wanted one, or among the wanted ones."""
    if value < DRAWN:
        return np.asarray(colours == value)
    drawn = drawn_of(colours, background)
    return drawn if value == DRAWN else drawn & (colours != value - BUT)


def drawn_of(colours: Colours, background: Colours) -> Mask:
    """Return where a colour is neither the background nor outside."""
    return np.asarray((colours != background) & (colours != OUTSIDE))
