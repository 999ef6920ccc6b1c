"""Programs of growing rules, each trusted as far as it is found again without one of the pairs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from ttt._grid.growing.conditions import POSES, Field
from ttt._grid.growing.rules import Learner, cost_of, grown
from ttt._grid.scene import Scenes
from ttt._grid.work import Work
from ttt.values import Candidate, Grid

MOST_CELLS = 12_000
"""Tasks of more cells, those of every pose counted, are left out."""
MOST_COST = 14.0
"""Dearer programs are left out."""
TESTED = 3
"""How many different answers are tested by leaving out pairs."""
CELLS_PER_UNIT = 1500
"""Cells, those of every pose counted, per work unit."""
PER_TURN = 0.8
"""Taken off the cost for every doubling of the poses: pairs seldom show all directions, and few rules hold in many."""
BELIEF = 0.85
"""Chance that a program is right if all pairs are grown by the rules learned without them."""
LATER = 0.5
"""Factor of the confidence of each answer after the first."""


@dataclass(frozen=True, slots=True)
class Grown:
    """Some rules that grow every training output.

    Args:
        why: The rules in words.
        cost: Length of that description.
        poses: In which poses they hold, in words.
        grids: What they make of every input, training first.
        found_again: Share of the training pairs that the rules learned without them grow.
    """

    why: str
    cost: float
    poses: str
    grids: tuple[Grid, ...]
    found_again: float = 0.0


def growing_candidates(
    inputs: Sequence[Grid], outputs: Sequence[Grid], work: Work, known: Scenes | None = None
) -> list[list[Candidate]]:
    """Return the answers of growing rules per test, best first, with the rules in words.

    Args:
        inputs: All inputs, training first.
        outputs: The training outputs.
        work: Counts work and says when to stop.
        known: Scenes that others use too.
    """
    programs = growing_programs(inputs, outputs, work, known)
    answers: list[list[Candidate]] = []
    for test in range(len(outputs), len(inputs)):
        different: dict[bytes, Candidate] = {}
        for p in programs:
            belief = BELIEF * (0.2 + 0.8 * p.found_again) * LATER ** len(different)
            different.setdefault(p.grids[test].tobytes(), Candidate(p.grids[test], belief, "restated", p.why))
        answers.append(list(different.values()))
    return answers


def growing_programs(
    inputs: Sequence[Grid], outputs: Sequence[Grid], work: Work, known: Scenes | None = None
) -> list[Grown]:
    """Return programs that grow every training output: those found again most often first, then the cheapest.

    Arguments as of `growing_candidates`.
    """
    if any(a.shape != b.shape for a, b in zip(inputs, outputs, strict=False)):
        return []
    field = Field(inputs, outputs, known or Scenes())
    found: list[Grown] = []
    for words in POSES:
        if not work.over:
            found += _learned(field, outputs, words)
            work.spend(_units(field, words))
    different: dict[bytes, Grown] = {}
    for program in sorted(found, key=lambda p: p.cost):
        different.setdefault(b"".join(g.tobytes() for g in program.grids), program)
    shares: dict[str, float] = {}
    tested: list[Grown] = []
    for program in list(different.values())[:TESTED]:
        if program.poses not in shares and not work.over:
            shares[program.poses] = _found_again(inputs, outputs, program.poses)
            work.spend(len(outputs) * _units(field, program.poses))
        tested.append(replace(program, found_again=shares.get(program.poses, 0.0)))
    return sorted(tested, key=lambda p: (-p.found_again, p.cost))


def _units(field: Field, words: str) -> int:
    """Return the work units of learning in some poses; a unit is about 0.05 s."""
    cells = field.n * len(POSES[words])
    return 0 if cells > MOST_CELLS else 1 + cells // CELLS_PER_UNIT


def _learned(field: Field, outputs: Sequence[Grid], words: str) -> list[Grown]:
    """Return programs in some poses."""
    poses = POSES[words]
    if field.n * len(poses) > MOST_CELLS:
        return []
    found = []
    for rules in Learner(field, poses).programs():
        cost = cost_of(rules) - PER_TURN * (len(poses).bit_length() - 1)
        grids = field.cut(grown(field, field.given, rules, poses))
        if cost <= MOST_COST and all(np.array_equal(a, b) for a, b in zip(grids, outputs, strict=False)):
            text = "; ".join(r.words for r in rules)
            found.append(Grown(f"grown: {text}{words}", cost, words, tuple(grids)))
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
