"""Every public callable shows itself in an example that runs, and documents only what exists."""

from __future__ import annotations

import doctest
import importlib
import inspect
import re
import tempfile

import pytest

import ttt

PUBLIC = sorted(
    name for name in ttt.__all__ if inspect.isfunction(getattr(ttt, name)) or inspect.isclass(getattr(ttt, name))
)
MODULES = ("ttt", "ttt.backends.grid", "ttt.checkpoint", "ttt.errors", "ttt.results", "ttt.values")


@pytest.mark.parametrize("name", PUBLIC)
def test_the_example_runs(name: str) -> None:
    """The docstring has an example, and what it prints is what it shows."""
    text = inspect.getdoc(getattr(ttt, name)) or ""
    assert "Example:" in text, f"ttt.{name} has no example"
    names = {"ttt": ttt, "tempfile": tempfile, "one": ttt.as_grid([[1, 0]]), "two": ttt.as_grid([[0, 1]])}
    test = doctest.DocTestParser().get_doctest(text, names, name, None, 0)
    assert test.examples
    runner = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE)
    said: list[str] = []
    runner.run(test, out=said.append)
    assert not runner.summarize(verbose=False).failed, "".join(said)


def documented(text: str) -> list[str]:
    """The names in the `Args:` section of a docstring."""
    found = re.search(r"^ *Args:\n((?: +.*\n|\n)+)", text + "\n", re.M)
    if not found:
        return []
    first = re.match(r" *", found[1])
    indent = first[0] if first else ""
    return re.findall(rf"^{indent}(\w+):", found[1], re.M)


@pytest.mark.parametrize("module", MODULES)
def test_every_documented_argument_exists(module: str) -> None:
    """An `Args:` section names parameters of the function, or of the class's constructor."""
    place = importlib.import_module(module)
    for name in place.__all__:
        thing = getattr(place, name)
        if not callable(thing) or isinstance(thing, type(list[int])):
            continue
        members = [thing, *(m for n, m in inspect.getmembers(thing, inspect.isfunction) if not n.startswith("_"))]
        for member in members:
            wanted = documented(inspect.cleandoc(member.__doc__ or ""))
            if wanted:
                assert set(wanted) <= set(inspect.signature(member).parameters), (module, name, member)


def test_public_modules_list_what_is_public() -> None:
    """Each public module has `__all__`, and every name in it exists."""
    for module in MODULES:
        place = importlib.import_module(module)
        assert sorted(place.__all__) == sorted(set(place.__all__))
        assert all(hasattr(place, name) for name in place.__all__), module
