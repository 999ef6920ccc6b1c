"""What holds for the package as a whole: its public names, old paths, errors across processes, its map and its help."""

from __future__ import annotations

import ast
import importlib
import itertools
import os
import pickle
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import ternary
from ternary import _moved, errors, nn, runtime
from ternary._language.diagnostics import Diagnostic, SourceText, Span
from ternary._options import QuantizerKeywords, QuantizerOptions
from ternary._quantization import LayerReport

ROOT = Path(ternary.__file__).parent
PAGE = Path(__file__).parent.parent / "docs" / "architecture.md"


def python(code: str) -> str:
    """What a fresh interpreter prints for a program."""
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


# A program of its own: the helper process of `multiprocessing` ends with it.
THROUGH_POOLS = """
import concurrent.futures, functools, multiprocessing, pickle
from pathlib import Path

def same(call, error):
    try:
        call(functools.partial(exec, "raise error", {{"error": error}}))
    except type(error) as caught:
        return str(caught) == str(error)

samples = pickle.loads(Path({file!r}).read_bytes())
context = multiprocessing.get_context("spawn")
with concurrent.futures.ProcessPoolExecutor(1, mp_context=context) as pool, context.Pool(1) as workers:
    found = [same(call, e) for call in (lambda f: pool.submit(f).result(), workers.apply) for e in samples]
print(sum(found), "the same")
"""


class TestPublicNames:
    """What `__all__` lists is there, and nothing else is public."""

    def test_lazy_names_are_those_of_all(self) -> None:
        """Every name is importable, and a type checker reads the same list."""
        assert all(getattr(ternary, name) is not None for name in ternary.__all__)
        tree = ast.parse((ROOT / "__init__.py").read_text(encoding="utf-8"))
        shown = {a.name for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) for a in n.names}
        assert set(ternary.__all__) <= shown
        with pytest.raises(AttributeError, match="no attribute 'quantise'"):
            _ = ternary.quantise

    def test_every_other_module_is_private(self) -> None:
        """A module without an underscore in its path is one that the documents name."""
        paths = (p.relative_to(ROOT).with_suffix("").parts for p in ROOT.rglob("*.py"))
        public = {parts[:-1] if parts[-1] == "__init__" else parts for parts in paths if not any(map(_private, parts))}
        wanted = {(), ("errors",), ("packing",), ("export",), ("llm",), ("nn",), ("runtime",), ("zoo",)}
        assert public == wanted

    def test_checking_and_help_do_not_load_torch(self, tmp_path: Path) -> None:
        """`check`, `fmt` and `--help` load neither torch nor numpy."""
        file = tmp_path / "m.tri"
        file.write_text(ternary.zoo.source("mobilenet_v2"), encoding="utf-8")
        for arguments in (["check", str(file)], ["fmt", str(file)], ["check", "resnet18"], ["--help"]):
            code = (
                "import contextlib, io, sys\nfrom ternary._cli import main\n"
                f"with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit): main({arguments})\n"
                "print(sorted({'torch', 'numpy', 'rich'} & sys.modules.keys()))"
            )
            assert python(code) == "[]", arguments

    @pytest.mark.parametrize("order", ["import ternary, torch", "import torch, ternary"])
    def test_importing_the_package_registers_the_operators(self, order: str) -> None:
        """A file that torch has saved finds the operators, whichever import comes first."""
        assert python(f"{order}; print(torch.ops.ternary.linear)") == "ternary.linear"

    def test_the_options_are_written_once(self) -> None:
        """Layers take as keywords exactly the options of the value."""
        assert set(QuantizerKeywords.__annotations__) == set(QuantizerOptions.__dataclass_fields__)


def _private(name: str) -> bool:
    return name.startswith("_") and name != "__init__"


@pytest.mark.parametrize("old", sorted(_moved.MOVED))
def test_old_import_paths_warn_and_work(old: str) -> None:
    """An old path returns the new module, and the warning names it."""
    sys.modules.pop(old, None)
    if old.startswith("ternary.language."):
        sys.modules.setdefault("ternary.language", importlib.import_module("ternary._language"))
    with pytest.warns(DeprecationWarning, match=re.escape(_moved.MOVED[old])):
        assert importlib.import_module(old) is importlib.import_module(_moved.MOVED[old])


def samples() -> list[Exception]:
    """One of every public error."""
    source = SourceText("model", "m.tri")
    problem = Diagnostic("syntax", "unexpected end of line", Span(5, 6), "a name", "", ("in M",))
    made = []
    for name in errors.__all__:
        kind = getattr(errors, name)
        made.append(kind(source, (problem,)) if kind is errors.CompileError else kind(f"what happened in {name}"))
    return made


