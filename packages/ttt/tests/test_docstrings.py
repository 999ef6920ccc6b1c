"""Every public callable shows itself in an example that runs, and documents only what exists."""

from __future__ import annotations

import doctest
import importlib
import inspect
import re
import tempfile
from pathlib import Path

import pytest

import ttt

MODULES = (
    *("ttt", "ttt.backends.grid", "ttt.backends.lm", "ttt.backends.vit"),
    *("ttt.checkpoint", "ttt.errors", "ttt.results", "ttt.values"),
)
PUBLIC = sorted(
    f"{module}.{name}"
    for module in MODULES
    for name in importlib.import_module(module).__all__
    if not issubclass(type(thing := getattr(importlib.import_module(module), name)), type(list[int]))
    and (inspect.isfunction(thing) or inspect.isclass(thing))
    and not (
        module != "ttt" and (name in ttt.__all__ or issubclass(thing if inspect.isclass(thing) else int, Exception))
    )
)


@pytest.fixture(scope="module")
def saved_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a random causal language model of sixteen symbols."""
    transformers = pytest.importorskip("transformers", reason='needs the extra "lm"')
    pytest.importorskip("peft", reason='needs the extra "lm"')
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    ends = {"bos_token_id": 15, "eos_token_id": 13, "pad_token_id": 14}
    config = transformers.LlamaConfig(vocab_size=16, num_key_value_heads=2, **sizes, **ends)
    folder = tmp_path_factory.mktemp("model")
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("name", PUBLIC)
def test_the_example_runs(name: str, request: pytest.FixtureRequest) -> None:
    """The docstring has an example, and what it prints is what it shows."""
    module, _, last = name.rpartition(".")
    text = inspect.getdoc(getattr(importlib.import_module(module), last)) or ""
    assert "Example:" in text, f"{name} has no example"
    names: dict[str, object] = {"saved_model": request.getfixturevalue("saved_model")} if "saved_model" in text else {}
    names |= {"ttt": ttt, "tempfile": tempfile, "one": ttt.as_grid([[1, 0]]), "two": ttt.as_grid([[0, 1]])}
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
