"""Drawings: each kind on small grids, what the search makes of them, and that their words lead to their functions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from ttt._grid.counted import programs_by_count
from ttt._grid.drawing import (
    cleaning,
    fitting,
    inside,
    keys,
    marks,
    mirrors,
    panels,
    paths,
    periods,
    regions,
    rings,
    stamps,
    summaries,
    symmetry,
    walks,
)
from ttt._grid.drawing.programs import DRAWINGS, drawn
from ttt._grid.drawing.registry import drawings
from ttt._grid.features import FEATURES
from ttt._grid.objects.relations import Relations, colour_of_other
from ttt._grid.scene import Scene, Scenes, odd_one_out
from ttt._grid.search import search
from ttt._grid.where import steps
from ttt._grid.work import Work
from ttt.values import Grid

GRIDS = arrays(np.uint8, st.tuples(st.integers(1, 9), st.integers(1, 9)), elements=st.integers(0, 3))


def picture(*rows: str) -> Grid:
    """A grid from rows of digits; dots are empty."""
    return np.array([[0 if c == "." else int(c) for c in row] for row in rows], dtype=np.uint8)


def scene(*rows: str) -> Scene:
    """The scene of such a grid, empty cells its background."""
    return Scene(picture(*rows), 0)


def shown(grid: Grid | None) -> list[str]:
    """The rows of a grid."""
    assert grid is not None
    return ["".join("." if c == 0 else str(c) for c in row) for row in grid.tolist()]


def test_a_key_recolours_all_but_itself() -> None:
    """Pairs side by side say which colour becomes which, one way or both; the key may be removed or left outside."""
    s = scene("12....", "......", "...112", "...111")
    assert shown(keys.recoloured(keys.FORWARDS, keys.KEPT, s)) == ["12....", "......", "...222", "...222"]
    assert shown(keys.recoloured(keys.BOTH, keys.REMOVED, s)) == ["......", "......", "...221", "...222"]
    assert shown(keys.recoloured(keys.BACKWARDS, keys.CUT, s)) == ["111", "111"]
    assert keys.recoloured(keys.BOTH, keys.KEPT, scene("12.13", ".....", "11.11")) is None, "1 would become 2 and 3"


def test_a_key_may_be_a_panel() -> None:
    """Separators are no part of the drawing."""
    s = scene("125.1", "345.3", "55555", "..5..")
    assert shown(keys.recoloured(keys.FORWARDS, keys.KEPT, s)) == ["125.2", "345.4", "55555", "..5.."]
    assert shown(keys.recoloured(keys.FORWARDS, keys.CUT, s)) == ["2", "4"]


def test_cells_see_other_panels() -> None:
    """The colour at a cell's place in another panel, and in the fullest panel at the place of its panel."""
    s = scene("1252.", ".25..", "55555", "..5..", "3.5..")
    assert FEATURES["colour at its place in the first panel"].measure(s)[3:, 3:].tolist() == [[1, 2], [0, 2]]
    assert FEATURES["colour at its place in the panel to the left"].measure(s)[0].tolist() == [1, 2, 5, 1, 2]
    boxes = FEATURES["in how many boxes of a colour's cells it lies"].measure(scene("1.2.1.2"))
    assert boxes is not None
    assert boxes.tolist() == [[1, 1, 2, 2, 2, 1, 1]]
    place = FEATURES["colour in the fullest panel at the place of its panel"].measure(s)
    assert [int(place[r, c]) for r in (0, 4) for c in (0, 4)] == [1, 2, 0, 2]
    assert FEATURES["colour at its place in the panel above"].measure(scene("12", "34")) is None


def test_a_stamp_is_completed_at_its_anchors_in_any_pose_and_scale() -> None:
    """Cells of some of its colours say where it lies, how it is turned and how large it is."""
    s = scene("132....", ".3.....", ".......", "....2.1", ".......")
    assert shown(stamps.completed(stamps.ANY, 1, False, s))[2:] == [".....3.", "....231", "......."]
    assert shown(stamps.completed(stamps.UNTURNED, 1, False, s))[3] == "..132.1", "mirrored it would fit both cells"
    assert stamps.completed(stamps.ANY, 1, False, scene("12.", "...", "..3")) is None, "no anchor of its colours"
    large = scene("132......", ".........", "11..22...", "11..22...", ".........")
    assert shown(stamps.completed(stamps.UNTURNED, 2, False, large))[2:4] == ["113322...", "113322..."]


