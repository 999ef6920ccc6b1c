"""Comparing and merging runs, and looking at a run's answers in the terminal."""

from __future__ import annotations

import json
import random
import struct
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import binomtest
from ttt_test_backends import ColourTable, Wanderer

import ttt
from ttt._cli.main import main
from ttt._runs.devices import VISIBLE, slots_of
from ttt._tasks.loader import task_json
from ttt._tasks.picture import differences, grid_image, png, task_image
from ttt.errors import InvalidBackendError
from ttt.results import compare


def finish(run: ttt.Run) -> ttt.Run:
    """Make a run go to its end."""
    for _ in run:
        pass
    return run


@pytest.fixture
def two_runs(sample_arc_tasks: list[ttt.Task], integration_test_dir: Path) -> tuple[Path, Path]:
    """A run that solves its tasks and one that solves none of the others."""
    folders = integration_test_dir / "a.run", integration_test_dir / "b.run"
    for folder, backend in zip(folders, (ColourTable(), Wanderer()), strict=True):
        run = finish(ttt.run(sample_arc_tasks[:3], backend=backend, budget="8 steps", folder=folder))
        run.write_submission(folder.with_suffix(".json"))
    return folders


def test_the_test_is_mcnemars(integration_test_dir: Path) -> None:
    """The p value is that of a two-sided binomial test on the tasks that changed; the interval holds the difference."""
    rng = random.Random(3)
    for _ in range(30):
        n = rng.randrange(1, 60)
        first = {str(i): rng.random() < 0.5 for i in range(n)}
        second = {str(i): rng.random() < 0.6 for i in range(n + 2)}
        found = compare(first, second)
        changed = len(found.only_a) + len(found.only_b)
        expected = binomtest(len(found.only_a), changed).pvalue if changed else 1.0
        assert found.total == n
        assert found.p_value == pytest.approx(expected)
        low, high = found.interval()
        assert low <= found.difference <= high
    # Newcombe 1998, table II, data (36, 12, 2, 0): method 10 gives 0.0569 to 0.3404 for a difference of 0.20.
    counts = [(True, True)] * 36 + [(False, True)] * 12 + [(True, False)] * 2
    published = compare({str(i): a for i, (a, _) in enumerate(counts)}, {str(i): b for i, (_, b) in enumerate(counts)})
    assert published.interval() == pytest.approx((0.0569, 0.3404), abs=1e-3)


