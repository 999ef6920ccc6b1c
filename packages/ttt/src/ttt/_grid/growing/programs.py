"""Programs of growing rules, each trusted as far as it is found again without one of the pairs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ttt._grid.cell_rules import Program
from ttt._grid.growing.conditions import POSES, Field
from ttt._grid.growing.rules import Learner, cost_of, grown
from ttt._grid.scene import Scenes
from ttt._grid.work import Work
from ttt.values import Grid

MOST_CELLS = 12_000
"""Tasks of more cells, those of every pose counted, are left out."""
MOST_COST = 14.0
"""Dearer programs are left out."""
TESTED = 3
"""How many different answers are tested by leaving out pairs."""
CELLS_PER_UNIT = 1500
"""Cells, those of every pose counted, per work unit."""
POSED = 0.3
"""Cost of poses."""


@dataclass(frozen=True, slots=True)
class _Grown:
    words: str
    cost: float
    grids: list[Grid]
    poses: str


def growing_programs(
    inputs: Sequence[Grid], outputs: Sequence[Grid], work: Work, known: Scenes | None = None
) -> list[Program]:
    """Return programs that grow every training output from its input, cheapest first.

    Args:
        inputs: All inputs, training first.
        outputs: The training outputs.
        work: Counts work and says when to stop.
        known: Scenes that others use too.
    """
    if any(a.shape != b.shape for a, b in zip(inputs, outputs, strict=False)):
        return []
    field = Field(inputs, outputs, known or Scenes())
    found: list[_Grown] = []
    for words in POSES:
        if not work.over:
            found += _learned(field, outputs, words)
            work.spend(_units(field, words))
    programs: list[Program] = []
    shares: dict[str, float] = {}
    answers: set[bytes] = set()
    for made in sorted(found, key=lambda m: m.cost):
        grids = made.grids[len(outputs) :]
        answer = b"".join(g.tobytes() for g in grids)
        if answer in answers or len(answers) == TESTED or work.over:
            continue
        answers.add(answer)
        if made.poses not in shares:
            shares[made.poses] = _found_again(inputs, outputs, made.poses)
            work.spend(len(outputs) * _units(field, made.poses))
        programs.append(Program(made.words, made.cost, "grown", tuple(grids), trust(shares[made.poses])))
    return programs


def _units(field: Field, words: str) -> int:
    """Return the work units of learning in some poses; a unit is about 0.05 s."""
    cells = field.n * len(POSES[words])
    return 0 if cells > MOST_CELLS else 1 + cells // CELLS_PER_UNIT


def trust(share: float) -> float:
    """Return how far a program is trusted, by the share of pairs that the rules found without them grow."""
    return 0.25 + 0.75 * share


def _learned(field: Field, outputs: Sequence[Grid], words: str) -> list[_Grown]:
    """Return programs in some poses."""
    poses = POSES[words]
    if field.n * len(poses) > MOST_CELLS:
        return []
    found = []
    for rules in Learner(field, poses).programs():
        cost = cost_of(rules) + POSED * (len(poses) > 1)
        grids = field.cut(grown(field, field.given, rules, poses))
        if cost <= MOST_COST and all(np.array_equal(a, b) for a, b in zip(grids, outputs, strict=False)):
            text = "; ".join(r.words for r in rules)
            found.append(_Grown(f"grown: {text}{words}", cost, grids, words))
    return found


def _found_again(inputs: Sequence[Grid], outputs: Sequence[Grid], words: str) -> float:
    """Return the share of training pairs that the cheapest rules learned from the others grow."""
    right = 0
    for k, output in enumerate(outputs):
        others = [i for i in range(len(outputs)) if i != k]
        if others:
            rest = [outputs[i] for i in others]
            field = Field([*(inputs[i] for i in others), inputs[k]], rest, Scenes())
            made = sorted(_learned(field, rest, words), key=lambda m: m.cost)
            right += bool(made) and np.array_equal(made[0].grids[-1], output)
    return right / len(outputs)
