"""What is public: it pickles, old names warn, and the architecture page tells of every room."""

from __future__ import annotations

import importlib
import pickle
import re
import subprocess
import sys
from pathlib import Path

import pytest
from public_errors import NAMES, made, seen

import isolate
from isolate import _moved, errors


@pytest.mark.parametrize("name", NAMES)
def test_errors_pickle(name: str) -> None:
    """A pickled error keeps type, message and attributes."""
    assert seen(pickle.loads(pickle.dumps(made(name)))) == seen(made(name))


def test_errors_cross_pools() -> None:
    """The same through the two process pools of the standard library."""
    program = Path(__file__).with_name("public_errors.py")
    done = subprocess.run([sys.executable, str(program)], capture_output=True, text=True, check=True)
    passed, total = done.stdout.split(" of ")
    assert int(passed) == int(total) > 40


def test_values_pickle(tmp_path: Path) -> None:
    """What describes an extension may be sent to another process."""
    (tmp_path / "manifest.yaml").write_text("name: a\nlimits: {memory: 1GiB}\n")
    environment = isolate.Environment("key", tmp_path, ("a==1",), "ready", 0.1)
    report = isolate._sandbox.SandboxReport("none", (), (), {})  # type: ignore[attr-defined]
    for value in (
        isolate.read_manifest(tmp_path),
        isolate.Policy(allow_urls=True),
        isolate.State.READY,
        environment,
        isolate.LoadReport("a", environment, "3.11", 0.2, report),
    ):
        assert pickle.loads(pickle.dumps(value)) == value


@pytest.mark.parametrize("old", _moved.MODULES)
def test_old_import_paths_work(old: str) -> None:
    """An old path warns and is the new module."""
    sys.modules.pop(old, None)
    with pytest.warns(DeprecationWarning, match=re.escape(old)):
        module = importlib.import_module(old)
    assert module is importlib.import_module(_moved.MODULES[old])
    assert module.__spec__ is not None
    assert module.__spec__.name == _moved.MODULES[old]


@pytest.mark.parametrize("old", _moved.ERRORS)
def test_old_names_of_errors_work(old: str) -> None:
    """An old name warns and is the new class, in both public modules."""
    for space in (errors, isolate):
        with pytest.warns(DeprecationWarning, match=_moved.ERRORS[old]):
            assert getattr(space, old) is getattr(errors, _moved.ERRORS[old])
    with pytest.raises(AttributeError, match="has no attribute"):
        isolate.nonsense  # noqa: B018 - looking it up is the test


def test_architecture_page() -> None:
    """The page names only files that exist, and every room of the package."""
    source = Path(isolate.__file__).parent
    page = Path(__file__).parents[1] / "docs" / "architecture.md"
    text = page.read_text()
    named = re.findall(r'\["([^"]+)"\]', text)
    assert named
    assert [name for name in named if not (source / name).exists()] == []
    rooms = {
        path.name + "/" * path.is_dir()
        for path in source.iterdir()
        if path.suffix in (".py", "") and "__" not in path.name
    }
    assert rooms - {name.split("/")[0] + "/" * ("/" in name) for name in named} == set()
    assert len(text.splitlines()) <= 60
