"""The report and the command line: what is shared, what is private, and because of which write."""

from __future__ import annotations

import contextlib
import gc
import json
import multiprocessing
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import zerocopy
from zerocopy import ModelRef, _doctor, _report
from zerocopy import _directory as places
from zerocopy._cli import main

Publish = Callable[..., ModelRef]
# Python 3.12 and later warn of forking beside threads; torch and pytest-timeout have some that a child does not need.
pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
linux = pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="needs Linux's smaps")


@linux
def test_two_processes_share_and_one_wrote(large_model: nn.Module, publish: Publish, tmp_path: Path) -> None:
    """Proportional shares add up to one copy; the report names the process that wrote, and the tensor."""
    ref = publish(large_model, name="big", directory=tmp_path)
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe()

    def child() -> None:
        model = ref.load(cached=False)
        model(torch.ones(1, 2048))
        with torch.no_grad():
            model[1].bias.add_(1)
        theirs.send("ready")
        theirs.recv()

    worker = context.Process(target=child, daemon=True)
    worker.start()
    theirs.close()  # the child's end: without the child it says so
    ours.recv()
    model = ref.load(cached=False)
    model(torch.ones(1, 2048))
    what = zerocopy.report(directory=tmp_path)
    ours.send("end")
    worker.join()
    views = {view.pid: view for view in what.views}
    assert set(views) == {os.getpid(), worker.pid}
    mine, other = views[os.getpid()], views[worker.pid]
    worker.close()
    ours.close()
    assert mine.private == 0
    rollup = Path("/proc/self/smaps_rollup").read_text().splitlines()
    alone = sum(int(line.split()[1]) * 1024 for line in rollup if line.startswith("Private_"))
    assert 0 < mine.private_elsewhere <= 1.5 * alone
    assert mine.written == ()
    assert [tensor.name for tensor in other.written] == ["1.bias"]
    assert 0 < other.private <= 4 * 4096
    weights = ref.nbytes
    assert 0.9 * weights <= mine.resident <= 1.01 * weights + 8192
    assert mine.proportional + other.proportional <= 1.02 * weights + other.private + 8192
    (segment,) = what.segments
    assert (segment.name, segment.version, segment.readers, segment.current) == ("big", 1, 2, True)
    assert (segment.model_nbytes, segment.tensors) == (ref.nbytes, 8)


@linux
def test_a_report_reads_as_text(publish: Publish, tmp_path: Path) -> None:
    """Each model with its size and readers, a delta with what it stores, each reader with its share and its writes."""
    assert str(zerocopy.report(directory=tmp_path)) == f"nothing is published in {tmp_path}"
    big = nn.Sequential(*[nn.Linear(512, 512) for _ in range(7)])
    ref = publish(big, name="big", directory=tmp_path)
    with torch.no_grad():
        big[0].bias.add_(1)
    publish(big, name="delta", directory=tmp_path, base=ref)
    model = ref.load(cached=False)
    with torch.no_grad():
        for layer in model:
            layer.weight[256, 256] += 1  # far from the page that it shares with a bias
    first, shared, reader, delta = str(zerocopy.report(directory=tmp_path, pids=[os.getpid()])).splitlines()
    assert first == f"published in {tmp_path}:"
    assert shared == "big version 1 (current): 7.0 MiB in 14 tensors, shared by 1 process"
    assert reader.startswith(f"  {os.getpid()} ")
    assert " in memory, its share " in reader
    assert reader.endswith(f"; wrote {', '.join(f'{i}.weight (4.0 KiB)' for i in range(5))} and 2 more")
    assert delta == "delta version 1 (current): 7.0 MiB in 14 tensors, 2.0 KiB stored here, shared by no processes"


@linux
def test_removed_but_still_read(simple_model: nn.Module, tmp_path: Path) -> None:
    """A segment whose file is gone is reported as long as a process has it mapped."""
    ref = zerocopy.publish(simple_model, name="old", directory=tmp_path)
    model = ref.load(cached=False)
    os.unlink(ref.path)
    (segment,) = zerocopy.report(directory=tmp_path).segments
    assert segment.gone
    assert segment.readers == 1
    assert model is not None
    zerocopy.unpublish(ref)


