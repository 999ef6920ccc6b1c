"""Importing zerocopy stays cheap."""

from __future__ import annotations

import subprocess
import sys

import pytest


def test_import_pulls_in_nothing_heavy() -> None:
    """A fresh interpreter that imports zerocopy has loaded none of the heavy optional libraries."""
    heavy = {"ray", "safetensors", "transformers", "rich"}
    code = f"import sys, zerocopy; print(sorted({heavy!r} & sys.modules.keys()))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("missing", "code", "extra"),
    [
        ("ray", "import zerocopy.on_ray", "ray"),
        ("ray", "zerocopy.rewrite_pipeline(torch.nn.Linear(2, 2))", "ray"),
        ("safetensors", "zerocopy.publish_file('x.safetensors', lambda: torch.nn.Linear(2, 2))", "safetensors"),
        ("safetensors.torch", "zerocopy.save_aligned({}, 'x.safetensors')", "safetensors"),
        ("rich.console", "zerocopy.publish(torch.nn.Linear(2, 2), progress=True)", "cli"),
    ],
)
def test_a_missing_extra_is_named(missing: str, code: str, extra: str) -> None:
    """Where an optional library is not there, the error is ours and says what to install."""
    program = f"""
import sys
sys.modules[{missing!r}] = None
import torch, zerocopy
try:
    {code}
except zerocopy.errors.MissingExtraError as error:
    print(error)
"""
    out = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert f'pip install "pentad-zerocopy[{extra}]"' in out.stdout


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
