"""Every public callable shows itself in an example that runs, and documents only arguments that it has."""

from __future__ import annotations

import doctest
import gc
import importlib
import inspect
import re
import warnings
from types import ModuleType

import pytest

PUBLIC = ("ternary", "ternary.export", "ternary.llm", "ternary.nn", "ternary.packing", "ternary.runtime", "ternary.zoo")


def callables() -> list[tuple[str, object]]:
    """Every callable that a public module lists in `__all__`, by its full name."""
    found = []
    for module in map(importlib.import_module, PUBLIC):
        values = ((name, getattr(module, name)) for name in module.__all__)
        found += [(f"{module.__name__}.{name}", v) for name, v in values if callable(v)]
    return found


def sections(text: str) -> dict[str, str]:
    """The sections of a docstring in google style."""
    parts = re.split(r"^(\w+):\n", inspect.cleandoc(text), flags=re.M)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


@pytest.mark.parametrize(("name", "value"), callables())
def test_the_example_of_every_public_callable_runs(name: str, value: object) -> None:
    """An Example section is there, and prints what it shows."""
    text = sections(value.__doc__ or "").get("Example", "")
    assert ">>> " in text, f"{name} has no example"
    if name.endswith("_onnx"):
        pytest.importorskip("onnxscript")
    if "gguf" in name:
        pytest.importorskip("gguf")
    if "zerocopy" in text or name.endswith((".publish", ".deployment")):
        pytest.importorskip("zerocopy")
    case = doctest.DocTestParser().get_doctest(inspect.cleandoc(text), {}, name, None, 0)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*torch.jit")
        options = doctest.ELLIPSIS | doctest.IGNORE_EXCEPTION_DETAIL
        failed = doctest.DocTestRunner(optionflags=options).run(case).failed
    gc.collect()  # models in reference cycles keep their file mapped
    assert failed == 0


@pytest.mark.parametrize(("name", "value"), callables())
def test_every_documented_argument_exists(name: str, value: object) -> None:
    """The names under Args are those of the signature, and their texts begin with a capital letter."""
    text = sections(value.__doc__ or "").get("Args", "")
    documented = re.findall(r"^ {4}(\w+): ?(.*)$", text, flags=re.M)
    known = set(inspect.signature(value).parameters) if documented else set()  # type: ignore[arg-type]
    assert {argument for argument, _ in documented} <= known, name
    assert all(not said[:1].islower() for _, said in documented), documented


def test_public_modules_list_what_they_share() -> None:
    """Every public submodule has `__all__`, and each name in it exists."""
    for name in (*PUBLIC, "ternary.errors"):
        module = importlib.import_module(name)
        assert isinstance(module, ModuleType)
        assert all(hasattr(module, each) for each in module.__all__)
        assert len(set(module.__all__)) == len(module.__all__)
