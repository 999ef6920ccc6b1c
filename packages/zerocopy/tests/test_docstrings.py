"""Every public callable shows itself: its example runs, and its documented arguments are its arguments."""

from __future__ import annotations

import doctest
import inspect
import re
from typing import Any

import pytest

import zerocopy
import zerocopy.errors

# Ray warns about its own insides.
on_ray = pytest.param("zerocopy.on_ray", marks=pytest.mark.filterwarnings("ignore"))
ROOTS = ["zerocopy", on_ray]


def public(module: str) -> list[tuple[str, Any]]:
    """Every callable in a module's `__all__`, with its full name."""
    if module == "zerocopy.on_ray":
        pytest.importorskip("ray")
    names = __import__(module, fromlist=["__all__"])
    return [(f"{module}.{name}", value) for name in names.__all__ if callable(value := getattr(names, name))]


@pytest.mark.parametrize("module", ROOTS)
@pytest.mark.timeout(300)
def test_examples_run(module: str) -> None:
    """Every callable in `__all__` has an example, and each prints what it says."""
    flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    finder, runner = doctest.DocTestFinder(recurse=False), doctest.DocTestRunner(optionflags=flags)
    without = []
    for name, value in public(module):
        # A function brings the names of its module along: on_ray's examples use its own.
        scope = dict(vars(__import__(value.__module__, fromlist=["_"])))
        tests = [test for test in finder.find(value, name, globs=scope) if test.examples]
        if not tests or "Example:" not in (value.__doc__ or ""):
            without.append(name)
        for test in tests:
            failures: list[str] = []
            assert runner.run(test, out=failures.append).failed == 0, "".join(failures)
    assert without == []


def methods(name: str, value: Any) -> list[tuple[str, Any]]:
    """A callable and, of a class, its public methods."""
    found = [(name, value)]
    if inspect.isclass(value):
        found += [
            (f"{name}.{each}", method)
            for each, method in vars(value).items()
            if not each.startswith("_") and inspect.isfunction(method)
        ]
    return found


@pytest.mark.parametrize("module", ROOTS)
def test_documented_arguments_exist(module: str) -> None:
    """An "Args:" section names arguments of the signature, all of them, and each text starts with a capital."""
    wrong = []
    for name, value in [pair for each in public(module) for pair in methods(*each)]:
        section = re.search(r"^ *Args:\n((?:.+\n?)*)", inspect.getdoc(value) or "", re.MULTILINE)
        if section is None:
            continue
        documented = re.findall(r"^ {4}\*{0,2}(\w+): (\S)", section[1], re.MULTILINE)
        actual = [
            each for each in inspect.signature(value).parameters if each != "self" and not each.startswith("_")
        ]  # Ray adds some
        if [each for each, _ in documented] != actual:
            wrong.append(f"{name}: {[each for each, _ in documented]} instead of {actual}")
        wrong += [f"{name}: {each} starts with {first}" for each, first in documented if first.islower()]
    assert wrong == []


def test_the_contents_page_is_whole() -> None:
    """`__all__` is sorted and complete, and public submodules have one."""
    for module in (zerocopy, zerocopy.errors):
        assert sorted(module.__all__) == sorted(set(module.__all__))
        assert all(hasattr(module, name) for name in module.__all__)
    errors = {name for name, value in vars(zerocopy.errors).items() if inspect.isclass(value)}
    assert errors == set(zerocopy.errors.__all__)
    assert all(name.endswith("Error") for name in errors)