def test_command_line_json(simple_model: nn.Module, publish: Publish, tmp_path: Path, capsys: Any) -> None:
    """`report --json` prints the same as the function."""
    publish(simple_model, name="net", directory=tmp_path)
    assert main(["report", "--json", "--directory", str(tmp_path)]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["segments"][0]["name"] == "net"
    assert printed["views"] == []


def test_command_line_table(simple_model: nn.Module, publish: Publish, tmp_path: Path, capsys: Any) -> None:
    """The table names the model, its readers and the written tensor; an empty directory says so."""
    assert main(["report", "--directory", str(tmp_path)]) == 0
    assert "nothing is published" in capsys.readouterr().out
    ref = publish(simple_model, name="net", directory=tmp_path)
    model = ref.load(cached=False)
    with torch.no_grad():
        model[0].bias.add_(1)
    assert main(["report", "--directory", str(tmp_path), "--pid", str(os.getpid())]) == 0
    printed = capsys.readouterr().out
    assert "net" in printed
    assert "current" in printed
    if Path("/proc/self/smaps").exists():
        assert "0.b" in printed


def test_verify(simple_model: nn.Module, publish: Publish, tmp_path: Path, capsys: Any) -> None:
    """`verify` says ok, or what is wrong and exit status 1."""
    ref = publish(simple_model, directory=tmp_path)
    assert main(["verify", ref.path]) == 0
    assert "ok" in capsys.readouterr().out
    broken = tmp_path / "broken.zc"
    shutil.copy(ref.path, broken)
    broken.chmod(0o600)
    with broken.open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"\xff")
    assert main(["--json", "verify", ref.path, str(broken)]) == 1
    assert "3.bias" in json.loads(capsys.readouterr().out)[str(broken)]


def test_sweep(tmp_path: Path, capsys: Any) -> None:
    """`sweep` removes and lists files without a lease."""
    (tmp_path / "x@1-0.zc.part").write_bytes(b"")
    assert main(["sweep", "--directory", str(tmp_path)]) == 0
    assert "x@1-0.zc.part" in capsys.readouterr().out
    assert main(["sweep", "--directory", str(tmp_path)]) == 0
    assert "nothing to remove" in capsys.readouterr().out


@pytest.mark.timeout(300)
def test_watch_ends_with_its_reader(tmp_path: Path) -> None:
    """`report --json --watch` prints a line each time and ends quietly when its pipe closes."""
    command = [
        sys.executable,
        "-m",
        "zerocopy",
        "report",
        "--json",
        "--watch",
        "0.05",
        "--directory",
        str(tmp_path),
    ]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stderr is not None
    lines = [json.loads(process.stdout.readline()) for _ in range(2)]
    process.stdout.close()
    assert process.wait(200) == 0
    assert process.stderr.read() == ""
    process.stderr.close()
    assert lines[0]["segments"] == []


