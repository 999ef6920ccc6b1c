"""Importing zerocopy stays cheap."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest


def test_import_pulls_in_nothing_heavy() -> None:
    """A fresh interpreter that imports zerocopy has loaded none of the heavy optional libraries."""
    heavy = {"ray", "safetensors", "transformers", "rich"}
    code = f"import sys, zerocopy; print(sorted({heavy!r} & sys.modules.keys()))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


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