def test_the_larger_object_is_copied_to_single_cells() -> None:
    """Its core lies on the cell; the rest keeps its colours or takes that of the cell."""
    s = scene(".1....", "121...", ".1....", "....3.", "......")
    assert shown(stamps.copied(False, s))[2:] == [".1..1.", "...131", "....1."]
    assert shown(stamps.copied(True, s))[3] == "...333"
    assert stamps.copied(True, scene("11..2", "11...")) is None, "it has no core"


def test_things_are_completed_about_their_own_centre() -> None:
    """The centre is where most cells agree, not the middle of the box; what a rectangle covers is found, too."""
    assert symmetry.things_completed("object", symmetry.ACROSS, scene("1.1", "121", "1..")) is not None
    assert shown(symmetry.completed(symmetry.BOTH, scene("1.1", ".2.", "1.."))) == ["1.1", ".2.", "1.1"]
    assert symmetry.completed(symmetry.ACROSS, scene("12", "3.", "4.")) is None, "no centre has half of the cells"
    uncovered = symmetry.rectangle_uncovered(symmetry.DOWN, scene("22.22", "2.2.2", "2.233", "22.33"))
    assert shown(uncovered) == ["22.22", "2.2.2", "2.2.2", "22.22"]
    assert symmetry.rectangle_uncovered(symmetry.DOWN, scene("2..2", ".22.")) is None, "nothing covers it"


@settings(max_examples=40, deadline=None)
@given(GRIDS, st.sampled_from(list(symmetry.WAYS.values())))
def test_what_is_symmetric_already_stays(half: Grid, images: tuple[symmetry.Image, ...]) -> None:
    """Nothing that is drawn is changed by making it symmetric."""
    made = symmetry.completed(images, Scene(half, 0))
    assert made is None or (made[half > 0] == half[half > 0]).all()


def test_drawings_are_mirrored_about_a_middle() -> None:
    """About the middle of the grid, or of the cells of a colour, also where nothing is symmetric yet."""
    s = scene("11...", "1....", "..5..", ".....", ".....")
    whole = ["11.11", "1...1", "..5..", "1...1", "11.11"]
    assert shown(symmetry.about_colour(symmetry.BOTH, 5, s)) == whole
    assert shown(symmetry.about_middle(symmetry.TURNS, s)) == whole
    assert shown(symmetry.about_colour(symmetry.DOWN, 5, scene("1.", "5.", "..")))[2] == "1."


def test_a_drawing_crosses_the_line_through_the_grid() -> None:
    """It is mirrored to the other side, or moved there."""
    s = scene("..1.", "....", "5555", "....", "....")
    assert shown(mirrors.across_lines(True, False, False, s)) == ["..1.", "....", "5555", "....", "..1."]
    assert shown(mirrors.across_lines(True, False, True, s)) == ["....", "....", "5555", "....", "..1."]
    assert mirrors.across_lines(False, True, False, s) is None, "no column runs through it"


def test_rows_and_drawings_go_on_with_their_own_period() -> None:
    """Each row has its own; a drawing goes on by the vector that maps a part of it onto another."""
    s = scene("1212....", "113113..", "5.......")
    assert shown(periods.lines_continued(0, False, s)) == ["12121212", "11311311", "5......."]
    assert shown(periods.lines_continued(0, True, s))[2] == "55555555"
    stairs = scene("11......", "..11....", "........", "........")
    assert shown(periods.repeated(True, False, stairs)) == ["11......", "..11....", "....11..", "......11"]
    assert shown(periods.things_repeated(True, True, scene("12...", ".12..", ".....")))[2] == "..12."


