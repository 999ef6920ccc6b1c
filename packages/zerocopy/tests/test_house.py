"""The package's layout: old import paths still work, sizes stay small, and the architecture page tells the truth."""

from __future__ import annotations

import ast
import importlib
import re
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

import zerocopy
from zerocopy._moved import MOVED

SOURCE = Path(zerocopy.__file__).parent
PAGE = Path(__file__).parents[1] / "docs" / "architecture.md"
FILES = sorted(SOURCE.rglob("*.py"))


@pytest.mark.parametrize("old", MOVED)
def test_old_import_paths_work(old: str) -> None:
    """An old path warns, names the new one, and is the new module."""
    sys.modules.pop(old, None)
    with pytest.warns(DeprecationWarning, match=re.escape(MOVED[old])):
        module = importlib.import_module(old)
    assert module is importlib.import_module(MOVED[old])


def test_importing_uses_no_old_path() -> None:
    """`import zerocopy` and every module of it import without a warning."""
    names = [".".join(path.relative_to(SOURCE.parent).with_suffix("").parts) for path in FILES]
    names = [name.removesuffix(".__init__") for name in names if not name.endswith("__main__")]
    with warnings.catch_warnings():
        warnings.simplefilter("error", DeprecationWarning)
        for name in names:
            if "on_ray" not in name and "_fetch" not in name:
                importlib.import_module(name)


def test_sizes() -> None:
    """No class over 300 lines, no function over 60, no file over 500, unless its first line says why."""
    long = []
    for path in FILES:
        lines = path.read_text().splitlines()
        if len(lines) > 500 and "# long because" not in lines[0]:
            long.append(f"{path.name}: {len(lines)} lines")
        for node in ast.walk(ast.parse("\n".join(lines))):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                most = 300 if isinstance(node, ast.ClassDef) else 60
                length = (node.end_lineno or 0) - node.lineno + 1
                if length > most and "# long because" not in lines[node.lineno - 1]:
                    long.append(f"{path.name}: {node.name} has {length} lines")
    assert long == []


def test_private_names_stay_in_their_file() -> None:
    """No module imports a name with an underscore from another module of the package."""
    found = []
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("zerocopy."):
                found += [f"{path.name}: {node.module}.{name.name}" for name in node.names if name.name[0] == "_"]
    assert found == []


@pytest.mark.skipif(not PAGE.exists(), reason="the documents are not beside an installed wheel's tests")
def test_the_architecture_page() -> None:
    """Every path in the diagram exists, every module is in it or in a folder that is, and the page is short."""
    text = PAGE.read_text()
    assert len(text.splitlines()) <= 60
    shown = set(re.findall(r'\["([^"]+)"\]', text))
    assert shown
    assert [path for path in sorted(shown) if not (SOURCE / path).exists()] == []
    rooms = {f"{path.name}/" if path.is_dir() else path.name for path in SOURCE.iterdir()}
    rooms -= {"__init__.py", "__main__.py", "__pycache__/", "py.typed"}
    inside = {path.split("/")[0] + "/" for path in shown if "/" in path}
    assert sorted(rooms - shown - inside) == []


def test_the_command_line_runs_as_a_module() -> None:
    """`python -m zerocopy --version` prints the version; an error is one line on standard error, with status 2."""
    done = subprocess.run([sys.executable, "-m", "zerocopy", "--version"], capture_output=True, text=True)
    assert re.fullmatch(r"\d+\.\d+\.\d+\n", done.stdout)
    done = subprocess.run(
        [sys.executable, "-m", "zerocopy", "sweep", "--directory", "/proc/version/nowhere"],
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout) in ((0, "nothing to remove\n"), (2, ""))
    assert len(done.stderr.splitlines()) == (0 if done.returncode == 0 else 1)
