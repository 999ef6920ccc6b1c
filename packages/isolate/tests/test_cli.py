"""The command line: each command, its errors, and its JSON."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
from integration_test_base import IntegrationTestBase

from isolate._cli import main

CODE = (
    "def add(a, b=1): return a + b\ndef count(n):\n    yield from range(n)\ndef fail(): raise LookupError('not here')"
)


class TestCommandLine(IntegrationTestBase):
    """Runs `main` as the console script does."""

    def run(self, capsys: pytest.CaptureFixture[str], *arguments: str, as_json: bool = True) -> tuple[int, Any, str]:
        """Exit code, parsed output and stderr."""
        code = main(["--store", str(self.store), *arguments, *(["--json"] if as_json else [])])
        out, err = capsys.readouterr()
        return code, json.loads(out) if as_json else out, err

    def test_run(self, capsys: pytest.CaptureFixture[str]) -> None:
        """A method is called with JSON arguments; a stream becomes a list; without a method the methods are listed."""
        folder = str(self.create_extension("calc", CODE))
        assert self.run(capsys, "run", folder, "add", "1", "2")[:2] == (0, 3)
        assert self.run(capsys, "run", folder, "add", "a", '"b"')[:2] == (0, "ab")
        assert self.run(capsys, "run", folder, "count", "3")[:2] == (0, [0, 1, 2])
        assert set(self.run(capsys, "run", folder)[1]) == {"add", "count", "fail"}
        code, out, _ = self.run(capsys, "run", folder, as_json=False)
        assert code == 0
        assert "add(a, b)  sync" in out
        assert "no new privileges" in out

    def test_odd_paths_and_times(self, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
        """A folder may have spaces and letters of any language; a time that is none is refused before anything runs."""
        folder = tmp_path / "ünï cödé" / "a b"
        folder.mkdir(parents=True)
        (folder / "manifest.yaml").write_bytes(b"\xef\xbb\xbfname: odd\r\n")
        (folder / "main.py").write_text(CODE)
        assert self.run(capsys, "run", str(folder), "add", "1", "--timeout", "inf")[:2] == (0, 2)
        for seconds in ("nan", "soon"):
            with pytest.raises(SystemExit) as ended:
                main(["run", str(folder), "add", "1", "--timeout", seconds])
            assert ended.value.code == 2
            assert "is no number of seconds" in capsys.readouterr().err
        assert self.run(capsys, "run", str(folder), "add", "1", "--timeout", "0")[0] == 2

    def test_apis(self, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
        """A file provides the APIs that an extension calls; what it prints and logs is shown on stderr."""
        code = "class Extension:\n    def __init__(self, host): self.host = host\n    def total(self):\n"
        code += "        print('adding')\n        return sum(self.host.call.prices.all())\n"
        folder = str(self.create_extension("shop", code, needs={"prices": ["all"]}))
        file = tmp_path / "apis.py"
        file.write_text(
            "from isolate import ProxiedSingleton\nclass PricesSingleton(ProxiedSingleton):\n"
            "    def all(self): return [1, 2]\n"
        )
        status, value, err = self.run(capsys, "run", "--apis", str(file), folder, "total")
        assert (status, value) == (0, 3)
        assert err == "adding\n"
        assert "--apis FILE.py" in self.run(capsys, "run", folder, "total", as_json=False)[2]
        assert "no file" in self.run(capsys, "run", folder, "total", "--apis", "nowhere.py", as_json=False)[2]

    def test_what_was_never_built(self, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
        """An extension without an environment is not called damaged; nothing is verified, repair builds it."""
        self.store = tmp_path / "store"
        folder = str(self.create_extension("calc", CODE))
        assert self.run(capsys, "verify", folder, as_json=False)[:2] == (1, "calc: not built\n")
        assert self.run(capsys, "repair", folder)[0] == 0
        assert self.run(capsys, "verify", folder, as_json=False)[:2] == (0, "calc: as installed\n")

    def test_errors(self, capsys: pytest.CaptureFixture[str]) -> None:
        """What fails gives exit code 1, with the remote traceback or the error's name."""
        folder = str(self.create_extension("calc", CODE))
        code, _, err = self.run(capsys, "run", folder, "fail", as_json=False)
        assert code == 1
        assert "main.py" in err
        assert self.run(capsys, "run", folder, "fail")[1]["error"] == "LookupError"
        code, value, _ = self.run(capsys, "run", str(self.root / "nowhere"))
        assert (code, value["error"]) == (2, "InvalidManifestError")
        assert "did you mean 'add'" in self.run(capsys, "run", folder, "ad", as_json=False)[2]
        with pytest.raises(SystemExit):
            main(["nonsense"])

    def test_whose_error_it_is(self, capsys: pytest.CaptureFixture[str]) -> None:
        """What the called method raises gives 1 and its traceback: also an error of the system, or one of its own."""
        code = "class Own(Exception): pass\ndef own(): raise Own('mine')\ndef system(): open('/no/such/file')\n"
        folder = str(self.create_extension("fails", code + "def unsendable(): return object()\n"))
        for method, name in (("own", "RemoteError"), ("system", "FileNotFoundError")):
            status, value, _ = self.run(capsys, "run", folder, method)
            assert (status, value["error"]) == (1, name)
            assert "main.py" in value["traceback"]
        assert self.run(capsys, "run", folder, "unsendable")[0] == 2

    def test_results_without_a_form_in_json(self, capsys: pytest.CaptureFixture[str]) -> None:
        """Keys that JSON does not have are text, as such values are."""
        folder = str(self.create_extension("odd", "def keys(): return [{(1, 2): {b'x': {3}}, 4: None, None: True}]\n"))
        assert self.run(capsys, "run", folder, "keys")[:2] == (
            0,
            [{"(1, 2)": {"b'x'": "{3}"}, "4": None, "null": True}],
        )

    def test_numbers_without_a_form_in_json(self, capsys: pytest.CaptureFixture[str]) -> None:
        """Not a number and infinity are text: the document stays JSON for every reader."""
        folder = str(
            self.create_extension("odd", "def numbers(): return {'a': [float('nan'), 1.5], 2.5: float('-inf')}\n")
        )
        assert self.run(capsys, "run", folder, "numbers")[:2] == (0, {"a": ["nan", 1.5], "2.5": "-inf"})

    def test_closed_streams(self) -> None:
        """A result is printed without standard input and error; what closes all three gets the status alone."""
        folder = str(self.create_extension("calc", CODE))
        program = [sys.executable, "-m", "isolate", "--store", str(self.store), "run", folder, "add", "2"]
        for closed, shown in (("<&- 2>&-", "3\n"), ("<&- >&- 2>&-", "")):
            command = ["sh", "-c", f'"$@" {closed}', "sh", *program]
            done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
            assert (done.returncode, done.stdout, done.stderr) == (0, shown, "")

    def test_a_terminal_without_the_characters(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """What an ASCII terminal cannot show of a result is escaped; it was an error in place of the result."""
        folder = str(self.create_extension("word", "def word(): return 'caf\\u00e9'\n"))
        written = io.BytesIO()
        monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding="ascii"))
        assert main(["--store", str(self.store), "run", folder, "word"]) == 0
        assert written.getvalue() == b"caf\\xe9\n"

    def test_output_that_cannot_be_written(self) -> None:
        """A full disk is one line and status 2."""
        command = f"{sys.executable} -m isolate --store {self.store} list {self.root} >/dev/full"
        done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=False, timeout=60)
        assert (done.returncode, done.stderr.count("\n")) == (2, 1)
        assert done.stderr.startswith("isolate: the output cannot be written: ")

    def test_verify_and_repair_follow_the_policy(self, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
        """An environment that only a policy allows is verified and repaired with it, and not found without it."""
        self.store = tmp_path / "store"
        (tmp_path / "wheels").mkdir()
        info = "local_thing-1.0.dist-info"
        with zipfile.ZipFile(tmp_path / "wheels" / "local_thing-1.0-py3-none-any.whl", "w") as wheel:
            wheel.writestr("local_thing.py", "WORD = 'sent'\n")
            wheel.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: local-thing\nVersion: 1.0\n")
            wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
            wheel.writestr(f"{info}/RECORD", "")
        folder = str(self.create_extension("local", "from local_thing import WORD", dependencies=["local-thing"]))
        policy = tmp_path / "policy.toml"
        policy.write_text(f"find_links = ['{tmp_path}/wheels']\n")
        allowed = ("--offline", "--policy", str(policy))
        assert self.run(capsys, *allowed, "repair", folder)[1][0]["changes"] == ["it is not built"]
        assert self.run(capsys, *allowed, "verify", folder)[1][0]["changes"] == []
        (module,) = (self.store / "envs").glob("*/lib/python*/site-packages/local_thing.py")
        module.write_text("WORD = 'evil'\n")
        code, rows, _ = self.run(capsys, *allowed, "verify", folder)
        assert (code, len(rows[0]["changes"])) == (1, 1)
        assert "local_thing.py was changed" in rows[0]["changes"][0]
        assert self.run(capsys, "--offline", "verify", folder)[1][0]["changes"] == ["it is not built"]
        assert self.run(capsys, "--offline", "repair", folder)[0] == 2  # the wheel is nowhere else
        assert self.run(capsys, *allowed, "repair", folder)[:2] == (0, rows)
        assert module.read_text() == "WORD = 'sent'\n"
        assert self.run(capsys, *allowed, "verify", folder)[0] == 0

    def test_list_lock_gc_doctor(self, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
        """The other commands, on a folder with a good, a disabled and a broken extension."""
        self.store = tmp_path / "store"
        good = self.create_extension("good", CODE, dependencies=["packaging<24"])
        self.create_extension("off", CODE, enabled=False)
        rows = {row["name"]: row["state"] for row in self.run(capsys, "list", str(self.root))[1]}
        assert rows == {"good": "not built", "off": "disabled"}
        assert self.run(capsys, "lock", str(good))[1] == {"good": ["packaging==23.2"]}
        assert (good / "isolate.lock").exists()
        code, out, err = self.run(capsys, "run", str(good), as_json=False)
        assert code == 0
        assert "packaging==23.2" in out
        assert "installing packages" in err
        assert {row["state"] for row in self.run(capsys, "list", str(self.root))[1]} == {"ready", "disabled"}
        assert self.run(capsys, "gc", str(self.root))[1] == []
        assert len(self.run(capsys, "gc", "--dry-run")[1]) == 1
        (self.root / "bad").mkdir()
        (self.root / "bad" / "manifest.yaml").write_text("nme: bad\n")
        assert "nothing was removed" in self.run(capsys, "gc", str(self.root))[1]["message"]
        assert "broken" in self.run(capsys, "list", str(self.root), as_json=False)[1]
        assert "removed" in self.run(capsys, "gc", as_json=False)[1]
        assert self.run(capsys, "gc", as_json=False)[1] == "nothing to remove\n"
        doctor = self.run(capsys, "doctor")[1]
        assert doctor["uv"]["ok"]
        assert "sandbox bwrap" in doctor
        main(["--json", "doctor"])
        assert json.loads(capsys.readouterr().out).keys() == doctor.keys()

    def test_policy_and_export(self, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
        """All commands follow a policy; exported wheels build the environment of a lock without index and cache."""
        self.store = tmp_path / "store"
        folder = self.create_extension("good", CODE, dependencies=["packaging<24"])
        policy = tmp_path / "policy.toml"
        policy.write_text("allow_urlz = true\n")
        code, value, _ = self.run(capsys, "--policy", str(policy), "list", str(self.root))
        assert (code, value["error"]) == (2, "InvalidManifestError")
        assert "did you mean 'allow_urls'" in value["message"]
        wheels = tmp_path / "wheels"
        assert self.run(capsys, "lock", str(folder))[0] == 0
        exported = self.run(capsys, "export", str(folder), "--to", str(wheels))[1]
        assert exported == {"good": ["packaging-23.2-py3-none-any.whl"]}
        policy.write_text(f"find_links = ['{wheels}']\n[quotas]\nopen_calls = 5\n")
        offline = ("--policy", str(policy), "--offline", "--store", str(tmp_path / "other"))
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("UV_CACHE_DIR", str(tmp_path / "cache"))
            assert main([*offline, "run", str(folder), "add", "1", "2"]) == 0
        assert capsys.readouterr().out == "3\n"


def test_help_teaches() -> None:
    """`--help` shows examples, from the installed module."""
    done = subprocess.run([sys.executable, "-m", "isolate", "--help"], capture_output=True, text=True, check=True)
    assert "isolate run plugins/stats mean" in done.stdout
