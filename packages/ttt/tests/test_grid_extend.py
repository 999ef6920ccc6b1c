"""Someone new adds a transformation, a feature and a property, and the search uses them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from ttt._grid import features, solve, transforms
from ttt._grid.features import FEATURES, Feature
from ttt._grid.scene import Scene
from ttt._grid.things import PROPERTIES, Thing
from ttt._grid.transforms import TRANSFORMS, Transform


@pytest.fixture(autouse=True)
def registries() -> Iterator[None]:
    """What a test registers is gone afterwards."""
    before = dict(TRANSFORMS), dict(FEATURES), dict(PROPERTIES)
    yield
    for registry, old in zip((TRANSFORMS, FEATURES, PROPERTIES), before, strict=True):
        registry.clear()
        registry.update(old)


def best(train: list[tuple[np.ndarray, np.ndarray]], test: np.ndarray) -> tuple[list[list[int]], str]:
    """The search's first answer and its reason."""
    last = list(solve(train, [test], seed=0, stop=lambda: False, steps=60, stages=("search",)))[-1]
    return last.answers[0][0].grid.tolist(), last.answers[0][0].why


def grids(n: int) -> list[np.ndarray]:
    """Random grids without structure."""
    rng = np.random.default_rng(2)
    return [rng.integers(1, 9, (5, 5)).astype(np.uint8) for _ in range(n)]


def test_a_new_transformation_is_used() -> None:
    """A registered function is tried on the next task, under its name."""

    def sheared(s: Scene) -> np.ndarray:
        return np.stack([np.roll(row, i * i) for i, row in enumerate(s.grid)])

    transforms.register({"sheared": Transform(sheared, keeps_size=True)})

    def rule(g: np.ndarray) -> np.ndarray:
        return np.stack([np.roll(row, i * i) for i, row in enumerate(g)])

    made = grids(4)
    answer, why = best([(g, rule(g)) for g in made[:3]], made[3])
    assert answer == rule(made[3]).tolist()
    assert why == "sheared"


def test_a_new_feature_is_used() -> None:
    """A registered measurement can be looked up by the next task's rules."""

    def knight(s: Scene) -> np.ndarray:
        r, c = np.indices(s.grid.shape)
        return (2 * r + c) % 5

    features.register({"knight's move parity": Feature(knight)})

    def rule(g: np.ndarray) -> np.ndarray:
        r, c = np.indices(g.shape)
        return ((2 * r + c) % 5 + 2).astype(np.uint8)

    rng = np.random.default_rng(0)
    made = [rng.integers(1, 9, shape).astype(np.uint8) for shape in [(5, 7), (6, 6), (9, 4), (11, 8)]]
    answer, why = best([(g, rule(g)) for g in made[:3]], made[3])
    assert answer == rule(made[3]).tolist()
    assert "knight's move parity" in why


def test_a_new_property_selects_things() -> None:
    """Scenes measure a property that was added to the table."""

    def colour_sum(t: Thing) -> int:
        return int(t.patch[t.mask].astype(int).sum())

    PROPERTIES["sum of its colours"] = colour_sum

    scene = Scene(np.array([[1, 1, 0, 5], [0, 0, 0, 5]], dtype=np.uint8))
    assert scene.measure("piece", "sum of its colours").tolist() == [2, 10]


def test_the_page_about_the_solver_shows_code_that_runs(capsys: pytest.CaptureFixture[str]) -> None:
    """The page's example prints what the page says, and its new transformation makes a grid."""
    page = Path(__file__).parent.parent / "docs" / "solver.md"
    if not page.exists():
        pytest.skip("the documentation is not beside these tests")
    example, addition = re.findall(r"``python\n(.*?)``", page.read_text(), re.DOTALL)
    names: dict[str, object] = {}
    exec(example, names)
    assert capsys.readouterr().out.strip() == example.strip().rpartition("# ")[2]
    exec(addition, names)
    made = TRANSFORMS["sheared"].make(Scene(np.array([[1, 2], [1, 2]], dtype=np.uint8)))
    assert made is not None
    assert made.tolist() == [[1, 2], [2, 1]]
