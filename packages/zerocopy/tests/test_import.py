"""Importing zerocopy stays cheap, and so does the command line where it needs no torch."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

import zerocopy


def test_import_pulls_in_nothing_heavy() -> None:
    """A fresh interpreter that imports zerocopy has loaded none of the heavy optional libraries."""
    heavy = {"ray", "safetensors", "transformers", "rich", "torch", "numpy"}
    code = f"import sys, zerocopy; print(sorted({heavy!r} & sys.modules.keys()))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


def test_every_public_name_is_found_at_its_first_use(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each is listed before it, and is the same afterwards; another name is an AttributeError."""
    for name in zerocopy.__all__:
        found = getattr(zerocopy, name)
        assert callable(found)
        monkeypatch.delitem(vars(zerocopy), name)
        assert name in dir(zerocopy)
        if name != "ZerocopyError":
            assert getattr(zerocopy, name) is found
            assert vars(zerocopy)[name] is found
    with pytest.raises(AttributeError, match="module 'zerocopy' has no attribute 'publishing'"):
        zerocopy.publishing  # noqa: B018 - asking for it is the test


def test_commands_that_need_no_torch_do_not_import_it(tmp_path: Path) -> None:
    """Help, the version, `report`, `sweep`, `verify` and `doctor`, and the table of `report` with rich."""
    file, folder = str(tmp_path / "none.zerocopy"), str(tmp_path)
    commands = [
        ["--help"], ["publish", "--help"], ["--version"], ["sweep", "--directory", folder], ["verify", file],
        ["doctor", "--directory", folder], ["report", "--directory", folder, "--pid", "1", "--json"],
        ["report", "--directory", folder, "--pid", "1"],
    ]  # fmt: skip
    program = f"""
import contextlib, io, json, sys
from zerocopy._cli import main
heavy = {{"torch", "numpy", "ray", "rich"}}
loaded = []
for command in {commands!r}:
    with contextlib.suppress(SystemExit), contextlib.redirect_stdout(io.StringIO()):
        main(command)
    loaded.append(sorted(heavy & sys.modules.keys()))
print(json.dumps(loaded))
"""
    out = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    loaded: list[list[str]] = json.loads(out.stdout)
    assert loaded[:4] == [[], [], [], []]
    assert not any("torch" in names or "ray" in names for names in loaded)


USES = {
    "import zerocopy.on_ray": "ray",
    "zerocopy.rewrite_pipeline(torch.nn.Linear(2, 2))": "ray",
    "zerocopy.publish_file('x.safetensors', lambda: torch.nn.Linear(2, 2))": "safetensors",
    "zerocopy.save_aligned({}, 'x.safetensors')": "safetensors",
    "zerocopy.publish(torch.nn.Linear(2, 2), progress=True)": "cli",
}


@pytest.fixture(scope="module")
def said() -> dict[str, str]:
    """What each use of an optional library says in one process where none of them is there."""
    program = f"""
import json, sys
for missing in ("ray", "safetensors", "safetensors.torch", "rich.console"):
    sys.modules[missing] = None
import torch, zerocopy
said = {{}}
for code in {list(USES)!r}:
    try:
        exec(code)
    except zerocopy.errors.MissingExtraError as error:
        said[code] = str(error)
print(json.dumps(said))
"""
    out = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    found: dict[str, str] = json.loads(out.stdout)
    return found


@pytest.mark.parametrize("code", USES)
def test_a_missing_extra_is_named(code: str, said: dict[str, str]) -> None:
    """Where an optional library is not there, the error is ours and says what to install."""
    assert f'pip install "pentad-zerocopy[{USES[code]}]"' in said[code]


def test_the_table_needs_rich() -> None:
    """Without rich the command line says how to get it, and still prints JSON."""
    program = (
        "import sys; sys.modules['rich.console'] = None; from zerocopy._cli import main; sys.exit(main(sys.argv[1:]))"
    )
    table = subprocess.run([sys.executable, "-c", program, "report"], capture_output=True, text=True, check=False)
    assert (table.returncode, table.stdout) == (2, "")
    assert "pentad-zerocopy[cli]" in table.stderr
    data = subprocess.run(
        [sys.executable, "-c", program, "report", "--json"], capture_output=True, text=True, check=False
    )
    assert (data.returncode, data.stdout[0]) == (0, "{")
