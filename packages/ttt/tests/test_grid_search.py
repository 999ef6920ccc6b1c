"""The exact search: transformations as pictures, features, rules, and the programs it says it found."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from ttt._grid import solve
from ttt._grid.derived import apply
from ttt._grid.features import FEATURES
from ttt._grid.geometry import DIAGONALS, STEPS, framed, turned
from ttt._grid.scene import Scene, seen
from ttt._grid.search import search, votes
from ttt._grid.things import PROPERTIES
from ttt._grid.transforms import TRANSFORMS, Transform, register
from ttt._grid.transforms.repair import mended_by_tiling
from ttt._grid.work import Work


def picture(text: str) -> np.ndarray:
    """A grid from rows of digits; '.' is 0."""
    rows = text.replace(".", "0").split()
    return np.array([[int(c) for c in row] for row in rows], dtype=np.uint8)


PICTURES = [
    ("turned left", "12 34", "24 13"),
    ("mirrored left-right", "12 34", "21 43"),
    ("transposed", "12 34", "13 24"),
    ("cropped to what is drawn", "... .2. .33", "2. 33"),
    ("cropped to colour 3", "1.. .33 .3.", "33 3."),
    ("cropped to the inside of colour 2", "2222 2.12 2222", ".1"),
    ("without its outermost cells", "111 121 111", "2"),
    ("cropped to the object with the most cells", "1.22 ..22", "22 22"),
    ("cropped to the one-colour piece of unique colour", "1.1 ... 1.2", "2"),
    ("panel 2", "1.5.2 .152.", ".2 2."),
    ("panels laid over one another, first on top", "1.5.2 ..52.", "12 2."),
    ("in how many panels each cell is drawn", "1.52. .15.2 1.5.2", "2. .2 11"),
    ("panels without separators", "1.5.2 .152.", "1..2 .12."),
    ("one cell per panel: its most frequent drawn colour", "1.5.2 .152.", "12"),
    ("scaled up 2 times", "12", "1122 1122"),
    ("scaled down 2 times", "1122 1122", "12"),
    ("scaled down as far as possible", "111222 111222 111222", "12"),
    ("each drawn cell replaced by the whole grid", "1. .1", "1... .1.. ..1. ...1"),
    ("tiled 1 x 2", "12", "1212"),
    ("with its left-right mirror image to the right", "12", "1221"),
    ("mosaic of its four turns", "12 34", "1231 3442 2443 1321"),
    ("without repeated rows and columns", "112 112", "12"),
    ("without empty rows and columns", "1.2 ... 3.4", "12 34"),
    ("the top half", "1 2 3", "1 2"),
    ("vertical third 2", "123", "2"),
    ("its colours, most frequent first, as a column", "11 .2", "1 2"),
    ("bars of its colour counts, across", "11.. ..2.", "11 2."),
    ("with a border of background around it", "1.", ".... .1.. ...."),
    ("cells fallen down", "12 .. 3.", ".. 1. 32"),
    ("objects fallen right", "11.. 1..2", "..11 ..12"),
    ("moved right by 1", "12.", ".12"),
    ("lines drawn right", ".1. ...", ".11 ..."),
    ("lines drawn along both diagonals", "... .1. ...", "1.1 .1. 1.1"),
    ("equal colours joined in rows", "1..1 1..2", "1111 1..2"),
    ("holes filled with the colour above them", ".... 111. 1.1. 111.", ".... 111. 111. 111."),
    ("objects filled to their boxes", "1... 111.", "111. 111."),
    ("only the object with the most cells kept", "11.2", "11.."),
    ("the object with the most cells removed", "11.2", "...2"),
    ("single cells removed", "11.2", "11.."),
    ("each object mirrored left-right", "12.", "21."),
    ("pieces of colour 1 slid to colour 2", "1..2 ....", "..12 ...."),
    ("colour 5 mended by mirror symmetry", "1221 3453 4664 7..7", "1221 3443 4664 7..7"),
    ("colour 9 mended by its repeating pattern", "1212 2129 1212 2121", "1212 2121 1212 2121"),
    ("the drawing overlaid with its left-right mirror image", "12. 1.. 1.1", "121 1.1 1.1"),
    ("two colours exchanged", "12 21", "21 12"),
    ("the drawn rows repeated downwards", "1 2 1 2 . .", "1 2 1 2 1 2"),
    ("each cell the colour of the nearest drawn cell", "1..2", "1122"),
    ("objects grown by one cell to the sides", "... .1. ...", ".1. 111 .1."),
    ("bars of its colour counts, down", "221 231 111", "123 12. 12. 1.. 1.."),
    ("cropped to the object with the most cells of colour 2", "12.22 .1... 11.21", "22"),
    ("cropped to the object with the fewest cells of colour 2", "12..22 11..21", "12 11"),
    ("cropped to the largest outline of one colour", "2.1... .333.1 23.3.. .333.2", "333 3.3 333"),
    ("cropped to what lies in the largest outline of one colour", "2.1... 23333. .3123. .3333. 1....2", "12"),
    ("colour 0 mended by its repeating pattern", "12... 2.... ..... ....2", "12121 21212 12121 21212"),
]


@pytest.mark.parametrize(("name", "before", "after"), PICTURES)
def test_transform_makes_the_picture(name: str, before: str, after: str) -> None:
    """A transformation makes what its name says."""
    made = TRANSFORMS[name].make(Scene(picture(before)))
    assert made is not None
    assert picture(after).tolist() == made.tolist()


FEATURE_PICTURES = [
    ("number of drawn neighbours at its sides", "1.1.", ".2.1"),
    ("number of equal neighbours at its sides", "112", "110"),
    ("inside or outside", ".... 111. 1.1. 111.", ".... 222. 212. 222."),
    ("its one-colour piece's number of cells", "11.2", "3302"),
    ("its one-colour piece is one with the most cells", "11.2", "2201"),
    ("background region's size", "1..", "022"),
    ("ring in the box of an object", ".... 222. 222. 222. ....", ".... 111. 121. 111. ...."),
    ("first colour seen right", ".1.2", "1220"),
    ("its row's most frequent drawn colour", "..3 ...", "333 000"),
    ("chessboard parity", "000 000", "010 101"),
    ("ring from the border", "000 000 000", "000 010 000"),
    ("has the rarest drawn colour", "112", "001"),
    ("length of its run across", "1122 .111", "2222 1333"),
    ("length of its run down", "12 12 13", "32 32 31"),
    ("whether its run is longer across or down", "111 1..", "222 022"),
    ("length of its longer run", "111 1..", "333 222"),
    ("length of its shorter run", "111 1..", "211 111"),
    ("place in its run from the left", "11.222", "010012"),
    ("place in its run from the right", "11.222", "100210"),
    ("place in its run from the top", "1 1 2", "0 1 0"),
    ("place in its run from the bottom", "1 1 2", "1 0 0"),
    ("the colour at both ends of its run across", "1..1.2", ".11..."),
    ("the colour at both ends of its run down", "3 . . 3", ". 3 3 ."),
    ("the colour left of its run", "1..2", "0110"),
    ("the colour right of its run", "1..2", "0220"),
    ("the colour above its run", "1 . 2", "0 1 0"),
    ("the colour below its run", "1 . 2", "0 2 0"),
    ("side of the largest square of its colour that covers it", "11. 112 ...", "221 221 111"),
    ("the only other colour that it sees", "4.8.", "8048"),
    ("lies in the largest empty rectangle", "1... .1.. ....", "0011 0011 0011"),
    ("steps up to the first drawn cell", "1. .. ..", "00 10 20"),
    ("steps down to the first drawn cell", ".. 1.", "10 00"),
    ("steps left to the first drawn cell", "1..1.", "01231"),
    ("steps right to the first drawn cell", "..1", "210"),
    ("parity of the steps left to the first drawn cell", "1...", "0212"),
    ("steps to the nearest drawn cell", "1.... .....", "01234 11234"),
    ("steps to the nearest drawn cell, without diagonal ones", "1.... .....", "01234 12345"),
    ("steps to the nearest cell of the rarest drawn colour", "11.2", "3210"),
    ("parity of the steps to the nearest drawn cell", "1...", "0212"),
    ("colour of the nearest drawn cell", "1..2. .....", "11222 11222"),
    ("colour of the nearest drawn cell, without diagonal steps", "1.2", "102"),
    ("steps over background from the rarest drawn colour", "3.11 .111 ..1.", "0100 1000 2300"),
    ("parity of the steps over background from the rarest drawn colour", "3...11", "021200"),
    ("row from the bottom, parity", "0 0 0", "0 1 0"),
    ("column from the right, parity", "0000", "1010"),
    ("column counted from the first drawn one, modulo 3", ".1....", "012312"),
    ("row counted from the last drawn one, parity", ". . 1 .", "1 2 1 0"),
    ("how often its row has its colour", "1121", "3313"),
    ("how often its column has its colour", "1 2 1", "2 1 2"),
    ("the commonest drawn colour at its sides", ".1. 2.2", "101 020"),
    ("the commonest drawn colour around it", "1.1 ... 2..", "010 111 020"),
    ("the rarest drawn colour around it", "1.1 ... 2..", "010 121 020"),
    ("which colours its object has", "12..3", "66008"),
    ("which colours its row has", "1 .", "2 1"),
    ("how many colours touch its background region", "1..2 1112 ....", "0330 0000 3333"),
    ("the colour that touches its background region most", "1..2 1112", "0110 0000"),
    ("row of panels", "..5.. 55555 .....", "11111 00000 22222"),
    ("first, last or other column of panels", ".5.5. .5.5.", "10203 10203"),
    ("row in its panel", "..5.. ..5.. 55555 ..5..", "11011 22022 00000 11011"),
    ("column in its panel", "..5.. ..5..", "12012 12012"),
    (
        "its panel lies at which corner, or in the middle",
        "..5.5.. 5555555 ..5.5.. 5555555 ..5.5.. ..5.5..",
        "1106022 0000000 6605066 0000000 3306044 3306044",
    ),
    ("colour of its image in its object mirrored left-right", "12..", "2100"),
    ("colour of its image in its object mirrored up-down", "1. 2.", "20 10"),
    ("colour of its image in its object turned upside down", "12 3.", "03 21"),
    ("colour of its image in its object transposed", "12 3.", "13 20"),
]


@pytest.mark.parametrize(("name", "before", "after"), FEATURE_PICTURES)
def test_feature_measures_the_picture(name: str, before: str, after: str) -> None:
    """A cell feature measures what its name says."""
    measured = FEATURES[name].measure(Scene(picture(before)))
    assert measured is not None
    assert picture(after).tolist() == measured.tolist()


def test_every_transform_makes_a_legal_grid_or_nothing() -> None:
    """On odd grids, too, a transformation gives a uint8 grid that the search accepts, or None."""
    rng = np.random.default_rng(0)
    shapes = [(1, 1), (1, 7), (6, 1), (3, 3), (9, 4)]
    grids = [rng.integers(0, k, shape).astype(np.uint8) for shape, k in zip(shapes, (1, 2, 10, 3, 2), strict=True)]
    grids.append(np.zeros((4, 4), dtype=np.uint8))
    grids.append(rng.integers(0, 10, (30, 30)).astype(np.uint8))
    legal = 0
    for transform in TRANSFORMS.values():
        for grid in grids:
            before = grid.copy()
            made = apply(transform, [Scene(grid)])
            assert np.array_equal(before, grid), f"{transform.name} changed its input"
            if made is not None:
                legal += 1
                assert made[0].dtype == np.uint8
                assert made[0].max() <= 9
                assert made[0].shape == grid.shape or not transform.keeps_size, transform.name
    assert legal > len(TRANSFORMS)


def test_every_feature_gives_a_number_per_cell() -> None:
    """A cell feature has the grid's shape or does not apply."""
    rng = np.random.default_rng(1)
    for shape in [(1, 1), (2, 9), (12, 12)]:
        scene = Scene(rng.integers(0, 3, shape).astype(np.uint8))
        for f in FEATURES.values():
            measured = f.measure(scene)
            assert measured is None or measured.shape == shape, f.name


