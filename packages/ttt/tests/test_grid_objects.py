"""Rules that build the output thing by thing: actions as pictures, and tasks that need them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from test_grid_search import picture

from ttt._grid.compose import core
from ttt._grid.derived import DerivedInput
from ttt._grid.objects.actions import ERASED, actions
from ttt._grid.objects.outcomes import Outcomes, on_grid
from ttt._grid.objects.relations import Relations
from ttt._grid.objects.rules import CUTS, object_programs
from ttt._grid.objects.tries import Table
from ttt._grid.scene import Scene, Scenes, scenes_of
from ttt._grid.search import search, votes
from ttt._grid.things import RELATED
from ttt._grid.work import Work

PICTURES = [
    ("is erased", "11. ..2", "... ..2"),
    ("takes colour 7", "1...", "7..."),
    ("takes the colour of the nearest other", "1.2", "2.2"),
    ("takes the colour of the next one right", "1.2", "2.2"),
    ("takes colour 7 in its lower half", "1. 1. 1.", "1. 1. 7."),
    ("takes colour 7 in its corners", "111....... 111....... 111.......", "717....... 111....... 717......."),
    ("is copied by 1 rows and 2 columns", "1... ....", "1... ..1."),
    ("slides right", "1..2", "1.12"),
    ("slides towards the nearest other", "1..2", "1.12"),
    ("repeats right", "1....", "11111"),
    ("repeats with gaps right", "1....", "1.1.1"),
    ("extends right in its colour", "1.2..", "11211"),
    ("extends right in colour 7, stopping before anything in the way", "1.2..", "172.."),
    ("extends right in colour 7, only where it meets something", "1.2.. 1....", "172.. 1...."),
    ("extends right in colour 7, only its last cell", "1...", "1..7"),
    ("extends right in colour 7, alternating with its own colour", "1....", "17171"),
    ("extends away from the nearest other in its colour", "..1.2", "111.2"),
    ("extends towards its heavier side in its colour", "..1.. ..111 ..1..", "111.. 11111 111.."),
    ("extends right in colour 7, from its middle", "1.. 1.. 1..", "1.. 177 1.."),
    ("is connected to the nearest other in colour 7", "1..2", "1772"),
    ("fills its inside with colour 7", "111..... 1.1..... 111.....", "111..... 171..... 111....."),
    ("fills its box with colour 7", "1... 11..", "17.. 11.."),
    ("fills a frame around it with colour 7", "... .1. ...", "777 717 777"),
    ("fills the cross through its middle with colour 7", "... .1. ...", ".7. 717 .7."),
    ("is mirrored left-right", "12...", "21..."),
    ("is reflected right", "12..", "1221"),
    ("moves up to the nearest other, past what is in the way", "1...2", "1..12"),
    ("moves up to the biggest other of its colour, past what is in the way", "1.3..1 .....1", "1.3.11 .....1"),
    ("moves into the rows of the biggest other", "1... ..22", "1... 1.22"),
    ("is reflected left-right across the nearest other", "1.22..", "1.22.1"),
    ("gets a copy of the biggest other at its middle", ".1........ ...222....", "222....... ...222...."),
    ("gets a copy of the biggest other at its corner, in its colour", "1.. ... .22", "11. ... .22"),
    ("gets a copy of the one that contains its colour around it, as it is", "1..... ...12.", "12.... ...12."),
    ("continues a row of copies of the nearest other through itself, in its colour", "...1..22", "11.11.22"),
]


@pytest.mark.skipif(core.library() is None, reason="the core was built without a compiler")
@given(
    grid=arrays(np.uint8, array_shapes(min_dims=2, max_dims=2, max_side=9), elements=st.sampled_from([0, 0, 0, 1, 2])),
    data=st.data(),
)
@settings(max_examples=15, deadline=None)
def test_the_compiled_core_tries_every_action_alike(grid: np.ndarray, data: st.DataObject) -> None:
    """What each action of each thing explains of a pair is the same in the core and in numpy; so are the vectors."""
    scene = Scene(grid)
    every = [ERASED, *actions([scene], range(4), [(1, 2), (0, -1)])]
    kind = data.draw(st.sampled_from(CUTS))
    relations = Relations(scene, kind)
    output = grid.copy()
    for n in data.draw(st.lists(st.integers(0, len(every) - 1), min_size=1, max_size=3)):
        for i in range(len(relations.things)):
            made = on_grid(every[n].draw(relations, i), grid.shape)
            if made is not None:
                output[made[0], made[1]] = made[2]
    pair = Outcomes(scene, output, kind)
    table = Table(every)
    ours, twin = pair.tried(table, every), pair.tried(table, every, compiled=False)
    assert np.array_equal(ours.able, twin.able)
    assert set(zip(ours.action, ours.thing, ours.cell, strict=True)) == set(
        zip(twin.action, twin.thing, twin.cell, strict=True)
    )
    assert pair.vectors() == pair.vectors(compiled=False)


@pytest.mark.parametrize(("name", "before", "after"), PICTURES)
def test_action_paints_the_picture(name: str, before: str, after: str) -> None:
    """The first thing of a grid does what the action's name says."""
    assert before != after
    scene = Scene(picture(before))
    cast = {a.name: a for a in (ERASED, *actions([scene], [7], [(1, 2)]))}
    made = on_grid(cast[name].draw(Relations(scene, "object" if "12" in before else "piece"), 0), scene.grid.shape)
    grid = scene.grid.copy()
    if made is not None:
        grid[made[0], made[1]] = made[2]
    assert picture(after).tolist() == grid.tolist()


