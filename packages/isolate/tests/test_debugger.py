"""`breakpoint()` and pdb in an extension, driven over a terminal as a person would."""

from __future__ import annotations

import json
import os
import pty
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
from integration_test_base import IntegrationTestBase

from isolate import Policy, WorkerDiedError, _sandbox
from isolate._debugger import _show
from isolate.errors import DebuggerUnavailableError, RemoteError

CODE = """
import os
import pdb


def add(a, b):
    total = a + b
    print("adding")
    return total


async def double(a):
    breakpoint()
    return 2 * a


def items(n):
    pdb.set_trace()
    yield from range(n)


def fail(a):
    part = a / 2
    return part / 0


async def afail():
    raise LookupError("nothing")


def end():
    breakpoint()
    os._exit(5)
"""
PROGRAM = """
import sys
import isolate

policy = isolate.Policy(allow_debugger=True)
with isolate.Host(sys.argv[1], policy=policy) as host:
    pack = host.load(sys.argv[2])
    print("answer", pack.call.double(21))
    print("items", list(pack.call.items(2)))
"""
INTERRUPT = "\x03"
LEVELS = [level for level in ("landlock", "bwrap") if not _sandbox.available()[level]]


def _drive(command: Sequence[str], dialogue: list[tuple[str, str]]) -> tuple[int, str]:
    """Run a command on a terminal; wait for each text, then type the line; return the exit status and all output."""
    ours, theirs = pty.openpty()

    def heed() -> None:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # a shell's background job inherits that it is ignored

    streams = {"stdin": theirs, "stdout": theirs, "stderr": theirs}
    process = subprocess.Popen(command, **streams, start_new_session=True, preexec_fn=heed)
    os.close(theirs)
    seen, from_here = "", 0
    try:
        for wanted, line in [*dialogue, ("\0", "")]:
            end = time.monotonic() + 60
            while wanted not in seen[from_here:]:
                assert time.monotonic() < end, seen
                try:
                    data = os.read(ours, 4096)
                except OSError:  # the process has closed its end
                    data = b""
                if not data:
                    assert wanted == "\0", seen
                    break
                seen += data.decode()
            from_here = len(seen)
            if line == INTERRUPT:
                os.kill(process.pid, signal.SIGINT)
            elif line:
                os.write(ours, line.encode())
        return process.wait(60), seen
    finally:
        process.kill()
        process.wait()
        os.close(ours)


@pytest.mark.parametrize("method", ["result", "fail"])
def test_an_extension_cannot_control_the_terminal(tmp_path: Path, method: str) -> None:
    """What it returns, raises, prints and logs reaches the terminal without escape sequences."""
    (tmp_path / "pack").mkdir()
    (tmp_path / "pack" / "manifest.yaml").write_text("name: pack\n")
    (tmp_path / "pack" / "main.py").write_text(
        "import logging, sys\n"
        "CLIP = '\\x1b]52;c;ZXZpbA==\\x07\\x9b5n'\n"
        "def said():\n"
        "    print('out' + CLIP)\n"
        "    print('err' + CLIP, file=sys.stderr)\n"
        "    logging.getLogger('own').error('log' + CLIP)\n"
        "def result():\n    said()\n    return 'value' + CLIP\n"
        "def fail():\n    said()\n    raise ValueError('value' + CLIP)\n"
    )
    command = [sys.executable, "-m", "isolate", "--store", str(tmp_path / "store"), "run"]
    status, seen = _drive([*command, str(tmp_path / "pack"), method], [])
    assert status == (method == "fail")
    for word in ("out", "err", "log", "value"):
        assert f"{word}\ufffd]52;c;ZXZpbA==\ufffd\ufffd5n" in seen
    assert not {"\x07", "\x9b"} & set(seen)
    assert "\x1b]" not in seen


EDITED = """
import debugpy

def listen():
    return list(debugpy.listen(("127.0.0.1", 0)))

def total(n):
    found = 0
    return found + n
"""


class _Editor:
    """As much of the Debug Adapter Protocol as stops at one line."""

    def __init__(self, address: tuple[str, int]) -> None:
        self._sock = socket.create_connection(address, timeout=30)
        self._data = b""

    def ask(self, command: str, until: str, **arguments: object) -> None:
        """Send a request and read until a message has that text."""
        body = json.dumps({"seq": 1, "type": "request", "command": command, "arguments": arguments}).encode()
        self._sock.sendall(b"Content-Length: %d\r\n\r\n" % len(body) + body)
        self.wait(f'"{until}"')

    def wait(self, text: str) -> str:
        """Read until there is a text; return what follows it up to now."""
        while text.encode() not in self._data:
            data = self._sock.recv(4096)
            assert data
            self._data += data
        self._data = self._data.partition(text.encode())[2]
        return self._data.decode()

    def close(self) -> None:
        """Disconnect."""
        self._sock.close()