def test_names_are_unique_and_plentiful() -> None:
    """Two transformations cannot have one name, and there are more than a hundred of them."""
    assert len(TRANSFORMS) > 115
    assert len(PROPERTIES) > 15
    with pytest.raises(ValueError, match="turned left"):
        register({"turned left": Transform(lambda s: s.grid)})


def task(make, inputs: list[np.ndarray]) -> tuple[list[np.ndarray], list[np.ndarray], list[np.ndarray]]:
    """All inputs, the training outputs and the hidden outputs of a rule, the last input being the test."""
    outputs = [np.asarray(make(g), dtype=np.uint8) for g in inputs]
    return inputs, outputs[:-1], outputs[-1:]


def boxes(seed: int, n: int = 4, size: int = 10) -> list[np.ndarray]:
    """Grids with some rectangles of colours 1 to 4."""
    rng = np.random.default_rng(seed)
    grids = []
    for _ in range(n):
        g = np.zeros((size, size), dtype=np.uint8)
        for colour in range(1, 5):
            r, c = rng.integers(0, size - 4, 2)
            h, w = rng.integers(1, 5, 2)
            g[r : r + h, c : c + w] = colour
        grids.append(g)
    return grids


def grown(g: np.ndarray) -> np.ndarray:
    """Recolour: drawn cells with four drawn neighbours become 8."""
    p = np.pad(g > 0, 1).astype(int)
    inner = (p[:-2, 1:-1] + p[2:, 1:-1] + p[1:-1, :-2] + p[1:-1, 2:] == 4) & (g > 0)
    return np.where(inner, 8, g)