def test_actions_are_safe_on_odd_grids() -> None:
    """No action fails, and strokes have equally many rows, columns and colours."""
    rng = np.random.default_rng(0)
    for shape in [(1, 1), (1, 9), (7, 1), (8, 8), (5, 12)]:
        grid = np.where(rng.random(shape) < 0.3, rng.integers(1, 5, shape), 0).astype(np.uint8)
        scene = Scene(grid)
        cast = list(actions([scene], [3], [(0, 1)]))
        assert len({a.name for a in cast}) == len(cast)
        for kind in ("object", "piece", "joined"):
            relations = Relations(scene, kind)
            for action in cast:
                for i in range(len(relations.things)):
                    made = action.draw(relations, i)
                    assert made is None or len({len(part) for part in made}) == 1, action.name


@pytest.mark.parametrize(
    ("kind", "wanted"),
    [
        ("object", [(3, 3)]),
        ("solid", [(2, 2), (1, 1)]),
        ("panel", [(3, 3), (3, 3)]),
        ("region", [(3, 7)]),
        ("enclosed", []),
        ("colour", [(1, 1), (1, 1), (1, 2), (1, 1)]),
    ],
)
def test_ways_to_cut_a_grid(kind: str, wanted: list[tuple[int, int]]) -> None:
    """Objects that touch at a corner are one, unless they must be joined by sides; panels are things too."""
    grid = picture("12....... 33....... ..4......")
    grid = grid[:, :6] if kind == "panel" else grid
    assert [t.mask.shape for t in Scene(grid).things(kind)][: len(wanted)] == wanted


def test_regions_of_the_background() -> None:
    """All of them, and those that do not touch the border; a picture without any has no enclosed one."""
    scene = Scene(picture("111.22222 1.1.2...2 111.22222"))
    assert [(t.left, t.mask.shape) for t in scene.things("region")] == [(3, (3, 1)), (1, (1, 1)), (5, (1, 3))]
    assert scene.measure("enclosed", "number of cells").tolist() == [1, 3]
    assert scene.labels("enclosed").tolist() == [[0] * 9, [0, 1, 0, 0, 0, 2, 2, 2, 0], [0] * 9]
    assert Scene(picture("1.. ... ...")).things("enclosed") == []