def test_rings_exchange_colours() -> None:
    """By colour or ring by ring, in the whole grid or in the box of each object."""
    g = ("2222", "2112", "2112", "2222")
    assert shown(rings.of_whole(rings.REVERSED, False, scene(*g))) == ["1111", "1221", "1221", "1111"]
    three = scene("11111", "12221", "12321", "12221", "11111")
    assert shown(rings.of_whole(rings.OUTWARDS, True, three)) == ["22222", "23332", "23132", "23332", "22222"]
    assert shown(rings.of_things("object", rings.REVERSED, True, scene("222.", "212.", "222.")))[1] == "121."


def test_regions_between_walls_and_boxes_between_corners_are_filled() -> None:
    """A region takes the colour drawn in it; equal things at four corners span a box; frames grow outwards."""
    s = scene("..3..", ".2.3.", "..3..", "33333", ".....")
    assert shown(regions.flooded(regions.ONLY, 3, scene("2.3..", "..3..", "333..")))[:2] == ["223..", "223.."]
    assert regions.flooded(regions.ONLY, 2, s) is None
    assert shown(regions.spanned(4, scene("1..1", "....", "1..1"))) == ["1..1", ".44.", "1..1"]
    assert shown(regions.framed_outwards(1, scene("1....", ".....", "....."))) == ["1.1.1", "..1.1", "111.1"]
    assert shown(regions.outlined_in_own("colour", scene("1..", "...", "..1"))) == ["111", "1.1", "111"]
    assert shown(regions.outlined("object", False, 4, scene("11.", "1..", "11.")))[1] == "14."
    five = regions.nested(scene(".....", ".2.2.", ".....", ".2.2.", "....."))
    assert shown(five) == ["22222", "22222", "22.22", "22222", "22222"]


def test_one_panel_is_shown_in_the_others() -> None:
    """The fullest panel's drawing, in their colours or its own; and what most panels show."""
    s = scene("11.5...", "1..5..2", "...5...")
    assert shown(panels.shared(panels.FULLEST, True, False, s)) == ["11.522.", "1..52.2", "...5..."]
    assert shown(panels.shared(panels.UNION, False, True, s)) == ["11.511.", "1.251.2", "...5..."]


def test_what_most_panels_show() -> None:
    """Each cell as in most panels, nothing where two colours are as common."""
    s = scene("11.511.511.", "1..51.251..", "...5...5...")
    assert shown(panels.commonest("panel", s)) == ["11.", "1..", "..."]
    assert shown(panels.all_alike("panel", s)) == ["11.511.511.", "1..51..51..", "...5...5..."]
    assert panels.commonest("panel", scene("11.511.", "1..51..", "...5...")) is None, "two panels have no majority"


def test_summaries() -> None:
    """The tile that repeats, the odd thing, bars by count, and distinct lines."""
    assert shown(summaries.tile(scene("12121", "34343", "12121"))) == ["12", "34"]
    odd = scene("11..11..1.", "11..11..11")
    assert shown(summaries.odd_one("object", False, odd)) == ["1.", "11"]
    bars = scene("1..2", "1...", "1..3")
    assert shown(summaries.bars(summaries.CELLS, summaries.FALLING, summaries.RIGHTWARDS, bars)) == [
        "111",
        "2..",
        "3..",
    ]
    assert odd_one_out(odd, "object") == 2
    assert shown(summaries.unique_in_line(True, scene("12", "12", "21"))) == ["12", "21"]


def test_pieces_fit_into_hollows_and_holes() -> None:
    """A piece moves to the only place where most of its sides touch; a hole takes the object of its shape."""
    s = scene("22.22", "22222", ".....", "..3..")
    hollow = fitting.fitted("piece", (0,), scene("222222", "2.2222", "222222", "......", "...3.."))
    assert shown(hollow)[1] == "232222"
    assert shown(fitting.fitted("piece", (0,), s))[0] == "22322"
    holes = scene("22222", "2..22", "22222", ".....", "33...")
    assert shown(fitting.holes_filled((0,), True, holes)) == ["22222", "23322", "22222", ".....", "....."]


def test_objects_are_laid_over_one_another_at_the_cell_that_all_have() -> None:
    """The result is as large as all of them together."""
    assert shown(fitting.laid_over(5, scene("15....", "......", "...5..", "...33."))) == ["15.", ".33"]


