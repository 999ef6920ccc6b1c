"""Where in the source the steps of an answer live."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ttt._grid import features as _features
from ttt._grid import transforms as _transforms
from ttt._grid.compose import engine as _engine
from ttt._grid.compose.parts import JOINS, SPLITS
from ttt._grid.compose.shapes import SHAPES
from ttt._grid.compose.table import LINES, Line
from ttt._grid.counted import COUNTED, ORDERS, programs_by_count
from ttt._grid.drawing.inside import CHANGED, CUTS, PARTS, changed_part, in_parts
from ttt._grid.drawing.programs import DRAWINGS
from ttt._grid.drawing.registry import Line as Drawn
from ttt._grid.features.registry import FEATURES
from ttt._grid.growing.rules import grown
from ttt._grid.objects.actions import ERASED, actions
from ttt._grid.objects.rules import AROUND, surrounded
from ttt._grid.restating import FURTHER
from ttt._grid.scene import Scene, odd_one_out
from ttt._grid.things import FORMS, PROPERTIES, RELATED, REPEATS, words_for
from ttt._grid.transforms.registry import TRANSFORMS

TABLES = (_features, _transforms, _engine)
"""Modules whose functions are in the tables once they are imported."""
PACKAGE = Path(__file__).parent.parent


@dataclass(frozen=True, slots=True)
class Step:
    """A step of an answer.

    Args:
        words: The words that name it.
        places: Files and lines, below the package, of the functions that do it.
    """

    words: str
    places: tuple[str, ...]


def steps(text: str) -> list[Step]:
    """Return the steps that an answer's words name, in the order of the words."""
    found: list[tuple[int, int, Step]] = []
    for pattern, places in sorted(_names(), key=lambda n: -len(n[0])):
        for match in re.finditer(pattern, text):
            start, end = match.span()
            if not any(start < b and a < end for a, b, _ in found):
                found.append((start, end, Step(match[0], places())))
    return [step for *_, step in sorted(found, key=lambda f: f[:2])]


def _names() -> Iterator[tuple[str, Callable[[], tuple[str, ...]]]]:
    """Every name as a pattern, with what returns its places."""
    for line in LINES:
        yield _pattern(line), partial(_places_of_line, line)
    for name, transform in TRANSFORMS.items():
        yield _whole(re.escape(name)), partial(_places_of, transform.make)
    for name, feature in FEATURES.items():
        yield _whole(re.escape(name)), partial(_places_of, feature.measure)
    for name, restate in FURTHER.items():
        yield _whole(re.escape(name)), partial(_places_of, restate)
    for name, measure in {**PROPERTIES, **REPEATS, **RELATED}.items():
        by = f"its {name}", f"its rank by {name}", words_for(name, "most"), words_for(name, "least")
        for words in by:
            yield _whole(re.escape(words)), partial(_places_of, measure)
    for name, form in FORMS.items():
        yield _whole(re.escape(f"its {name}")), partial(_places_of, form)
    yield _whole("whether it is the odd one out"), partial(_places_of, odd_one_out)
    yield _whole("grown"), partial(_places_of, grown)
    for what in COUNTED:
        yield _whole(re.escape(f"the whole output by its number of {what}")), partial(_places_of, programs_by_count)
    for drawing in DRAWINGS:
        yield _pattern_of_drawing(drawing), partial(_places_of, drawing.draw)
    for words, function in {**dict.fromkeys(PARTS, in_parts), **CUTS, CHANGED: changed_part}.items():
        yield _whole(re.escape(words)), partial(_places_of, function)
    for words, order in ORDERS.items():
        yield _whole(re.escape(f"filled {words}")), partial(_places_of, order)
    yield from _names_of_actions()


def _names_of_actions() -> Iterator[tuple[str, Callable[[], tuple[str, ...]]]]:
    """What things may do: the actions on a grid of all colours, with any number where one of its own stands."""
    scene = Scene(np.arange(10, dtype=np.uint8).reshape(2, 5))
    made = {_any_number(a.name): a.draw for a in (ERASED, *actions([scene], range(10), [(1, 1)]))}
    for pattern, draw in made.items():
        yield _whole(pattern), partial(_places_of, draw)
    yield _whole(_any_number(AROUND.format(1))), partial(_places_of, surrounded)


def _any_number(words: str) -> str:
    return re.sub(r"\d+", r"-?[0-9]+", re.escape(words))


def _whole(pattern: str) -> str:
    return rf"(?<!\w){pattern}(?!\w)"


def _pattern(line: Line) -> str:
    """The words of a line with any of its values."""
    if isinstance(line.args, dict):
        values = "|".join(re.escape(v) for v in sorted(line.args, key=len, reverse=True))
    else:
        values = "[0-9]"
    return _whole(re.escape(line.words).replace(r"\{\}", f"(?:{values})"))


def _pattern_of_drawing(line: Drawn) -> str:
    """The words of a line of a table of drawings with any of its arguments and any colour."""
    gap, colour = "\0", "\1"
    words = re.escape(line.words.format(gap, colour=colour))
    values = "|".join(re.escape(v) for v in sorted(line.args, key=len, reverse=True))
    pattern = words.replace(re.escape(gap), f"(?:{values})").replace(re.escape(colour), "[0-9]")
    return rf"(?<!\w){pattern}(?!\w)"


def _places_of_line(line: Line) -> tuple[str, ...]:
    twins: dict[str, Any] = {**SHAPES, **SPLITS, **JOINS}
    return (*_places_of(twins[line.function]), *_in_c(line.function))


def _places_of(function: Any) -> tuple[str, ...]:
    """Return the file and line of a function, or of the one that a partial calls and of functions that it gives it."""
    if isinstance(function, partial):
        given = [f for f in function.args if callable(f)]
        return tuple(place for f in (function.func, *given) for place in _places_of(f))
    code = getattr(function, "__code__", None) or getattr(type(function).__call__, "__code__", None)
    if code is None:
        return ()
    return (f"{Path(code.co_filename).relative_to(PACKAGE)}:{code.co_firstlineno}",)


def _in_c(name: str) -> Iterator[str]:
    for file in sorted((PACKAGE / "_grid/compose/csrc").glob("*.c")):
        for number, text in enumerate(file.read_text().splitlines(), 1):
            if re.match(rf"(SHAPE|SPLIT|JOIN)\({name}\)", text):
                yield f"{file.relative_to(PACKAGE)}:{number}"
