"""Documentation of the public interface: every example runs, and every documented argument exists."""

from __future__ import annotations

import doctest
import importlib
import inspect
import re
from typing import Any

import numpy as np
import pytest

import xfer

MODULES: tuple[Any, ...] = (xfer, xfer.errors, xfer.ops)
GATHERED = {
    f"{module.__name__}.{name}": getattr(module, name)
    for module in MODULES
    for name in module.__all__
    if callable(getattr(module, name))
}
WITH_EXAMPLE = {name: value for name, value in GATHERED.items() if not name.startswith("xfer.errors.")}


@pytest.mark.parametrize("name", WITH_EXAMPLE)
def test_every_public_callable_has_an_example_that_runs(name: str) -> None:
    """The `>>>` lines of a docstring run and print what they say."""
    value = WITH_EXAMPLE[name]
    if isinstance(value, type) and issubclass(value, BaseException):
        pytest.skip("errors are raised by the library")
    if name == "xfer.CupyAllocator":
        pytest.skip("its example needs a GPU")
    text = inspect.getdoc(value) or ""
    assert "Example:" in text
    assert ">>>" in text
    example = doctest.DocTestParser().get_doctest(text, {"xfer": xfer, "np": np}, name, None, 0)
    said: list[str] = []
    result = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS).run(example, out=said.append)
    assert not result.failed, "".join(said)


def _callables() -> dict[str, Any]:
    found = dict(GATHERED)
    for name, value in GATHERED.items():
        if isinstance(value, type):
            for member, function in vars(value).items():
                plain = function.__func__ if isinstance(function, classmethod | staticmethod) else function
                if inspect.isfunction(plain) and not member.startswith("_"):
                    found[f"{name}.{member}"] = plain
    return found


@pytest.mark.parametrize("name", _callables())
def test_documented_arguments_exist_and_public_ones_are_documented(name: str) -> None:
    """An `Args:` section names parameters of the signature, and every parameter of a method that has one."""
    value = _callables()[name]
    text = inspect.getdoc(value) or ""
    assert text, "no docstring"
    section = re.search(r"^Args:\n((?:[ ]+.*\n?|\n)*)", text, re.MULTILINE)
    documented = re.findall(r"^    \*{0,2}(\w+):", section[1], re.MULTILINE) if section else []
    target = value.__init__ if isinstance(value, type) else value
    if target is object.__init__:
        return
    try:
        parameters = [p for p in inspect.signature(target).parameters if p not in ("self", "cls")]
    except ValueError:
        return
    assert set(documented) <= set(parameters)
    if documented:
        assert set(documented) == set(parameters)


def test_old_import_paths_warn_and_work() -> None:
    """Each path of the release before names the new one and returns the same objects."""
    moved = importlib.import_module("xfer._moved").MOVED
    for old, new in moved.items():
        with pytest.warns(DeprecationWarning, match=re.escape(new)):
            module = importlib.import_module(old)
        assert module is importlib.import_module(new)
        assert module.__spec__.name == new
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("xfer.nothing")