class TestDebugger(IntegrationTestBase):
    """One extension, debugged."""

    @pytest.mark.slow
    @pytest.mark.parametrize("level", ["limits", *LEVELS])
    def test_an_editor_attaches(self, level: str) -> None:
        """Debugpy in the extension's environment listens, and an editor's breakpoint stops a call."""
        folder = self.create_extension("pack", EDITED, dependencies=["debugpy"], sandbox={"level": level})
        pack = self.make_host(policy=Policy(allow_debugger=True)).load(folder)
        editor = _Editor(tuple(pack.call.listen()))
        editor.ask("initialize", "initialize", adapterID="debugpy", pathFormat="path", linesStartAt1=True)
        editor.ask("attach", "initialized", justMyCode=True)
        source = {"path": str(folder / "main.py")}
        editor.ask("setBreakpoints", "setBreakpoints", source=source, breakpoints=[{"line": 9}])
        editor.ask("configurationDone", "configurationDone")
        answers: list[int] = []
        calling = threading.Thread(target=lambda: answers.append(pack.call.total(3)))
        calling.start()
        editor.wait('"stopped"')
        editor.wait('"threadId": ')
        assert answers == []
        editor.ask("continue", "continue", threadId=1)
        calling.join(30)
        assert answers == [3]
        editor.close()

    @pytest.mark.parametrize("level", LEVELS)
    def test_the_command(self, level: str, tmp_path: Path) -> None:
        """`isolate debug` stops at the first line, looks and steps, for a confined extension too."""
        folder = self.create_extension("pack", CODE)
        policy = tmp_path / "policy.toml"
        policy.write_text(f'sandbox = "{level}"\n')
        command = [sys.executable, "-m", "isolate", "--store", str(self.store), "--policy", str(policy)]
        dialogue = [("(Pdb pack) ", "n\n"), ("(Pdb pack) ", "n\n"), ("(Pdb pack) ", "p total\n"), ("42", "c\n")]
        status, seen = _drive([*command, "debug", str(folder), "add", "20", "22"], dialogue)
        assert (status, seen.splitlines()[-1]) == (0, "42"), seen
        assert "-> total = a + b" in seen
        assert "adding" in seen

    def test_a_host_with_a_debugger(self) -> None:
        """In a program's own host a coroutine stops at `breakpoint()`, a generator at `pdb.set_trace()`."""
        folder = self.create_extension("pack", CODE)
        command = [sys.executable, "-c", PROGRAM, str(self.store), str(folder)]
        status, seen = _drive(
            command, [("(Pdb pack) ", "p a\n"), ("21", "c\n"), ("(Pdb pack) ", "p n\n"), ("2", "c\n")]
        )
        assert status == 0, seen
        assert "answer 42" in seen
        assert "items [0, 1]" in seen

    def _command(self, *call: str) -> list[str]:
        folder = self.create_extension("pack", CODE)
        return [sys.executable, "-m", "isolate", "--store", str(self.store), "debug", str(folder), *call]

    def test_where_a_method_fails(self) -> None:
        """The debugger stops there, and the command reports the error after that."""
        dialogue = [("(Pdb pack) ", "c\n"), ("-> return part / 0", "p part\n"), ("4.0", "c\n")]
        status, seen = _drive(self._command("fail", "8"), dialogue)
        assert (status, "ZeroDivisionError" in seen) == (1, True)

    @pytest.mark.slow
    def test_ways_to_end(self) -> None:
        """`q` and the end of the input end the call, Ctrl-C ends the command."""
        command = self._command("afail")
        status, seen = _drive(command, [("(Pdb pack) ", "q\n")])
        assert (status, seen.splitlines()[-1]) == (1, "isolate: the debugger was ended")
        assert _drive(command, [("(Pdb pack) ", INTERRUPT)])[0] == 130
        assert "-> raise LookupError" in _drive(command, [("(Pdb pack) ", "c\n"), ("LookupError", "c\n")])[1]
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stderr) == (1, "isolate: the debugger was ended\n")

    def test_without_leave(self) -> None:
        """Both raise a typed error that says what to do, and the extension goes on."""
        pack = self.make_host().load(self.create_extension("pack", CODE))
        for call in (lambda: pack.call.double(1), lambda: list(pack.call.items(1))):
            with pytest.raises(DebuggerUnavailableError, match="isolate debug"):
                call()
        assert pack.call.add(1, 2) == 3

    def test_the_end_of_the_input_and_of_the_process(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """A process that ends while it is debugged is an error of its call, and its questions are forgotten."""
        host = self.make_host(policy=Policy(allow_debugger=True))
        pack = host.load(self.create_extension("pack", CODE, timeouts={"call": 1}, restart={"policy": "never"}))
        with open(os.devnull) as nothing:
            monkeypatch.setattr(sys, "stdin", nothing)
            with pytest.raises(RemoteError, match="BdbQuit"):
                pack.call.double(1)
        read, write = os.pipe()
        with open(read) as typed, open(write, "w") as typing:
            monkeypatch.setattr(sys, "stdin", typed)
            print("p os.kill(os.getppid(), 0)\nc", file=typing, flush=True)
            with pytest.raises(WorkerDiedError):
                pack.call.end()
        assert "(Pdb pack) None" in capsys.readouterr().out


def test_text_of_an_extension_does_not_control_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    """Escape sequences are shown as replacement characters."""
    _show("a\x1b]0;title\x07b\tc\n")
    assert capsys.readouterr().out == "a\ufffd]0;title\ufffdb\tc\n"