RULES = [
    ("a pose", lambda g: g[::-1]),
    ("a pose, then a crop", lambda g: np.rot90(g)[:5]),
    ("a colour table", lambda g: np.array([0, 3, 1, 4, 2])[g]),
    ("a rule on neighbours", grown),
    ("a choice between views", lambda g: np.where(np.arange(10)[:, None] % 2 == 0, g, 0)),
    ("a mosaic", lambda g: np.vstack([g, g[::-1]])),
]


@pytest.mark.parametrize("rule", [r[1] for r in RULES], ids=[r[0] for r in RULES])
def test_search_finds_the_rule(rule) -> None:
    """A rule made of known parts is found from three pairs and answers the test."""
    inputs, outputs, hidden = task(rule, boxes(3))
    for found in search(inputs, outputs, 0, Work(lambda: False)):
        assert found.groups
        ranked = votes(found.programs, 1)[0]
        if hidden[0].tolist() in [g.tolist() for _, _, g in ranked[:2]]:
            return
    pytest.fail("the search ended without the rule")


def test_every_program_is_right_on_the_training_pairs() -> None:
    """Programs are verified on all cells: with a training pair as the test each gives that pair's output."""
    inputs, outputs, _ = task(grown, boxes(5, size=7))
    again = [*inputs[:3], inputs[0]]
    for found in search(again, outputs, 0, Work(lambda: False)):
        for program in found.programs:
            assert program.grids[0] is not None
            assert program.grids[0].tolist() == outputs[0].tolist(), program.why


