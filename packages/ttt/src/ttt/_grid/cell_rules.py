"""Rules that look each cell's colour up by its columns and are right on every training cell."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from ttt._grid.compose.choosing import Palette
from ttt._grid.compose.screening import Codes, Mask, Screen, disjoint
from ttt._grid.features.columns import Cells, Column, Paint
from ttt._grid.geometry import Numbers
from ttt.values import Grid

ENTRY = 0.15
"""Cost of one table entry."""
CELLS_PER_CASE = 2
"""Training cells that a table of several columns has for each of its cases, at least: with fewer it only memorises."""
SCREEN = 2400
"""How many cells, or pairs of cells, rules are screened on before they are verified on all."""
MOST_VERIFIED = 300
"""Most sets of columns that are verified, and most choices that are kept."""


FIRST_COLUMNS = 14
"""How many columns, the best first, are paired with every other for choices by two."""


@dataclass(frozen=True, slots=True)
class Program:
    """A verified rule with its outputs for the tests.

    Args:
        why: The rule in words.
        cost: Length of its description.
        kind: "composed", "layered", "transform",
            "table 1", "table 2", "table 3", "choice 1", "choice 2", "things", "things by property"
            or "things by two properties".
        grids: Per test its output, None where a test shows a case that no training pair has.
        trust: Factor of its confidence; below 1 if it fails a training pair.
    """

    why: str
    cost: float
    kind: str
    grids: tuple[Grid | None, ...]
    trust: float = 1.0


_Fitting = tuple[tuple[Column, ...], Numbers, Mask]
"""Columns, their joint code per cell, and for each code and paint whether the paint is wrong on a screened cell."""


class Rules:
    """The rules over one group's cells.

    Args:
        cells: The group as columns.
        pairs: Number of training pairs.
        rng: Chooses the cells that rules are screened on.
    """

    def __init__(self, cells: Cells, pairs: int, rng: np.random.Generator) -> None:
        self.cells, self.pairs, self.rng = cells, pairs, rng
        self.n = cells.known
        self.target = cells.target.astype(np.int64)

    def _program(self, why: str, cost: float, kind: str, colours: Numbers) -> Program | None:
        """Make a program from a colour (or -1) per cell; None where no test is answered."""
        grids = self.cells.cut(colours.astype(np.int16))[self.pairs :]
        kept = tuple(None if (g < 0).any() else g.astype(np.uint8) for g in grids)
        return None if all(g is None for g in kept) else Program(why, cost, kind, kept)

    def plain(self) -> list[Program]:
        """Return the paints that are the output as they are."""
        found = []
        for p in self.cells.paints:
            if np.array_equal(p.colours[: self.n], self.cells.target):
                made = self._program(p.name, p.cost, "transform", p.colours.astype(np.int64))
                if made:
                    found.append(made)
        return found

    def _table(self, codes: Numbers, keys: int) -> tuple[Numbers, int] | None:
        """Return the colour per code, -1 where never seen; None where a code has two colours on the training cells."""
        table = np.full(keys, -1, dtype=np.int64)
        table[codes[: self.n]] = self.target
        if (table[codes[: self.n]] != self.target).any():
            return None
        return table, int((table >= 0).sum())

    def tables(self, size: int) -> list[Program]:
        """Return tables over one, two or three columns (three: the base and two others)."""
        columns = self.cells.columns
        if size == 1:
            sets: Sequence[tuple[int, ...]] = [(i,) for i in range(len(columns))]
        else:
            sets = self._separating(size)
        found = []
        for chosen in sets:
            codes, keys = self._joint([columns[i] for i in chosen])
            table = self._table(codes, keys)
            if table is None or (size > 1 and table[1] * CELLS_PER_CASE > self.n):
                continue
            names = " and ".join(columns[i].name for i in chosen)
            cost = sum(columns[i].cost for i in chosen) + 1.0 * (size > 1) + 0.5 + ENTRY * table[1]
            made = self._program(f"colour by {names} ({table[1]} cases)", cost, f"table {size}", table[0][codes])
            if made:
                found.append(made)
        return found

    @staticmethod
    def _joint(columns: list[Column]) -> tuple[Numbers, int]:
        codes, keys = columns[0].codes, columns[0].keys
        for c in columns[1:]:
            codes, keys = codes * c.keys + c.codes, keys * c.keys
        return codes, keys

    def _separating(self, size: int) -> Sequence[tuple[int, ...]]:
        """Return sets of columns that separate all sampled pairs of cells of different colours, cheapest first."""
        columns = self.cells.columns
        codes = np.stack([c.codes[: self.n].astype(np.uint8) for c in columns])  # at most 64 codes each
        a, b = self._hard_pairs(codes)
        if not len(a):
            return []
        blind = codes[:, a] == codes[:, b]
        cost = np.array([c.cost + ENTRY * c.keys for c in columns])
        if size == 3:
            blind = blind[:, blind[0]]
        first, second = disjoint(blind)
        order = np.argsort(cost[first] + cost[second], kind="stable")[: MOST_VERIFIED * 4]
        alone = ~blind.any(axis=1)
        pairs = [(int(first[o]), int(second[o])) for o in order]
        if size == 2:
            return [(*p,) for p in pairs if not (alone[p[0]] or alone[p[1]])][:MOST_VERIFIED]
        return [(0, *p) for p in pairs if p[0] != 0 and not (alone[p[0]] or alone[p[1]])][:MOST_VERIFIED]

    def _hard_pairs(self, codes: Codes) -> tuple[Numbers, Numbers]:
        """Sample pairs of training cells with different colours, half of them alike in the base."""
        a = self.rng.integers(self.n, size=SCREEN * 6)
        b = self.rng.integers(self.n, size=SCREEN * 6)
        differ = self.target[a] != self.target[b]
        alike = codes[0][a] == codes[0][b]
        pick = np.concatenate([np.flatnonzero(differ & alike)[:SCREEN], np.flatnonzero(differ & ~alike)[: SCREEN // 2]])
        if len(np.flatnonzero(differ & alike)) < SCREEN // 8:
            changed = np.flatnonzero(self.target != self.cells.paints[0].colours[: self.n])
            if len(changed):
                a2 = self.rng.choice(changed, size=SCREEN * 4)
                b2 = self.rng.integers(self.n, size=SCREEN * 4)
                good = np.flatnonzero((self.target[a2] != self.target[b2]) & (codes[0][a2] == codes[0][b2]))[:SCREEN]
                return np.concatenate([a[pick], a2[good]]), np.concatenate([b[pick], b2[good]])
        return a[pick], b[pick]

    def choices(self, size: int) -> list[Program]:
        """Return rules that choose, by the code of one or two columns, which paint a cell takes."""
        paints = sorted(self.cells.paints, key=lambda p: p.cost)
        screen = self._screen()
        wanted = self.cells.target[screen]
        wrong = np.stack([p.colours[screen] != wanted for p in paints])
        if size == 1:
            fitting = self._fitting([c for c in self.cells.columns if c.keys <= 12], screen, wrong)
        else:
            near = wrong.sum(axis=1).argsort(kind="stable")[:40]
            near = np.union1d(near, [i for i, p in enumerate(paints) if p.cost <= 0.7])
            paints, wrong = [paints[i] for i in near], wrong[near]
            fitting = self._fitting_pairs([c for c in self.cells.columns if c.keys <= 6], screen, wrong)
        colours, sampled = np.stack([p.colours for p in paints]), len(screen) < self.n
        palette = Palette(colours, [p.name for p in paints], [p.cost for p in paints], self.cells.target, sampled)
        found: list[Program] = []
        for chosen, codes, mistaken in fitting:
            made = self._choice(chosen, codes, paints, palette, mistaken)
            if made:
                found.append(made)
                if len(found) >= MOST_VERIFIED:
                    break
        return found

    @staticmethod
    def _fitting(columns: list[Column], screen: Numbers, wrong: Mask) -> Iterator[_Fitting]:
        """Yield columns where, for every code, some paint makes no mistake on the screened cells."""
        if not columns:
            return
        asked = Screen(np.stack([c.codes[screen] for c in columns]), [c.keys for c in columns], wrong)
        for column, codes, mistaken in zip(columns, asked.codes, asked.mistaken(), strict=True):
            present = np.bincount(codes, minlength=column.keys) > 0
            if not (present & mistaken.all(axis=1)).any():
                yield (column,), column.codes, mistaken

    @staticmethod
    def _fitting_pairs(columns: list[Column], screen: Numbers, wrong: Mask) -> Iterator[_Fitting]:
        """Yield pairs of columns where, for every joint code, some paint makes no mistake on the screened cells."""
        if not columns:
            return
        codes = np.stack([c.codes[screen] for c in columns])
        least = Screen(codes, [c.keys for c in columns], wrong).least()
        order = [i for _, i in sorted((least[i] + 2.0 * c.cost, i) for i, c in enumerate(columns))[:160]]
        columns = [columns[i] for i in order]
        for i, j in Screen(codes[order], [c.keys for c in columns], wrong).pairs(FIRST_COLUMNS):
            a, b = columns[i], columns[j]
            joint = a.codes * b.keys + b.codes
            yield (a, b), joint, Screen(joint[screen][None], [a.keys * b.keys], wrong).mistaken()[0]

    def _screen(self) -> Numbers:
        """Sample training cells, half of them changed by the task."""
        base = self.cells.paints[0].colours[: self.n]
        changed, kept = np.flatnonzero(self.cells.target != base), np.flatnonzero(self.cells.target == base)
        half = SCREEN // 2
        parts = [p if len(p) <= half else self.rng.choice(p, half, replace=False) for p in (changed, kept)]
        return np.sort(np.concatenate(parts))

    def _choice(
        self, chosen: tuple[Column, ...], codes: Numbers, paints: list[Paint], palette: Palette, mistaken: Mask
    ) -> Program | None:
        """Choose the cheapest right paint for each code; None where a code has none or one paint does for all."""
        made = palette.chosen(codes, mistaken)
        if made is None:
            return None
        best, out = made
        used: dict[str, float] = {}
        taken = best[best >= 0].tolist()
        for i in taken:
            used.setdefault(paints[i].name, paints[i].cost)
        if len(used) < 2:
            return None
        cost = sum(c.cost for c in chosen) + 1.0 * (len(chosen) > 1) + sum(used.values()) + 0.5 + ENTRY * len(taken)
        why = f"by {' and '.join(c.name for c in chosen)} one of: {'; '.join(used)}"
        return self._program(why, cost, f"choice {len(chosen)}", out)