def test_compare_shows_what_changed(
    two_runs: tuple[Path, Path], integration_test_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The figures, the ids, and one page with pictures of the changed tasks from both runs."""
    page = integration_test_dir / "page.html"
    assert main(["compare", *map(str, two_runs), "--out", str(page)]) == 0
    said = capsys.readouterr().out
    assert "only by the first" in said
    assert "exact McNemar test p = " in said
    assert "turn" in said.split("only the first: ")[1]
    text = page.read_text()
    assert text.count("<code>turn</code>") == 2
    assert 'class="miss"' in text
    assert main(["compare", *map(str, two_runs), "--json"]) == 0
    assert "turn" in json.loads(capsys.readouterr().out)["only_a"]
    assert main(["compare", str(two_runs[0]), str(integration_test_dir)]) == 2


def test_parts_are_merged_by_confidence(
    two_runs: tuple[Path, Path], sample_arc_tasks: list[ttt.Task], integration_test_dir: Path
) -> None:
    """Shards become one submission; where two parts answer the same task the surer answer comes first."""
    out = integration_test_dir / "merged.json"
    parts = [str(two_runs[1]), str(two_runs[0].with_suffix(".json"))]
    assert main(["merge", *parts, "--out", str(out)]) == 0
    assert len(ttt.score(out, sample_arc_tasks[:3]).solved) == 3
    tasks = integration_test_dir / "tasks.json"
    tasks.write_text(json.dumps({t.id: task_json(t) for t in sample_arc_tasks}))
    shards = []
    for number in (1, 2):
        shards.append(str(integration_test_dir / f"shard{number}.json"))
        solve = ["solve", str(tasks), "--steps", "8", "--backend", "ttt_test_backends:ColourTable", "--json"]
        assert main([*solve, "--shard", f"{number}/2", "--out", shards[-1]]) == 0
    assert sum(len(ttt.read_submission(s)) for s in shards) == len(sample_arc_tasks)
    assert main(["merge", *shards, "--out", str(out)]) == 0
    assert out.with_name("merged.before-1.json").exists(), "nothing is overwritten"
    assert len(ttt.score(out, sample_arc_tasks).solved) == len(sample_arc_tasks)
    short = json.loads(out.read_text())
    short["two-tests"] = short["two-tests"][:1]
    (integration_test_dir / "short.json").write_text(json.dumps(short))
    assert main(["merge", str(out), str(integration_test_dir / "short.json")]) == 2


def test_a_merged_submission_has_every_id(sample_arc_tasks: list[ttt.Task], integration_test_dir: Path) -> None:
    """Of runs that did not finish, and that refused a task, all ids are there, and what one found counts."""
    bad = ttt.Rejected("bad", 2, "has no 'train'")
    parts = []
    for name, rejected in (("a", (bad,)), ("b", ())):
        tasks = ttt.TaskSet(tuple(sample_arc_tasks[:3]), rejected)
        run = ttt.run(tasks, backend=ColourTable(), budget="8 steps", folder=integration_test_dir / f"{name}.run")
        parts.append(str(run.folder))
    for event in run:
        if isinstance(event, ttt.Finished):
            break
    out = integration_test_dir / "merged.json"
    assert main(["merge", *parts, "--out", str(out)]) == 0
    answers = ttt.read_submission(out)
    assert set(answers) == {"bad", *(t.id for t in sample_arc_tasks[:3])}
    assert len(answers["bad"]) == 2
    assert ttt.score(out, sample_arc_tasks[:3]).solved == (event.task_id,)


def test_show_puts_answers_beside_the_truth(two_runs: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    """`ttt show RUN TASK`: both attempts, right or wrong, wrong cells with a mark, the truth; --json has it all."""
    assert main(["show", str(two_runs[0]), "mirror"]) == 0
    said = capsys.readouterr().out
    assert "attempt 1, right" in said
    assert "truth" in said
    assert main(["show", str(two_runs[1]), "turn"]) == 0
    said = capsys.readouterr().out
    assert ", wrong" in said
    assert "!" in said
    assert main(["show", str(two_runs[1]), "turn", "--hide"]) == 0
    assert "truth" not in capsys.readouterr().out
    assert main(["show", str(two_runs[0]), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["mirror"]["solved"] is True
    assert main(["show", str(two_runs[0]), "none"]) == 2


def test_wrong_cells_are_crossed_out() -> None:
    """A wrong cell's square has other colours than its own; cells beyond the truth count as wrong."""
    made, truth = ttt.as_grid([[1, 2, 3], [4, 5, 6]]), ttt.as_grid([[1, 0], [4, 5]])
    wrong = differences(made, truth)
    assert wrong.tolist() == [[False, True, True], [False, False, True]]
    plain, marked = grid_image(made, 12), grid_image(made, 12, wrong)
    changed = (plain != marked).any(axis=2)
    assert not changed[:, 1:12].any()
    assert changed[1:12, 13:24].any()
    assert changed[13:24, 25:36].any()


def test_pictures_have_labels(sample_arc_tasks: list[ttt.Task]) -> None:
    """There is ink above each grid, and the file is a PNG whose rows decode."""
    image = task_image(sample_arc_tasks[0])
    assert (image[:30] == (60, 60, 60)).all(axis=2).sum() > 100
    data = png(image)
    width, height = struct.unpack(">II", data[16:24])
    assert (height, width) == image.shape[:2]
    at = data.index(b"IDAT")
    length = struct.unpack(">I", data[at - 4 : at])[0]
    rows = np.frombuffer(zlib.decompress(data[at + 4 : at + 4 + length]), np.uint8).reshape(height, 1 + 3 * width)
    assert (rows[:, 1:].reshape(image.shape) == image).all()


def test_each_slot_sees_one_gpu() -> None:
    """One task a GPU, or several: every GPU gets its first before one gets its second; too many workers are refused."""
    four = ("0", "1", "2", "3")
    assert slots_of(None, four) == [{VISIBLE: g} for g in four]
    assert slots_of(2, four) == [{VISIBLE: "0"}, {VISIBLE: "1"}]
    doubled = [s[VISIBLE] for s in slots_of(None, ("GPU-a", "GPU-b"), per_gpu=2)]
    assert doubled == ["GPU-a", "GPU-b", "GPU-a", "GPU-b"]
    assert slots_of(3, ()) == [{}, {}, {}]
    assert slots_of(None, (), default=5) == [{}] * 5
    assert slots_of(10**12, (), most=2) == [{}, {}], "no more than there are tasks"
    assert len(slots_of(None, four, per_gpu=10**12, most=5)) == 5
    with pytest.raises(InvalidBackendError, match="at most 2"):
        slots_of(3, ("0", "1"))


def test_a_task_sees_the_gpu_of_its_slot(sample_arc_tasks: list[ttt.Task], monkeypatch: pytest.MonkeyPatch) -> None:
    """Its process has `CUDA_VISIBLE_DEVICES` of its slot; at no time do two tasks have the same GPU."""
    from ttt_test_backends import SeesGpu

    monkeypatch.setenv(VISIBLE, "5,7")
    many = [replace(sample_arc_tasks[0], id=f"t{i}") for i in range(4)]
    run = ttt.run(many, backend=SeesGpu(), budget=100)
    busy: set[str] = set()
    seen: dict[str, str] = {}
    for event in run:
        if isinstance(event, ttt.Improved):
            seen[event.task_id] = event.predictions[0].first.why
            assert seen[event.task_id] not in busy
            busy.add(seen[event.task_id])
        elif isinstance(event, ttt.Finished):
            busy.discard(seen[event.task_id])
    assert sorted(set(seen.values())) == ["5", "7"]
