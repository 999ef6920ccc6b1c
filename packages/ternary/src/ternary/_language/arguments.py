"""Match the arguments of a call with the declared ones."""

from __future__ import annotations

from ternary._language import syntax as s
from ternary._language.diagnostics import Span, did_you_mean
from ternary._language.library import REQUIRED, Arg


def bind(args: tuple[Arg, ...], given: tuple[s.Argument, ...]) -> tuple[dict[str, s.Expr], list[tuple[str, Span, str]]]:
    """Match given arguments with declared ones; the problems are (message, place, hint)."""
    bound: dict[str, s.Expr] = {}
    problems: list[tuple[str, Span, str]] = []
    names = [a.name for a in args]
    keyword_seen = False
    for at, argument in enumerate(given):
        name = argument.name
        if not name:
            if keyword_seen:
                problems.append(("a positional argument after a named one", argument.span, "name this one too"))
                continue
            if at >= len(names):
                problems.append((f"argument {at + 1} is one too many", argument.span, f"there are {len(names)}"))
                continue
            name = names[at]
        else:
            keyword_seen = True
        if name not in names:
            hint = did_you_mean(name, names) or f"the arguments are {', '.join(names) or 'none'}"
            problems.append((f"unknown argument '{name}'", argument.span, hint))
        elif name in bound:
            problems.append((f"argument '{name}' is given twice", argument.span, ""))
        else:
            bound[name] = argument.value
    return bound, problems


def definition_args(definition: s.Definition) -> tuple[Arg, ...]:
    """Return the declared arguments of a definition in the form of the built-in ones."""
    return tuple(Arg(p.name, p.type, REQUIRED if p.default is None else p.default) for p in definition.parameters)
