"""The docstrings of the public names: each has a runnable example, and documents arguments that exist."""

from __future__ import annotations

import doctest
import inspect
import re
from pathlib import Path
from typing import Any

import pytest

import isolate
import isolate.errors

PUBLIC = sorted(isolate.__all__)


@pytest.fixture
def extensions(tmp_path: Path) -> Path:
    """A folder with one extension."""
    folder = tmp_path / "extensions" / "stats"
    folder.mkdir(parents=True)
    (folder / "manifest.yaml").write_text("name: stats\n")
    code = "import time\ndef mean(values): return sum(values) / len(values)\ndef wait(seconds): time.sleep(seconds)\n"
    (folder / "main.py").write_text(code)
    return folder.parent


@pytest.mark.parametrize("name", PUBLIC)
def test_example_runs(name: str, store: Path, extensions: Path) -> None:
    """Each public name has an `Example:` section whose lines run and print what they say."""
    doc = inspect.getdoc(getattr(isolate, name)) or ""
    assert "Example:" in doc
    space = {**vars(isolate), **vars(isolate.errors), "store": store, "extensions": extensions}
    isolate.EnvironmentStore(store).ensure(isolate.read_manifest(extensions / "stats"))
    test = doctest.DocTestParser().get_doctest(doc, space, name, None, None)
    assert test.examples
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    runner.run(test)
    assert runner.summarize().failed == 0


def _documented(doc: str) -> list[str]:
    section = re.search(r"^Args:\n((?:    .*\n?|\n)+)", doc, re.MULTILINE)
    return re.findall(r"^    (\w+): [A-Z`]", section[1], re.MULTILINE) if section else []


def _callables() -> list[tuple[str, Any]]:
    found = []
    for name in PUBLIC:
        value = getattr(isolate, name)
        found.append((name, value))
        if inspect.isclass(value):
            methods = inspect.getmembers(value, inspect.isfunction)
            found += [(f"{name}.{method}", function) for method, function in methods if not method.startswith("_")]
    return found


@pytest.mark.parametrize(("name", "function"), _callables(), ids=lambda value: value if isinstance(value, str) else "")
def test_documented_arguments_exist(name: str, function: Any) -> None:
    """Every argument in an `Args:` section is a parameter; a section names all parameters, in order."""
    documented = _documented(inspect.getdoc(function) or "")
    if documented:
        parameters = [parameter for parameter in inspect.signature(function).parameters if parameter != "self"]
        assert documented == parameters, name
