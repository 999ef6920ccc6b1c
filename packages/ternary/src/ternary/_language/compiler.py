"""The public functions of the language: check, generate, compile. The only module here that executes anything."""

from __future__ import annotations

import builtins
import gc
import hashlib
import linecache
import types
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ternary._language import syntax as s
from ternary._language.codegen import PyTorchCodeGenerator
from ternary._language.diagnostics import Diagnostic, Diagnostics, SourceText, Span, did_you_mean
from ternary._language.instances import MAX_SIZE, Instances
from ternary._language.names import NameChecker
from ternary._language.parser import parse
from ternary._language.shapes import ShapeChecker
from ternary.errors import CompileError, UnknownModelError

if TYPE_CHECKING:
    from torch import nn


def read_source(source: str | Path, name: str = "") -> SourceText:
    """Return a source given as text, or as a `Path` to a file in UTF-8."""
    if isinstance(source, Path):
        data = source.read_bytes()
        try:
            return SourceText(data.decode(), name or str(source))
        except UnicodeDecodeError as e:
            text = SourceText(data[: e.start].decode() + "?", name or str(source))
            place = Span(len(text.text) - 1, len(text.text))
            problem = Diagnostic("bad-character", f"byte {data[e.start]:#04x} is not UTF-8", place, "text in UTF-8")
            raise CompileError(text, (problem,)) from None
    if not isinstance(source, str):
        raise TypeError(f"got {source!r:.80}; wanted a program as text, or a pathlib.Path to a file")
    return SourceText(source, name or "<source>")


def analyse(source: SourceText) -> tuple[s.Program, Diagnostics]:
    """Parse and check a source; return its tree and every error."""
    with _collector_paused():
        return _analyse(source)


def _analyse(source: SourceText) -> tuple[s.Program, Diagnostics]:
    diagnostics = Diagnostics()
    program, _ = parse(source, diagnostics)
    if not program.definitions and not diagnostics:
        diagnostics.add("syntax", "the source defines nothing", Span(0, 1), expected="model Name(...) { ... }")
    names = NameChecker(program, diagnostics)
    names.run()
    ShapeChecker(names, source, diagnostics).run()
    return program, diagnostics


