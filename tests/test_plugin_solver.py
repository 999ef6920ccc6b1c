"""A solver runs in an isolated extension with its own dependencies, and its candidates join the vote."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from plugin_solver import WithPlugin

import isolate
import ttt


def life(grid: np.ndarray) -> np.ndarray:
    """Return the next generation of Life, computed by shifts of a padded grid."""
    padded = np.pad(grid > 0, 1).astype(int)
    height, width = grid.shape
    shifts = [(i, j) for i in range(3) for j in range(3) if (i, j) != (1, 1)]
    around = sum(padded[i : i + height, j : j + width] for i, j in shifts)
    return np.where((around == 3) | ((around == 2) & (grid > 0)), int(grid.max()), 0)


@pytest.fixture
def tasks(tmp_path: Path) -> ttt.TaskSet:
    """One task whose rule is Life, and one that the search solves."""
    rng = np.random.default_rng(4)
    grids = [(rng.random((9, 11)) < 0.4) * 3 for _ in range(5)]
    rules = {"life": life, "turn": lambda grid: np.rot90(grid, 2)}
    for name, rule in rules.items():
        pairs = [{"input": grid.tolist(), "output": rule(grid).tolist()} for grid in grids]
        (tmp_path / f"{name}.json").write_text(json.dumps({"train": pairs[:4], "test": pairs[4:]}))
    return ttt.load(tmp_path)


@pytest.mark.timeout(300)
def test_a_plugins_candidates_join_the_vote(tasks: ttt.TaskSet, extension, environments: Path) -> None:
    """The plugin's task is solved only with the plugin; the answers of the other task do not change."""
    plugin = extension("life")
    with isolate.Host(environments) as host:
        libraries = host.load(plugin).call.libraries()
    assert libraries["numpy"] != np.__version__
    assert not libraries["torch"]

    def solve(backend: ttt.Backend) -> ttt.Run:
        run = ttt.run(tasks, backend=backend, budget="20 steps", workers=2)
        for _ in run:
            pass
        return run

    alone = solve(ttt.named_backend("grid", stages=("search",)))
    together = solve(WithPlugin(str(plugin), str(environments)))
    assert "life" not in alone.score().solved
    assert set(together.score().solved) == {"life", "turn"}
    assert together.results["life"].predictions[0].first.why == "a step of Life"
    first, second = (run.results["turn"].predictions[0].first for run in (alone, together))
    assert first.why == second.why
    assert np.array_equal(first.grid, second.grid)
