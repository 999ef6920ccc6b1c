"""The command line does what it says, for people and for programs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import xfer
from xfer._cli import main
from xfer._doctor.examine import examine


def test_doctor_explains_in_words(capsys: pytest.CaptureFixture[str]) -> None:
    """Each finding has a reason, and JSON says the same."""
    assert main(["doctor"]) == 0
    shown = capsys.readouterr().out
    assert "sealed memory" in shown
    assert main(["--json", "doctor"]) == 0
    findings = json.loads(capsys.readouterr().out)
    assert len(findings) == 10
    assert all(finding["detail"] for finding in findings)
    cuda = findings[-1]
    assert cuda["works"] or "[cuda12]" not in cuda["detail"] or "[cuda12]" in shown  # brackets are no markup


def test_doctor_on_a_poorer_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a kernel, a file system or an installation lacks is said with what to do, and nothing is raised."""

    def refuse(*_: object) -> int:
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(os, "memfd_create", refuse, raising=False)
    monkeypatch.setattr("xfer._shared.names.DIRECTORY", "/nowhere")
    monkeypatch.setitem(sys.modules, "ml_dtypes", None)
    found = {finding.what: finding for finding in examine()}
    assert not found["nameless sealed memory"].works
    assert "named segments" in found["nameless sealed memory"].detail
    assert not found["named segments in /nowhere"].works
    assert not found["channels"].works
    assert "mapped anew" in found["memory of large tensors used again"].detail
    assert "pentad-xfer[dtypes]" in found["bfloat16 and fp8"].detail


def test_ls_shows_who_holds_what(helper: Callable[..., Any], capsys: pytest.CaptureFixture[str]) -> None:
    """A living process's memory is listed with its real size."""
    other = helper("h = xfer.put(np.ones(1 << 20, np.uint8)); say('ready'); wait()")
    assert other.line() == "ready"
    assert main(["ls", "--json"]) == 0
    held = [one for one in json.loads(capsys.readouterr().out) if one["pid"] == other.pid]
    assert held[0]["nbytes"] >= 1 << 20
    assert main(["ls"]) == 0
    assert str(other.pid) in capsys.readouterr().out


def test_reap_removes_what_the_dead_left(
    own_directory: None, helper: Callable[..., Any], capsys: pytest.CaptureFixture[str]
) -> None:
    """Named segments of a killed process are listed as dead and removed, with their sign of life."""
    other = helper("pool = xfer.Pool(backend='named'); h = pool.put(np.ones(9)); say('ready'); wait()")
    assert other.line() == "ready"
    other.kill()
    main(["ls", "--json"])
    assert any(one["pid"] == other.pid and not one["alive"] for one in json.loads(capsys.readouterr().out))
    assert main(["reap", "--json"]) == 0
    assert sum(f"-{other.pid}-" in path for path in json.loads(capsys.readouterr().out)) == 2
    topic = xfer.Topic("reaped")
    with topic:
        topic.publish([1.0])
        assert main(["reap"]) == 0
        assert "removed 0 files" in capsys.readouterr().out
    assert main(["reap"]) == 0
    assert "removed 1 files" in capsys.readouterr().out
    assert main(["reap"]) == 0
    assert "removed 0 files" in capsys.readouterr().out


def test_bench_measures(capsys: pytest.CaptureFixture[str]) -> None:
    """A small measurement gives positive figures."""
    assert main(["bench", "--size", "4KiB", "--count", "5", "--json"]) == 0
    assert all(value > 0 for value in json.loads(capsys.readouterr().out).values())
    assert main(["bench", "--count", "2", "--size", "1KiB"]) == 0
    assert "rate" in capsys.readouterr().out


def test_wrong_usage_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    """Errors go to stderr in one line, with a status for shells."""
    assert main(["bench", "--size", "three"]) == 2
    assert main(["bench", "--count", "0"]) == 2
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 2
    assert all(line.startswith("xfer: ") and "want" in line for line in said)
    with pytest.raises(SystemExit) as caught:
        main(["nonsense"])
    assert caught.value.code == 2


def test_help_teaches() -> None:
    """The console script's help names every command, and works without rich."""
    code = "import sys; sys.modules['rich.console'] = None; from xfer import _cli as cli; cli.main(['doctor'])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "sealed memory" in done.stdout
    done = subprocess.run([sys.executable, "-m", "xfer", "--help"], capture_output=True, text=True, check=True)
    assert all(word in done.stdout for word in ("doctor", "ls", "reap", "bench"))


def test_json_is_the_same_before_and_after_the_command(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The position of `--json` changes nothing, and `--version` prints one line."""
    monkeypatch.setattr("xfer._shared.names.DIRECTORY", str(tmp_path))  # where no other program leaves anything
    main(["--json", "reap"])
    before = capsys.readouterr().out
    main(["reap", "--json"])
    assert capsys.readouterr().out == before
    with pytest.raises(SystemExit) as caught:
        main(["--version"])
    assert caught.value.code == 0
    assert capsys.readouterr().out.startswith("xfer ")


def test_a_closed_pipe_is_no_traceback() -> None:
    """A reader of the output that ends early, as `head` does, leaves standard error empty."""
    process = subprocess.Popen(
        [sys.executable, "-m", "xfer", "doctor", "--json"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout
    assert process.stderr
    process.stdout.close()
    assert process.stderr.read() == b""
    process.stderr.close()
    assert process.wait() == 1


def test_closed_streams_are_filled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a program starts with closed streams, their numbers must not go to files that it opens."""
    for name in ("stdin", "stdout", "stderr"):
        monkeypatch.setattr(sys, name, None)
    assert main(["bench", "--count", "0"]) == 2
    for stream in (sys.stdin, sys.stdout, sys.stderr):
        stream.close()  # that there is one


def test_a_failure_is_json_too(capsys: pytest.CaptureFixture[str]) -> None:
    """Scripts that read standard output find the error's name there; people find it on standard error."""
    for arguments in (["bench", "--count", "0", "--json"], ["--json", "bench", "--size", "three"]):
        assert main(arguments) == 2
        said = capsys.readouterr()
        failed = json.loads(said.out)
        assert (failed["error"], failed["message"] in said.err) == ("ValueError", True)