@contextmanager
def _collector_paused() -> Iterator[None]:
    """Pause the collection of cycles: a tree has none, and each pass would also walk all that torch has loaded."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def check(source: str | Path, *, name: str = "") -> tuple[Diagnostic, ...]:
    """Return every error in a source, in source order; an empty tuple means that it compiles.

    Args:
        source: Text in the ternary language, or a `Path` to a file.
        name: What messages call the source.

    Returns:
        The errors; `d.render(SourceText(source))` shows one with its line and a caret.

    Example:
        >>> import ternary
        >>> source = "model M { a = Linaer(8, 4); forward(x: float[N, 8]) -> float[N, 4] { return a(x) } }"
        >>> [problem.hint for problem in ternary.check(source)]
        ["did you mean 'Linear'?"]
    """
    try:
        text = read_source(source, name)
    except CompileError as e:
        return e.diagnostics
    return analyse(text)[1].sorted()


def parse_source(source: str | Path, *, name: str = "") -> tuple[s.Program, SourceText]:
    """Return the tree of a source without errors, and the source; raises `CompileError` with all errors."""
    text = read_source(source, name)
    program, diagnostics = analyse(text)
    if diagnostics:
        raise CompileError(text, diagnostics.sorted())
    return program, text


def generate(source: str | Path, *, name: str = "", quantized: bool = True) -> str:
    """Return the PyTorch source of a program, the same bytes for the same program.

    Args:
        source: Text in the ternary language, or a `Path` to a file.
        name: What messages call the source.
        quantized: Whether layers marked `ternary` are ternary; False returns the float network.

    Returns:
        Python that imports only torch and ternary.

    Raises:
        CompileError: The program has errors; it holds all of them.

    Example:
        >>> import ternary
        >>> source = "model M { a = ternary Linear(8, 4); forward(x: float[N, 8]) -> float[N, 4] { return a(x) } }"
        >>> "TernaryLinear(8, 4)" in ternary.generate(source)
        True
    """
    program, _ = parse_source(source, name=name)
    with _collector_paused():
        return PyTorchCodeGenerator(program, quantized=quantized).generate()


def compile(source: str | Path, model: str = "", *, name: str = "", quantized: bool = True) -> type[nn.Module]:
    """Compile a program to a module class.

    Args:
        source: Text in the ternary language, or a `Path` to a file.
        model: Which definition to return; needed only if there is more than one model.
        name: What messages call the source.
        quantized: Whether layers marked `ternary` are ternary; False returns the float network with the same weights.

    Returns:
        A subclass of `torch.nn.Module`; its arguments are the model's parameters. `__source__` is the program,
        `__code__` the generated Python.

    Raises:
        CompileError: The program has errors; it holds all of them.
        UnknownModelError: There is no such model, or several and none was named.

    Example:
        >>> import ternary, torch
        >>> source = "model M { a = ternary Linear(8, 4); forward(x: float[N, 8]) -> float[N, 4] { return a(x) } }"
        >>> model = ternary.compile(source)()
        >>> model(torch.zeros(2, 8)).shape
        torch.Size([2, 4])
    """
    program, text = parse_source(source, name=name)
    chosen = _choose(program, model)
    with _collector_paused():
        code = PyTorchCodeGenerator(program, quantized=quantized).generate()
    digest = hashlib.sha256(code.encode()).hexdigest()[:12]
    filename = f"<ternary {chosen} {digest}>"
    # Tracebacks, inspect and torch.jit.script find the generated lines here; the name is unique to the content.
    linecache.cache[filename] = (len(code), None, code.splitlines(keepends=True), filename)
    module = types.ModuleType(f"ternary_compiled_{digest}")
    exec(builtins.compile(code, filename, "exec"), module.__dict__)
    made: type[nn.Module] = getattr(module, chosen)
    extras: dict[str, Any] = {"__source__": text.text, "__code__": code, "__quantized__": quantized}
    for key, value in extras.items():
        setattr(made, key, value)
    return made


def count_layers(source: SourceText, model: str, arguments: Mapping[str, Any]) -> int:
    """Return how many layers a model of a checked program has with these arguments, without making any.

    Raises:
        CompileError: With these arguments something in the program does not hold.
        UnknownModelError: There is no such model.
        ValueError: An argument is unknown, missing or of a wrong type, or the number cannot be decided.
    """
    diagnostics = Diagnostics()
    program, _ = parse(source, diagnostics)
    names = NameChecker(program, diagnostics)
    names.run()
    definition = next(d for d in program.definitions if d.name == _choose(program, model))
    made = Instances(names, source, diagnostics)
    values: dict[str, Any] = {}
    for p in definition.parameters:
        values[p.name] = arguments[p.name] if p.name in arguments else made.default(p, values)
        legal = type(values[p.name]) is _PYTHON[p.type] or (p.type == "float" and type(values[p.name]) is int)
        if not legal or (p.type == "int" and abs(values[p.name]) > MAX_SIZE):
            raise ValueError(f"the argument {p.name} is missing or no {p.type}")
    unknown = arguments.keys() - values.keys()
    if unknown:
        raise ValueError(f"{definition.name} has no argument {min(unknown)}")
    instance = made.instance(definition, values)
    if diagnostics:
        raise CompileError(source, diagnostics.sorted())
    if made.undecided:
        raise ValueError(f"the number of layers of {definition.name} depends on more than its arguments")
    return instance.size


_PYTHON = {"int": int, "float": float, "bool": bool, "str": str}


def _choose(program: s.Program, model: str) -> str:
    names = [d.name for d in program.definitions]
    models = [d.name for d in program.definitions if d.kind == "model"]
    if model:
        if model not in names:
            hint = did_you_mean(model, names)
            raise UnknownModelError(f"no model '{model}'; the source defines {', '.join(names)}. {hint}".rstrip())
        return model
    candidates = models or names
    if len(candidates) != 1:
        raise UnknownModelError(f"which model? the source defines {', '.join(candidates)}; pass model=")
    return candidates[0]