def test_marks() -> None:
    """Figures in the middle, a drawing enlarged into a box, and what a colour frames."""
    assert shown(marks.in_middle("", "a cell", 4, scene("1.1", "...", "1.1"))) == ["1.1", ".4.", "1.1"]
    s = scene("12....", "......", "..3333", "..3333")
    assert shown(marks.in_boxes(False, s))[2:] == ["..1122", "..1122"]
    assert shown(marks.within(1, 4, scene("4..4", ".12.", "4..4"))) == ["12"]


def test_cleaning() -> None:
    """Thin and small things are painted over; a grid that nearly repeats is mended by its majority."""
    noisy = scene("111.", "1131", "111.", "....")
    assert shown(cleaning.without_thin(2, scene("1111", "1131", "1111"))) == ["1111", "1111", "1111"]
    assert shown(cleaning.without_small("object", 1, scene("11..", "11.2"))) == ["11..", "11.."]
    assert cleaning.without_thin(2, noisy) is not None
    one_wrong = np.tile(picture("12", "34"), (4, 4))
    one_wrong[3, 4] = 7
    assert shown(cleaning.repeating(Scene(one_wrong))) == ["12121212", "34343434"] * 4


@pytest.mark.parametrize(
    ("meeting", "rows"),
    [
        (walks.STOPS, ["2..4.", "...3."]),
        (walks.TURNS_RIGHT, ["2..4.", "...33"]),
        (walks.PASSES, ["2..4.", "...3."]),
    ],
)
def test_lines_end_turn_or_pass(meeting: int, rows: Sequence[str]) -> None:
    """A line upwards from a single cell in front of another one."""
    s = scene("2..4.", "...3.")
    made = walks.walked(3, (-1, 0), meeting, walks.OWN, s)
    assert shown(s.grid if made is None else made) == list(rows)


def test_lines_bounce_and_wind() -> None:
    """A diagonal line bounces off both sides until the top; a winding one leaves a gap of a cell."""
    s = scene("...", "...", "...", "1..")
    assert shown(walks.walked(None, (-1, 1), walks.ZIGZAG, walks.OWN, s)) == [".1.", "..1", ".1.", "1.."]
    turns = walks.walked(
        1, (0, 1), walks.LOWER_RIGHT, walks.OWN, scene("......", "1..2..", "......", "3.....", "...3..")
    )
    assert shown(turns) == ["......", "1112..", "..1...", "3.1...", "..13.."]
    spiral = walks.wound(True, 3, scene(*["....."] * 5))
    assert shown(spiral) == ["33333", "....3", "333.3", "3...3", "33333"]
    assert shown(walks.joined(True, True, scene(".2.", "1.1", ".2."))) == [".2.", "111", ".2."]
    assert shown(walks.joined(False, True, scene(".2.", "1.1", ".2."))) == [".2.", "121", ".2."]


def test_paths_go_round_what_is_in_the_way() -> None:
    """The way of the fewest turns or the fewest steps over empty cells; nothing where there is no way."""
    s = scene("1.....", "..555.", "......", "....1.")
    turns, steps_ = paths.joined(True, paths.OWN, s), paths.joined_in(False, 3, s)
    assert shown(turns) == ["1.....", "1.555.", "1.....", "11111."]
    assert steps_ is not None
    assert (steps_ == 3).sum() == 6
    assert paths.joined(True, paths.OWN, scene("151", "555")) is None


def test_parts_are_drawn_in_by_themselves() -> None:
    """Each panel and each object's box is a grid of its own; other things in the box stay."""
    s = scene("12.5...", "...52..")
    assert shown(inside.in_parts("panel", lambda p: p.grid[:, ::-1], s)) == [".215...", "...5..2"]
    assert shown(inside.cut("no words", lambda p: p.grid, inside.largest_object, scene("1..", "..2", "..2"))) == [
        "2",
        "2",
    ]
    assert shown(inside.changed_part("more", lambda p: np.where(p.grid == 1, 3, p.grid).astype(np.uint8), s)) == ["3"]