class TestAcrossProcesses:
    """Errors and values keep type, message and attributes on their way between processes."""

    @pytest.mark.parametrize("error", samples(), ids=lambda e: type(e).__name__)
    def test_errors_pickle(self, error: Exception) -> None:
        """A round trip through pickle changes nothing."""
        again = pickle.loads(pickle.dumps(error))
        assert type(again) is type(error)
        assert str(again) == str(error)
        assert isinstance(error, errors.TernaryError)
        assert type(error).__name__.endswith("Error")
        if isinstance(error, errors.CompileError):
            assert again.diagnostics == error.diagnostics
            assert again.source.name == error.source.name

    def test_errors_come_back_from_workers(self, tmp_path: Path) -> None:
        """Through a process pool of either kind, every error arrives as it was raised."""
        file = tmp_path / "errors.pickle"
        file.write_bytes(pickle.dumps(samples()))
        assert python(THROUGH_POOLS.format(file=str(file))) == f"{2 * len(errors.__all__)} the same"

    @pytest.mark.parametrize(
        "value",
        [
            ternary.Recipe(quantizer="absmean", rules=(("head", "float"),)),
            ternary.TrainConfig(epochs=3),
            ternary.Report((LayerReport("a", "Linear", "ternary", 0.5, 0.3, 64, 4),)),
            runtime.doctor(),
        ],
        ids=lambda v: type(v).__name__,
    )
    def test_values_pickle(self, value: object) -> None:
        """Recipes, configurations and reports are equal on the other side."""
        assert pickle.loads(pickle.dumps(value)) == value

    def test_layers_pickle(self) -> None:
        """Ternary and packed layers compute the same on the other side."""
        x = torch.randn(3, 16)
        for layer in (nn.TernaryLinear(16, 4), ternary.pack(nn.TernaryLinear(16, 4))):
            assert torch.equal(pickle.loads(pickle.dumps(layer))(x), layer(x))


class TestArchitecturePage:
    """The map in docs/architecture.md names rooms that exist, and all of them."""

    def test_every_path_exists_and_every_room_is_there(self) -> None:
        """Node labels are paths below src/ternary; every module and folder of the top level is one of them."""
        text = PAGE.read_text(encoding="utf-8")
        assert len(text.splitlines()) <= 60
        named = set(re.findall(r'\w+\["([^"]+)"\]', text))
        assert named
        assert all((ROOT / path).is_dir() if path.endswith("/") else (ROOT / path).is_file() for path in named)
        rooms = {p.name + "/" * p.is_dir() for p in ROOT.iterdir() if p.suffix == ".py" or p.is_dir()}
        rooms -= {"__init__.py", "__pycache__/"}
        assert rooms <= {path.split("/")[0] + "/" * ("/" in path) for path in named}


class TestCommandLine:
    """The front door of the command line."""

    @pytest.mark.slow
    def test_help_is_quick(self) -> None:
        """The best of several runs of `--help` takes at most 0.15 s of processor time more than Python alone."""

        def best(*arguments: str) -> float:
            times = [children()]
            for _ in range(5):
                subprocess.run([sys.executable, *arguments], capture_output=True, check=True)
                times.append(children())
            return min(after - before for before, after in itertools.pairwise(times))

        def children() -> float:
            used = os.times()
            return used.children_user + used.children_system

        assert best("-m", "ternary", "--help") - best("-c", "pass") < 0.15

    def test_version_and_json_in_either_place(self, capsys: pytest.CaptureFixture[str]) -> None:
        """`--version` prints one line; `--json` works before the command and after it."""
        from ternary._cli import main

        with pytest.raises(SystemExit, match="0"):
            main(["--version"])
        assert re.fullmatch(r"ternary \d+\.\d+\.\d+.*\n", capsys.readouterr().out)
        assert main(["--json", "check", "mlp"]) == 0
        before = capsys.readouterr().out
        assert main(["check", "mlp", "--json"]) == 0
        assert capsys.readouterr().out == before == "[]\n"

    def test_a_closed_pipe_is_no_traceback(self) -> None:
        """A reader that stops early ends the command quietly."""
        command = ["bash", "-c", f"{sys.executable} -m ternary compile resnet18 | head -1"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.stdout.startswith('"""Generated by ternary')
        assert "Traceback" not in done.stderr


class TestGuarantees:
    """docs/guarantees.md names tests that exist."""

    def test_every_named_test_exists(self) -> None:
        """Each `file.py::Class::function` of the page is there."""
        text = (PAGE.parent / "guarantees.md").read_text(encoding="utf-8")
        named = re.findall(r"`(test_\w+\.py)((?:::\w+)*)`", text)
        assert len(named) > 20
        for file, inside in named:
            tree = ast.parse((Path(__file__).parent / file).read_text(encoding="utf-8"))
            for part in inside.split("::")[1:]:
                found = [n for n in tree.body if getattr(n, "name", None) == part]
                assert found, f"{file}{inside}"
                tree = found[0]