def test_the_background_of_a_grid_that_is_nearly_full() -> None:
    """It is 0, as that of the other grids, if all show 0; alone, or where most say otherwise, the grid decides."""
    bare, full = picture("1.. ... ..."), picture("333 333 3.3")
    assert [s.background for s in scenes_of([bare, bare, full])] == [0, 0, 0]
    assert [s.background for s in scenes_of([bare, full, full])] == [0, 3, 3]
    assert [s.background for s in scenes_of([bare, np.full_like(full, 3)])] == [0, 3]
    shared = Scenes()
    assert [s.background for s in (*shared.of([bare, full]), *shared.of([full]))] == [0, 0, 3]


def test_colours_that_not_every_pair_has() -> None:
    """Enclosed regions are painted by their size; each pair shows other sizes."""
    grids = [picture(p) for p in ("111.... 1.1.... 111....", "....... .1111.. .1..1.. .1111..")]
    outputs = [picture(p) for p in ("111.... 161.... 111....", "....... .1111.. .1771.. .1111..")]
    both, wanted = picture("111..... 1.11111. 1111..1. ...1111."), picture("111..... 1611111. 1111771. ...1111.")
    programs = object_programs(DerivedInput("as it is", 0.0, (*grids, both)), outputs)
    right = [p for p in programs if p.grids[0] is not None and np.array_equal(p.grids[0], wanted)]
    assert any("enclosed background region" in p.why and "number of cells" in p.why for p in right)


@given(arrays(np.uint8, array_shapes(min_dims=2, max_dims=2, max_side=8), elements=st.sampled_from([0, 0, 1, 2])))
@settings(max_examples=30, deadline=None)
def test_numbers_that_rest_on_other_things(grid: np.ndarray) -> None:
    """Counted thing by thing."""
    scene = Scene(grid)
    things, labels = scene.things("piece"), scene.labels("piece")
    spans = [(set(range(t.top, t.top + t.height)), set(range(t.left, t.left + t.width))) for t in things]
    measured = {name: scene.measure("piece", name).tolist() for name in RELATED}
    for i, (t, (rows, columns)) in enumerate(zip(things, spans, strict=True)):
        others = [k for k in range(len(things)) if k != i]
        held = [k for k in others if spans[k][0] <= rows and spans[k][1] <= columns and spans[k] != spans[i]]
        holders = [k for k in others if spans[k][0] >= rows and spans[k][1] >= columns and spans[k] != spans[i]]
        wide = np.pad(labels, 1)
        near = {int(wide[r + y, c + x]) for r, c in np.argwhere(labels == i + 1) for y in range(3) for x in range(3)}
        larger = [k for k in others if things[k].colour == t.colour and things[k].mask.sum() > t.mask.sum()]
        assert [measured[name][i] for name in RELATED] == [
            len(held),
            len(holders),
            len(near - {0, i + 1}),
            sum(bool(spans[k][0] & rows) for k in others),
            sum(bool(spans[k][1] & columns) for k in others),
            len(larger),
            {0: 1, len(things) - 1: 3}.get(i, 2 if 2 * i + 1 == len(things) else 0) if len(things) > 1 else 3,
        ]


def test_a_template_that_touches_what_it_replaces() -> None:
    """Objects joined by sides: pieces of one colour become the template, which lies across a corner from one."""
    first = picture("12.... 12.... ..33.. ..33.. ......"), picture("...... ...... ..12.. ..12.. ......")
    test = picture("33.... 33.... ...... ..12.. ..12..")
    base = DerivedInput("as it is", 0.0, (first[0], test))
    programs = object_programs(base, [first[1]])
    assert any("joined by sides" in p.why and "gets a copy" in p.why for p in programs)