def _found(inputs: list[Grid], outputs: list[Grid]) -> list[Any]:
    found = None
    for found in search(inputs, outputs, 0, Work(lambda: False, 20)):  # noqa: B007 - the last one is what counts
        pass
    assert found is not None
    return found.programs


def test_the_search_says_a_drawing() -> None:
    """A task of stamps is answered by the words of the drawing, and they lead to its function."""
    stamp = ["1.2", ".3.", "..."]

    def grid(row: int, column: int, whole: bool) -> Grid:
        g = np.zeros((9, 9), dtype=np.uint8)
        part = picture(*stamp)
        g[:3, :3] = part
        g[row : row + 3, column : column + 3] = part if whole else np.where(part == 3, 0, part)
        return g

    places = [(4, 1), (5, 5), (3, 4), (6, 2)]
    inputs = [grid(*p, False) for p in places]
    outputs = [grid(*p, True) for p in places]
    right = [p for p in _found(inputs, outputs[:3]) if p.grids[0] is not None and (p.grids[0] == outputs[3]).all()]
    assert any("the drawing of most colours completed" in p.why for p in right)


def test_the_shape_of_a_thing_is_the_same_in_all_grids() -> None:
    """Things of one shape in another pose are named for one another; equal shapes of two grids have one number."""
    s = scene("11....", ".1..2.", "...22.")
    assert s.measure("piece", "shape in any pose").tolist()[0] == s.measure("piece", "shape in any pose").tolist()[1]
    assert len(set(s.measure("piece", "shape").tolist())) == 2
    other = scene("....", ".33.", "..3.")
    assert other.measure("piece", "shape")[0] == s.measure("piece", "shape")[0]
    relations = Relations(s, "piece")
    assert [colour_of_other("like-posed", relations, i) for i in (0, 1)] == [2, 1]
    nested = Relations(scene("111", "121", "111"), "piece")
    assert [colour_of_other("inside", nested, 0), colour_of_other("around", nested, 1)] == [2, 1]


def test_as_many_cells_as_things() -> None:
    """A count that no training pair shows is answered by the order in which cells are filled."""

    def grid(n: int) -> Grid:
        g = np.zeros((5, 9), dtype=np.uint8)
        g[2, : 2 * n : 2] = 4
        return g

    def filled(n: int) -> Grid:
        g = np.zeros((2, 3), dtype=np.uint8)
        g.ravel()[:n] = 1
        return g

    made = programs_by_count([grid(n) for n in (1, 3, 2, 4)], [filled(n) for n in (1, 3, 2)], Scenes())
    assert any((p.grids[0] == filled(4)).all() and "row by row" in p.why for p in made if p.grids[0] is not None)


@settings(max_examples=12, deadline=None)
@given(GRIDS)
def test_every_drawing_is_a_grid_of_its_own_or_nothing(grid: Grid) -> None:
    """None changes the grid that it is drawn on, and all draw colours 0 to 9."""
    before = grid.copy()
    s = Scene(grid)
    for drawing in drawings(DRAWINGS, [s], [grid]):
        made = drawing.draw(s)
        assert made is None or (made.ndim == 2 and made.size and made.max() <= 9), drawing.words
        assert (s.grid == before).all(), drawing.words


def test_only_drawings_that_help_every_pair_are_kept() -> None:
    """One that is right nowhere is left out, and the cheapest of equal ones is kept."""
    inputs = [picture("1...", "...."), picture("2...", "...."), picture("3...", "....")]
    outputs = [picture("1111", "...."), picture("2222", "....")]
    made = drawn(inputs, outputs, Scenes())
    assert made
    assert all(m.grids[2].shape == (2, 4) for m in made)
    assert any(shown(m.grids[2]) == ["3333", "...."] for m in made)
    assert len({m.key for m in made}) == len(made)


def test_the_words_of_every_drawing_lead_to_its_function() -> None:
    """`ttt explain` finds the file of each line of the tables."""
    said = {line.words.format(next(iter(line.args)), colour=3): line.draw.__module__ for line in DRAWINGS}
    places = {step.words: step.places for step in steps("; ".join(said))}
    for words, module in said.items():
        assert any(f"_grid/drawing/{module.rpartition('.')[2]}.py" in place for place in places.get(words, ())), words
