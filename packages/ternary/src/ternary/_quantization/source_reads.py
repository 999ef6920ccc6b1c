"""Which weights the code of a model reads itself, for models without example inputs."""

from __future__ import annotations

import ast
import inspect
import textwrap
from typing import TypeGuard

from torch import nn

_METADATA = frozenset(
    ["dtype", "device", "shape", "ndim", "dim", "size", "requires_grad", "is_cuda", "numel", "element_size"]
)
_ABOUT_TYPES = frozenset(["isinstance", "type", "hasattr", "zeros_like", "ones_like", "empty_like"])
_Methods = dict[str, list[ast.FunctionDef]]


def read_in_source(model: nn.Module) -> set[str]:
    """Return the names of layers whose weight the code of an enclosing module reads when the model runs.

    What runs is `forward` and, of any class in the model, methods of a name that occurs in what runs: code that merges
    or initializes weights does not count. Reading only metadata, as `weight.dtype`, does not count either, nor do
    torch's own modules, which call their layers here.
    """
    kinds = {type(module): _methods_of(type(module)) for module in model.modules()}
    running = _running(list(kinds.values()))
    found: set[str] = set()
    known: dict[type, set[str]] = {}
    for name, module in model.named_modules():
        kind = type(module)
        if kind not in known:
            methods = [m for named, same in kinds[kind].items() if named in running for m in same]
            known[kind] = {path for method in methods for path in _weights_read_by(method)}
        found |= {f"{name}.{child}" if name else child for child in known[kind]}
    return found


def _methods_of(kind: type) -> _Methods:
    """Return the methods of a class and of those that it inherits from, without torch's own."""
    found: _Methods = {}
    for base in kind.__mro__:
        if base is object or base.__module__.startswith("torch."):
            continue
        try:
            tree = ast.parse(textwrap.dedent(inspect.getsource(base)))
        except (OSError, TypeError, SyntaxError):
            continue
        body = tree.body[0].body if isinstance(tree.body[0], ast.ClassDef) else []
        for method in body:
            if isinstance(method, ast.FunctionDef):
                found.setdefault(method.name, []).append(method)
    return found


def _running(classes: list[_Methods]) -> set[str]:
    """Return the names of the methods that may run: `forward`, what `__init__` keeps, and what is named in those."""
    running = {"forward"}
    for constructor in (method for methods in classes for method in methods.get("__init__", ())):
        called = {id(node.func) for node in ast.walk(constructor) if isinstance(node, ast.Call)}
        attributes = [node for node in ast.walk(constructor) if isinstance(node, ast.Attribute)]
        running |= {node.attr for node in attributes if isinstance(node.ctx, ast.Load) and id(node) not in called}
    waiting = list(running)
    while waiting:
        name = waiting.pop()
        bodies = [method for methods in classes for method in methods.get(name, ())]
        named = {node.attr for body in bodies for node in ast.walk(body) if isinstance(node, ast.Attribute)}
        waiting += named - running
        running |= named
    return running


def _asks_for_type(node: ast.AST) -> TypeGuard[ast.Call]:
    called = node.func if isinstance(node, ast.Call) and node.args else None
    name = called.id if isinstance(called, ast.Name) else called.attr if isinstance(called, ast.Attribute) else ""
    return name in _ABOUT_TYPES


def _weights_read_by(method: ast.FunctionDef) -> set[str]:
    """Return the attributes `X` of which a method reads `self.X.weight` as a tensor."""
    harmless = {id(n.value) for n in ast.walk(method) if isinstance(n, ast.Attribute) and n.attr in _METADATA}
    harmless |= {id(n.args[0]) for n in ast.walk(method) if _asks_for_type(n)}
    found = set()
    for node in ast.walk(method):
        if isinstance(node, ast.Attribute) and node.attr == "weight" and id(node) not in harmless:
            path = ast.unparse(node.value)
            if path.startswith("self.") and "[" not in path and isinstance(node.ctx, ast.Load):
                found.add(path.removeprefix("self."))
    return found