@pytest.mark.timeout(300)
def test_watched_table_ends_with_ctrl_c(simple_model: nn.Module, publish: Publish, tmp_path: Path) -> None:
    """`report --watch` repeats the table; Ctrl-C ends it with the status that shells give an interrupted command."""
    publish(simple_model, name="watched", directory=tmp_path)
    command = [sys.executable, "-m", "zerocopy", "report", "--watch", "0.05", "--directory", str(tmp_path)]
    ours, theirs = os.openpty()  # a table that repeats is for a terminal
    process = subprocess.Popen(
        command,
        stdout=theirs,
        stderr=theirs,
        # A shell's background jobs ignore Ctrl-C, and hand that down.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    os.close(theirs)
    printed = b""
    while printed.count(b"watched") < 2:
        printed += os.read(ours, 1 << 16)
    process.send_signal(signal.SIGINT)
    with contextlib.suppress(OSError):  # a terminal's other end says so when it has closed
        while os.read(ours, 1 << 16):
            pass
    assert process.wait(200) == 130
    os.close(ours)


def test_verify_tells_what_is_missing(simple_model: nn.Module, publish: Publish, tmp_path: Path, capsys: Any) -> None:
    """A file that is not there or no segment is said in words beside those that are fine."""
    ref = publish(simple_model, directory=tmp_path)
    other = tmp_path / "other"
    other.write_bytes(b"something else")
    assert main(["verify", ref.path, str(tmp_path / "absent.zc"), str(other)]) == 1
    fine, absent, no_segment = capsys.readouterr().out.splitlines()
    assert fine == f"{ref.path}: ok"
    assert f"{tmp_path / 'absent.zc'} is gone" in absent
    assert f"{other} is not a segment" in no_segment


def test_help_teaches(capsys: Any) -> None:
    """The help shows every command with an example."""
    with pytest.raises(SystemExit):
        main(["--help"])
    text = capsys.readouterr().out
    assert all(word in text for word in ("report --watch", "verify FILE", "sweep", "jq"))


def test_publish_serve_and_remove_from_the_command_line(tmp_path: Path, capsys: Any) -> None:
    """`publish` leaves a model there until `rm`; `serve-weights` keeps one while it runs; errors are one line."""
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        vocab_size=99, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2,
    )  # fmt: skip
    model = transformers.LlamaForCausalLM(config).eval()
    model.save_pretrained(tmp_path / "hub")
    where = ["--directory", str(tmp_path / "segments")]
    common = [str(tmp_path / "hub"), "--name", "llm", "--class", "AutoModelForCausalLM", *where]
    program = [sys.executable, "-W", "ignore", "-m", "zerocopy"]
    done = subprocess.run([*program, "publish", *common, "--json"], capture_output=True, text=True, check=True)
    ref = ModelRef.from_json(done.stdout)
    tokens = torch.arange(5)[None]
    with torch.no_grad():
        assert torch.equal(ref.load(cached=False)(tokens).logits, model(tokens).logits)
    assert main(["rm", "llm", *where]) == 0
    assert capsys.readouterr().out == "removed llm version 1\n"
    assert main(["rm", "llm", *where]) == 2
    assert capsys.readouterr().err.startswith("zerocopy: nothing is published as 'llm'")
    server = subprocess.Popen([*program, "serve-weights", *common], stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None
    assert server.stdout.readline().startswith("llm version 1: ")
    assert zerocopy.current("llm", directory=tmp_path / "segments").load(cached=False) is not None
    gc.collect()  # what is loaded here would keep the segment
    assert main(["rm", "llm", *where]) == 2
    assert "held by the process that published it" in capsys.readouterr().err
    server.terminate()
    assert server.wait(200) == 0
    server.stdout.close()
    assert list((tmp_path / "segments").iterdir()) == []
    assert main(["publish", str(tmp_path / "nothing"), "--name", "x", *where]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


@linux
def test_what_comes_while_a_report_is_made(
    simple_model: nn.Module, publish: Publish, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A version published and loaded after the folder was listed, and a process started after the others were."""
    listed, listing, made = _report._manifests, os.listdir, []

    def then_published(folder: Path) -> Any:
        found = listed(folder)
        made.append(publish(simple_model, name="late", directory=tmp_path))
        made.append(made[0].load(cached=False))
        return found

    def without_this_process(path: Any) -> list[str]:
        entries = listing(path)
        if path == "/proc" and not earlier:
            earlier.append(path)
            entries.remove(str(os.getpid()))
        return entries

    earlier: list[str] = []
    monkeypatch.setattr(_report, "_manifests", then_published)
    monkeypatch.setattr(os, "listdir", without_this_process)
    found = zerocopy.report(directory=tmp_path)
    assert earlier == ["/proc"]
    assert [view.pid for view in found.views] == [os.getpid()]
    assert [(info.name, info.readers, info.current, info.gone) for info in found.segments] == [("late", 1, True, False)]


def test_doctor(tmp_path: Path, capsys: Any) -> None:
    """`doctor` prints a line per check, or JSON."""
    status = main(["doctor", "--directory", str(tmp_path)])
    lines = capsys.readouterr().out.splitlines()
    assert status == int(any(line.startswith("LOOK") for line in lines))
    assert any(str(tmp_path) in line for line in lines)
    main(["--json", "doctor"])
    findings = json.loads(capsys.readouterr().out)
    assert {"subject", "ok", "fact", "advice"} == set(findings[0])


@pytest.mark.parametrize("elsewhere", [True, False])
def test_doctor_without_shared_memory(
    elsewhere: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """It says where segments lie. If no folder can be written, it runs too, and a publish raises a typed error."""

    def no_folder() -> str:
        raise FileNotFoundError("No usable temporary directory found")

    missing = tmp_path / "missing"
    monkeypatch.delenv("ZEROCOPY_DIRECTORY")
    monkeypatch.setattr(places, "SHARED_MEMORY", missing)
    monkeypatch.setattr(_doctor, "SHARED_MEMORY", missing)
    monkeypatch.setattr(tempfile, "gettempdir", (lambda: str(tmp_path)) if elsewhere else no_folder)
    places.memory_folder.cache_clear()
    try:
        assert main(["doctor"]) == 1
        told = [line for line in capsys.readouterr().out.splitlines() if line.startswith("LOOK shared memory: ")]
        assert len(told) == 1
        assert str(missing) in told[0]
        assert (f"segments lie in {tmp_path}" in told[0]) == elsewhere
        if not elsewhere:
            missing.touch()  # no folder can be made there
            with pytest.raises(zerocopy.errors.UnusableDirectoryError):
                zerocopy.publish({"w": torch.ones(3)})
    finally:
        places.memory_folder.cache_clear()


@pytest.mark.parametrize("path", ["/no/such/folder", "./no-such-folder", "~/no-such-folder", "no/such/folder"])
def test_a_folder_that_does_not_exist(path: str, tmp_path: Path, capsys: Any) -> None:
    """The command line, `from_pretrained` and `share` say so, in place of the Hub's words about ids."""
    where = ["--directory", str(tmp_path)]
    for command in ("publish", "serve-weights"):
        assert main([command, path, "--name", "x", *where]) == 2
        told = capsys.readouterr().err
        assert "there is no such folder" in told
        assert path in told
    for act in (
        lambda: zerocopy.from_pretrained(path, directory=tmp_path),
        lambda: zerocopy.share("x", path, directory=tmp_path),
    ):
        with pytest.raises(FileNotFoundError, match="no such folder"):
            act()
    assert not list(tmp_path.glob("*.zc*"))


def test_a_failed_command_prints_json_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Scripts read the error on standard output, people on standard error."""
    for arguments in (["rm", "absent", "--json"], ["--json", "rm", "absent"]):
        assert main([*arguments, "--directory", str(tmp_path)]) == 2
        said = capsys.readouterr()
        failed = json.loads(said.out)
        assert failed["message"] in said.err
        assert failed["error"].endswith("Error")


@linux
def test_a_terminal_without_the_names_characters(simple_model: nn.Module, publish: Publish, tmp_path: Path) -> None:
    """A report is printed where the encoding knows ASCII only, and where the program starts with closed streams."""
    places = [tmp_path / name for name in ("plain", "größe")]
    for place in places:
        place.mkdir()
        publish(simple_model, name="net", directory=place)
        command = [sys.executable, "-m", "zerocopy", "report", "--directory", str(place)]
        environment = {**os.environ, "PYTHONIOENCODING": "ascii", "COLUMNS": "200"}
        done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=100, check=False)
        assert (done.returncode, done.stderr) == (0, "")
        assert "net" in done.stdout
    closed = shlex.join(command) + " <&- >&- 2>&-"
    assert subprocess.run(["sh", "-c", closed], timeout=100, check=False).returncode == 0
