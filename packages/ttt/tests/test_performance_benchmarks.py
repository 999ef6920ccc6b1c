"""Limits that the library promises to hold a run to: memory, time, and what happens when they are broken."""

from __future__ import annotations

import gc
import os
import time

import pytest
from ttt_test_backends import ColourTable, Misbehaving

import ttt
from ttt._budget import resident_bytes


def finish(run: ttt.Run) -> dict[str, ttt.TaskResult]:
    """Make a run go to its end."""
    for _ in run:
        pass
    return run.results


class TestMemoryConstraints:
    """Each task within its memory, the run within the limit of 10 GB."""

    @pytest.mark.slow
    @pytest.mark.timeout(300)
    def test_all_stages_stay_small(self, real_tasks: ttt.TaskSet, benchmark_config: dict[str, float]) -> None:
        """A task of large grids through search, trees and net: below 600 MB, or 700 where PyTorch is a CUDA build."""
        import torch

        result = finish(ttt.run([real_tasks["50846271"]], budget="320 steps"))["50846271"]
        assert result.error is None
        assert {"trees", "net"} & {a.stage for p in result.predictions for a in (p.first, p.second)}
        limit = 600e6 if torch.version.cuda is None else 700e6
        assert result.peak_memory < limit < benchmark_config["memory_limit"]

    def test_many_tasks_leave_the_parent_as_it_was(self, sample_arc_tasks: list[ttt.Task]) -> None:
        """After twenty tasks this process holds no more than a little above what it held after two."""
        finish(ttt.run(sample_arc_tasks[:2], backend=ColourTable(), budget=100))
        gc.collect()
        before = resident_bytes()
        many = [ttt.Task(f"{t.id}-{i}", t.train, t.test) for t in sample_arc_tasks for i in range(4)]
        finish(ttt.run(many, backend=ColourTable(), budget=100, workers=2))
        gc.collect()
        assert resident_bytes() - before < 20e6


class TestTrainingTimeConstraints:
    """Each task within its time, the run within the limit of two hours."""

    def test_a_budget_bounds_the_whole_run(
        self, sample_arc_tasks: list[ttt.Task], benchmark_config: dict[str, float]
    ) -> None:
        """Backends that never stop cannot hold a run longer than tasks times budget and grace."""
        budget = ttt.Budget(seconds=benchmark_config["quick_seconds"], grace=0.5)
        begun = time.monotonic()
        results = finish(
            ttt.run(sample_arc_tasks[:2], backend=Misbehaving("ignores the clock"), budget=budget, workers=2)
        )
        assert {r.status for r in results.values()} == {"failed"}
        # Room for a machine that is busy: what is tested is that the limit ends the task, not how fast it is.
        assert time.monotonic() - begun < 200 < benchmark_config["training_seconds"]

    @pytest.mark.slow
    @pytest.mark.timeout(300)
    def test_a_budget_in_seconds_is_kept_on_large_grids(self, real_tasks: ttt.TaskSet) -> None:
        """All stages on a task of 30 x 30 grids with 20 s: the time is used, two attempts, and back within 22 s.

        Another program can hold the worker up for two seconds: one of three rounds must be in time.
        """
        seconds: list[float] = []
        while not any(10 <= taken <= 22 for taken in seconds):
            assert len(seconds) < 3, seconds
            result = finish(ttt.run([real_tasks["264363fd"]], budget="20s"))["264363fd"]
            assert result.error is None
            assert result.reason in ("time", None)  # the net plans its last vote for the end: either may come first
            assert len(result.predictions) == 1
            seconds.append(result.seconds)


class TestFailureScenarios:
    """What breaks does not take the rest along."""

    def test_every_failure_at_once(self, sample_arc_tasks: list[ttt.Task]) -> None:
        """Two workers, tasks that exit or hold too much memory: every task has an outcome and two attempts."""
        for how in ("exits", "allocates"):
            budget = ttt.Budget(seconds=20, memory=300_000_000)
            results = finish(ttt.run(sample_arc_tasks[:3], backend=Misbehaving(how), budget=budget, workers=2))
            assert {r.status for r in results.values()} == {"failed"}
            assert all(r.answered for r in results.values())


class TestGpuCompatibility:
    """CUDA where there is some, the CPU where there is none."""

    def test_auto_falls_back_to_the_cpu(self) -> None:
        """`auto` is a device that exists."""
        torch = pytest.importorskip("torch")
        from ttt.backends._model_service import choose_device

        assert choose_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")

    @pytest.mark.cuda
    def test_vit_fits_in_sixteen_gigabytes(self, real_tasks: ttt.TaskSet, benchmark_config: dict[str, float]) -> None:
        """A canvas transformer of 18 M parameters trains within the limit of the GPU memory."""
        torch = pytest.importorskip("torch")
        if not torch.cuda.is_available():
            if os.environ.get("REQUIRE_CUDA") == "1":
                pytest.fail("REQUIRE_CUDA=1 and PyTorch finds no CUDA device")
            pytest.skip("PyTorch finds no CUDA device")
        from ttt.backends.vit import VitBackend, VitTraining

        shape = {"side": 32, "patch": 2, "width": 384, "heads": 6, "depth": 10}
        training = VitTraining(VitBackend(shape=shape, device="cuda", batch=64), real_tasks[0], 0)
        for _ in range(5):
            training.one_step(0.0)
        assert torch.cuda.max_memory_allocated() < benchmark_config["gpu_memory_limit"]