def test_answer_says_why_in_words() -> None:
    """The search's answer names its program."""
    grids = boxes(1)
    pairs = [(g, g[:, ::-1]) for g in grids[:3]]
    last = list(solve(pairs, [grids[3]], seed=0, stop=lambda: False, steps=20, stages=("search",)))[-1]
    assert last.answers[0][0].why == "mirrored left-right"
    assert last.answers[0][0].confidence > 0.8


GRIDS = arrays(np.uint8, array_shapes(min_dims=2, max_dims=2, max_side=9), elements=st.sampled_from([0, 3, 5]))


@given(GRIDS, st.sampled_from([*STEPS.values(), *DIAGONALS.values()]))
def test_what_is_seen_is_the_first_colour_on_the_way(grid: np.ndarray, step: tuple[int, int]) -> None:
    """Walking cell by cell, which the doubling of `seen` only stands for, comes to the same colours."""
    scene = Scene(grid)
    found = seen(scene, step)
    for r, c in np.ndindex(grid.shape):
        y, x = r + step[0], c + step[1]
        while 0 <= y < grid.shape[0] and 0 <= x < grid.shape[1] and grid[y, x] == scene.background:
            y, x = y + step[0], x + step[1]
        inside = 0 <= y < grid.shape[0] and 0 <= x < grid.shape[1]
        assert found[r, c] == (grid[y, x] if inside else scene.background)


@given(GRIDS, st.integers(-5, 5), st.booleans())
def test_turned_and_framed_are_those_of_numpy(grid: np.ndarray, quarters: int, fill: bool) -> None:
    """The quick forms are right for every shape."""
    assert np.array_equal(turned(grid, quarters), np.rot90(grid, quarters))
    assert np.array_equal(framed(grid > 0, fill), np.pad(grid > 0, 1, constant_values=fill))


@given(GRIDS, st.integers(2, 4), st.integers(2, 4))
def test_a_hidden_part_of_a_tiling_is_mended(tile: np.ndarray, down: int, across: int) -> None:
    """What is mended has no hidden cell left and agrees with every other one."""
    grid = np.tile(tile[:4, :4], (down, across))
    hidden = grid.copy()
    hidden[: len(grid) // 3, : grid.shape[1] // 3] = 9
    mended = mended_by_tiling(hidden, 9)
    assert mended is not None
    assert np.array_equal(mended[hidden != 9], hidden[hidden != 9])
    assert not (mended == 9).any()
