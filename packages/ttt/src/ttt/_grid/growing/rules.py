"""Growing rules: learned so that they paint no training cell wrong, and applied until nothing changes.

A rule paints a cell of one given colour where up to three conditions hold. Rules feed each other, so that rays,
bounces, floods and repeated patterns are one rule or a few. While they are learned a cell counts as having both its
given colour and its wanted one: whatever was painted before, a rule that is kept is right on every training cell.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ttt._grid.geometry import Mask, Numbers
from ttt._grid.growing.conditions import (
    BUT,
    COPIED,
    DRAWN,
    EIGHT_WAYS,
    NEAR,
    OFFSETS,
    OUTSIDE,
    Colours,
    Condition,
    Field,
    Pose,
    drawn_of,
    has,
    holds,
    posed,
)
from ttt._grid.growing.safe import safe_sets

COPY = 12
"""Painted by a rule that copies the colour of the cell of its first condition."""
MOST_RULES = 7
"""Rules of one program."""
MOST_CHANGES = 10
"""Pairs of a given and a wanted colour above which nothing is learned."""
ROUNDS = 90
"""How often rules are repeated."""
ASKED = 400
"""How many rules, the most useful first, are asked whether they paint anything now."""

Rated = tuple["Rule", Mask]
"""A rule and which of the changed training cells it may paint at some time."""


@dataclass(frozen=True, slots=True)
class Rule:
    """Paints cells of one given colour where all conditions hold.

    Args:
        before: The given colour.
        paint: The new colour, or `COPY`.
        conditions: All must hold.
    """

    before: int
    paint: int
    conditions: tuple[Condition, ...]

    @property
    def cost(self) -> float:
        """Length of its description."""
        return 0.8 + sum(c.cost for c in self.conditions)

    @property
    def words(self) -> str:
        """The rule in words."""
        what = "its colour" if self.paint == COPY else f"colour {self.paint}"
        return f"{what} on colour {self.before} where {' and '.join(c.words for c in self.conditions)}"


def paints(field: Field, state: Colours, rule: Rule, pose: Pose) -> tuple[Mask, Colours | None]:
    """Return where a rule paints at the moment, and for one that copies the colour that each cell would get."""
    mask = (state[: field.n] == rule.before) & (field.given[: field.n] == rule.before)
    copied = state[field.at(posed(rule.conditions[0].offset, pose))] if rule.paint == COPY else None
    for condition in rule.conditions:
        if not mask.any():
            break
        mask &= holds(field, state, condition, pose, copied)
    return mask, copied


def grown(field: Field, state: Colours, rules: Sequence[Rule], poses: Sequence[Pose]) -> Colours:
    """Repeat rules until nothing changes. Each round looks at the colours before it; the first rule of a cell wins."""
    for _ in range(ROUNDS):
        new = state.copy()
        for rule in rules:
            for pose in poses:
                mask, copied = paints(field, state, rule, pose)
                where = np.flatnonzero(mask & (new[: field.n] == state[: field.n]))
                new[where] = rule.paint if copied is None else copied[where]
        if np.array_equal(new, state):
            break
        state = new
    return state


class Learner:
    """Finds rules that paint no training cell wrong, and few of them that paint all.

    Args:
        field: The cells of a task.
        poses: In which every rule holds.
    """

    def __init__(self, field: Field, poses: Sequence[Pose]) -> None:
        self.field, self.poses = field, poses
        n = field.known
        self.changed: Mask = field.given[:n] != field.wanted
        self.ended = np.concatenate([field.wanted, np.full(len(field.given) - n, OUTSIDE, np.int8)])
        self.given = np.tile(field.given[:n], len(poses))
        self.wanted = np.tile(field.wanted, len(poses))
        self.conditions, self.marks, self.images = _distinct_columns(
            [(c, self._ever(c)) for c in _conditions(field, self.ended[:n])], poses
        )

    def _ever(self, condition: Condition) -> Mask:
        """Return where a condition may hold at some time: for each pose, every training cell."""
        field, n = self.field, self.field.known
        marks = [holds(field, field.given, condition, pose)[:n] for pose in self.poses]
        if condition.kind == "now":
            for mark, pose in zip(marks, self.poses, strict=True):
                at = field.at(posed(condition.offset, pose))[:n]
                mark |= has(self.ended[at], condition.value, field.background[at])
        return np.concatenate(marks)

    def programs(self) -> list[list[Rule]]:
        """Return some lists of rules that grow every training output, cheapest first."""
        rated = sorted(self._rules(), key=lambda r: r[0].cost) if self.conditions else []
        if not rated:
            return []
        rules = [rule for rule, _ in rated]
        cells = np.stack([cells for _, cells in rated]).astype(np.float32)
        if not cells.any(axis=0).all():
            return []
        costs = np.array([rule.cost for rule in rules])
        found: list[list[Rule]] = []
        for divisor in (np.sqrt(costs), costs, costs * costs, costs * costs * costs):
            chosen = self._chosen(rules, cells, divisor)
            if chosen is not None and chosen not in found:
                found.append(chosen)
        return sorted(found, key=cost_of)

    def _rules(self) -> list[Rated]:
        """Return rules that are right whatever was painted before; none where too many colours become others."""
        rules: list[Rated] = []
        before_and_after = self.field.given[: self.field.known][self.changed] * 10 + self.field.wanted[self.changed]
        if len(np.unique(before_and_after)) > MOST_CHANGES:
            return []
        still = [i for i, c in enumerate(self.conditions) if c.kind != "now"]
        place = np.full(len(self.conditions) + 1, len(self.conditions))  # the last one for none
        place[still] = np.arange(len(still))
        n = self.field.known
        for before in np.unique(self.field.given[:n][self.changed]).tolist():
            here = self.given == before
            for paint in np.unique(self.field.wanted[self.changed & here[:n]]).tolist():
                right, wrong = here & (self.wanted == paint), here & (self.wanted != paint)
                sets = safe_sets(self.marks, right, wrong, 3, self.images)
                # Growth begins with rules for few cells, of which most would be left out beside those for many.
                first = safe_sets(self.marks[:, still], right, wrong, 3, place[self.images[:, still]])
                sets += [tuple(still[i] for i in s) for s in first]
                for chosen in dict.fromkeys(sets):
                    rule = Rule(before, paint, tuple(self.conditions[i] for i in chosen))
                    rules.append((rule, self._cells(self.marks[:, chosen].all(axis=1) & right)))
            if len(np.unique(self.field.wanted[self.changed])) > 1:
                for offset in (o for o in COPIED if o == min(posed(o, pose) for pose in self.poses)):
                    rules += self._copying(before, here, offset)
        return rules

    def _copying(self, before: int, here: Mask, offset: tuple[int, int]) -> list[Rated]:
        """Return rules that copy the colour at an offset."""
        field, n = self.field, self.field.known
        source = np.concatenate([field.at(posed(offset, pose))[:n] for pose in self.poses])
        first, last, background = field.given[source], self.ended[source], field.background[source]
        was_drawn, is_drawn = drawn_of(first, background), drawn_of(last, background)
        wrong = here & ((is_drawn & (last != self.wanted)) | (was_drawn & (first != self.wanted)))
        right: Mask = np.asarray(here & is_drawn & (last == self.wanted) & ~wrong)
        if len(np.unique(self.wanted[right & (self.given != self.wanted)])) < 2:
            return []
        more: list[tuple[Condition, Mask]] = []
        for other in NEAR:
            if other != offset:
                at = np.concatenate([field.at(posed(other, pose))[:n] for pose in self.poses])
                a, b = field.given[at], self.ended[at]
                same = (was_drawn & ((a == first) | (b == first))) | (is_drawn & ((a == last) | (b == last)))
                more.append((Condition("same", other, 0), same))
        for step in EIGHT_WAYS:
            a = np.concatenate([field.seen(posed(step, pose))[:n] for pose in self.poses])
            more.append((Condition("same seen", step, 0), (was_drawn & (a == first)) | (is_drawn & (a == last))))
        marks = np.concatenate([self.marks, np.stack([m for _, m in more], axis=1)], axis=1)
        conditions = [*self.conditions, *(c for c, _ in more)]
        sets = safe_sets(marks, right, wrong, 2, most=30)
        source_drawn = Condition("now", offset, DRAWN)
        return [
            (
                Rule(before, COPY, (source_drawn, *(conditions[i] for i in chosen))),
                self._cells(marks[:, chosen].all(axis=1) & right),
            )
            for chosen in ([()] if not wrong.any() else []) + sets
        ]

    def _cells(self, marked: Mask) -> Mask:
        """Return which changed cells are marked in some pose."""
        in_some_pose: Mask = marked.reshape(len(self.poses), -1).max(axis=0)
        return in_some_pose[self.changed]

    def _chosen(
        self, rules: Sequence[Rule], cells: npt.NDArray[np.float32], divisor: npt.NDArray[np.float64]
    ) -> list[Rule] | None:
        """Choose rules greedily, by the open cells that each may paint over the divisor; None where cells stay open."""
        field, n = self.field, self.field.known
        chosen: list[Rule] = []
        state = field.given
        while True:
            still_open = self.changed & (state[:n] == field.given[:n])
            if not still_open.any():
                return chosen
            if len(chosen) == MOST_RULES:
                return None
            gain = (cells @ still_open[self.changed].astype(np.float32)) / divisor
            order = np.argsort(-gain, kind="stable")[:ASKED]
            useful = (rules[i] for i in order if gain[i] > 0 and self._starts(rules[i], state, still_open))
            rule = next(useful, None)
            if rule is None:
                return None
            chosen.append(rule)
            state = grown(field, state, chosen, self.poses)

    def _starts(self, rule: Rule, state: Colours, still_open: Mask) -> bool:
        """Return whether a rule paints an open cell at the moment."""
        n = self.field.known
        return any((paints(self.field, state, rule, pose)[0][:n] & still_open).any() for pose in self.poses)


def cost_of(rules: Sequence[Rule]) -> float:
    """Length of the description of some rules."""
    return sum(rule.cost for rule in rules)


def _conditions(field: Field, ended: Colours) -> list[Condition]:
    """Return everything that a rule may ask, with the colours of a task."""
    colours = np.unique(np.concatenate([field.given[: field.known], ended])).tolist()
    backgrounds = np.unique(field.background[: field.known]).tolist()
    drawn = colours if len(backgrounds) > 1 else [c for c in colours if c not in backgrounds]
    others = [BUT + c for c in drawn] if len(drawn) > 1 else []
    found = [Condition("enclosed", (0, 0), 1), Condition("enclosed", (0, 0), 0)]
    for offset in OFFSETS:
        found += [Condition("given", offset, c) for c in [*colours, OUTSIDE, DRAWN]]
        found += [Condition("now", offset, c) for c in [*drawn, DRAWN, *others]]
    for kind in ("seen", "not seen", "not given"):
        found += [Condition(kind, step, c) for step in EIGHT_WAYS for c in colours]
    return found


def _distinct_columns(
    marked: Sequence[tuple[Condition, Mask]], poses: Sequence[Pose]
) -> tuple[list[Condition], Mask, Numbers]:
    """Return the conditions that are neither always nor never true, the first of those alike.

    Returns:
        The conditions; their marks; for each pose and condition which one it is in that pose, their number for none.
    """
    kept: dict[bytes, tuple[Condition, Mask]] = {}
    index: dict[Condition, int] = {}
    order: dict[bytes, int] = {}
    for condition, marks in marked:
        if marks.any() and not marks.all():
            key = np.packbits(marks).tobytes()
            kept.setdefault(key, (condition, marks))
            index[condition] = order.setdefault(key, len(order))
    if not kept:
        return [], np.zeros((0, 0), dtype=bool), np.zeros((0, 0), dtype=np.int64)
    conditions = [c for c, _ in kept.values()]
    images = [
        [index.get(Condition(c.kind, posed(c.offset, pose), c.value), len(conditions)) for c in conditions]
        for pose in poses
    ]
    return conditions, np.stack([m for _, m in kept.values()], axis=1), np.array(images, dtype=np.int64)