@pytest.mark.parametrize("seed", range(3))
def test_things_that_have_two_properties(seed: int) -> None:
    """Only what is wide and of colour 1 changes: neither property alone says so."""
    rng = np.random.default_rng(seed)
    grids, outputs = [], []
    for _ in range(7):
        grid, output = np.zeros((10, 12), dtype=np.uint8), np.zeros((10, 12), dtype=np.uint8)
        rows = rng.permutation(5)
        for row, (colour, width) in zip(rows, [(1, 3), (1, 1), (2, 3), (2, 1), (1, 1)], strict=True):
            at = int(rng.integers(0, 9))
            grid[2 * row, at : at + width] = colour
            output[2 * row, at : at + width] = 5 if (colour, width) == (1, 3) else colour
        grids.append(grid)
        outputs.append(output)
    programs = object_programs(DerivedInput("as it is", 0.0, tuple(grids)), outputs[:6])
    both = [p for p in programs if p.kind == "things by two properties"]
    assert any(p.grids[0] is not None and np.array_equal(p.grids[0], outputs[6]) for p in both)
    assert len(programs) == len(both), "one property was enough"


def dots(seed: int, colours: tuple[int, ...], n: int = 5) -> list[np.ndarray]:
    """Grids with single cells, no two in neighbouring rows or columns."""
    rng = np.random.default_rng(seed)
    grids = []
    for _ in range(n):
        g = np.zeros((13, 13), dtype=np.uint8)
        rows, columns = rng.permutation([1, 4, 7, 10]), rng.permutation([2, 5, 8, 11])
        for i, c in enumerate(colours):
            g[rows[i], columns[i]] = c
        grids.append(g)
    return grids


def reaching(g: np.ndarray) -> np.ndarray:
    """Ones draw dotted lines to the right, twos vanish, threes are drawn again two rows below."""
    out = g.copy()
    for r, c in np.argwhere(g == 1):
        out[r, c + 1 :: 2], out[r, c + 2 :: 2] = 6, 1
    out[g == 2] = 0
    for r, c in np.argwhere(g == 3):
        out[r + 2, c] = 3
    return out


def flowers(g: np.ndarray) -> np.ndarray:
    """Every cell gets petals in its colour and a stalk."""
    out = g.copy()
    for r, c in np.argwhere(g > 0):
        out[r, c - 1], out[r, c + 1], out[r + 1, c] = g[r, c], g[r, c], 9
    return out


@pytest.mark.parametrize(("rule", "colours"), [(reaching, (1, 2, 3)), (flowers, (1, 2, 3, 4))])
def test_search_finds_what_things_do(rule, colours: tuple[int, ...]) -> None:
    """Rules that no table over cells expresses are found by looking at things, and said in words."""
    inputs = dots(2, colours)
    outputs = [rule(g) for g in inputs]
    programs = object_programs(DerivedInput("as it is", 0.0, tuple(inputs)), outputs[:-1])
    best = votes(programs, 1)[0][0]
    assert outputs[-1].tolist() == best[2].tolist()
    assert best[1].why.startswith("each ")
    *_, found = search(inputs, outputs[:-1], 0, Work(lambda: False))
    assert outputs[-1].tolist() in [g.tolist() for _, _, g in votes(found.programs, 1)[0][:2]]


def test_unseen_property_is_not_guessed() -> None:
    """A test with a thing of a colour that no training pair has gets no answer by colour."""
    inputs = [*dots(2, (1, 2, 3)), *dots(3, (1, 2, 5), n=1)]
    outputs = [reaching(g) for g in inputs[:4]]
    for program in object_programs(DerivedInput("as it is", 0.0, tuple(inputs)), outputs):
        if "by its colour, " in program.why:
            assert program.grids[-1] is None


def test_object_programs_are_right_on_training_pairs_and_repeatable() -> None:
    """With a training pair as the test each program gives that pair's output; twice the same programs come out."""
    inputs = dots(4, (1, 2, 3))
    outputs = [reaching(g) for g in inputs]
    runs = [object_programs(DerivedInput("as it is", 0.0, (*inputs, inputs[0])), outputs) for _ in range(2)]
    assert runs[0]
    assert [(p.why, p.cost) for p in runs[0]] == [(p.why, p.cost) for p in runs[1]]
    for program in runs[0]:
        assert program.grids[0] is not None
        assert outputs[0].tolist() == program.grids[0].tolist(), program.why
