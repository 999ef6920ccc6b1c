"""Every name that an answer shows can be found in the source: it is a literal there, or a row with its gaps filled."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import numpy as np
import pytest

import ttt._grid
from ttt._grid.features import FEATURES
from ttt._grid.objects.actions import ERASED, actions
from ttt._grid.scene import Scene
from ttt._grid.things import MEASURES, SELECTIONS
from ttt._grid.transforms import TRANSFORMS

SOURCE = Path(ttt._grid.__file__).parent
Place = tuple[str, int]


class Rows:
    """All texts in some files with file and line, and the ones with gaps (`{}`, or f-strings) cut at the gaps."""

    def __init__(self, *files: Path) -> None:
        self.texts: dict[str, Place] = {}
        self.gapped: list[tuple[tuple[str, ...], Place]] = []
        self._traced: dict[str, list[Place]] = {}
        for file in files:
            for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
                place = (str(file.relative_to(SOURCE)), getattr(node, "lineno", 0))
                if isinstance(node, ast.Constant) and isinstance(node.value, str):
                    self.texts.setdefault(node.value, place)
                    self._cut(node.value, place)
                elif isinstance(node, ast.JoinedStr):
                    text = "".join(str(v.value) if isinstance(v, ast.Constant) else "{}" for v in node.values)
                    self._cut(text, place)

    def _cut(self, text: str, place: Place) -> None:
        parts = tuple(text.split("{}"))
        if len(parts) > 1 and re.search("[a-z]{3}", text):
            self.gapped.append((parts, place))

    def trace(self, name: str) -> list[Place]:
        """File and line of the row that a name is, or of the row with gaps and what fills them; nothing if unknown."""
        if name not in self._traced:
            self._traced[name] = []  # a name is not explained by itself
            self._traced[name] = self._trace(name)
        return self._traced[name]

    def _trace(self, name: str) -> list[Place]:
        if name in self.texts:
            return [self.texts[name]]
        if re.fullmatch(r"-?\d+", name):
            return [("a number", 0)]
        for (start, *parts), place in self.gapped:
            if name.startswith(start) and (found := self._filled(name[len(start) :], parts)) is not None:
                return [place, *found]
        return []

    def _filled(self, rest: str, parts: list[str]) -> list[Place] | None:
        """What fills the gaps before each part, if the gaps and parts make up the rest of a name."""
        if not parts:
            return None if rest else []
        for end in range(len(rest) + 1):
            gap, after = rest[:end], rest[end:]
            if after.startswith(parts[0]) and (not gap or self.trace(gap)):
                more = self._filled(after[len(parts[0]) :], parts[1:])
                if more is not None:
                    return [*(self.trace(gap) if gap else []), *more]
        return None


@pytest.mark.parametrize("registry", [TRANSFORMS, FEATURES], ids=["transforms", "features"])
def test_every_registered_name_traces_to_a_table_row(registry: dict[str, object]) -> None:
    """Names are whole rows, or a row and a selection, a measure or colours."""
    folder = "transforms" if registry is TRANSFORMS else "features"
    rows = Rows(*(SOURCE / folder).glob("*.py"), SOURCE / "things.py")
    places = {name: rows.trace(name) for name in registry}
    assert [name for name, found in places.items() if not found] == []
    whole = sum(len(found) == 1 for found in places.values())
    assert whole > 100, "most families are tables of whole names"
    assert all(file.startswith(folder) for found in places.values() for file, _ in found[:1])


def test_every_action_traces_to_a_row() -> None:
    """The words of an action are rows of one file, too."""
    rows = Rows(SOURCE / "objects" / "actions.py", SOURCE / "geometry.py")
    scene = Scene(np.array([[1, 1, 0, 2], [0, 0, 0, 2]], np.uint8))
    named = [a.name for a in (ERASED, *actions([scene], [7], [(1, -2)]))]
    assert [n for n in named if not rows.trace(n)] == []


def test_selections_cover_every_measure_once() -> None:
    """For each property of things there are words for its most, its least and its unique value."""
    assert list(SELECTIONS.values()) == [(m, e) for m in MEASURES for e in ("most", "least", "odd")]
    assert len(MEASURES) == len(set(MEASURES))
