"""Evaluate constant expressions; some values may be symbolic sizes or unknown."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from ternary._language import syntax as s
from ternary._language.dims import Dim, dim
from ternary._language.divisible import make_divisible
from ternary._language.library import CONSTANT_FUNCTIONS, same


class _Unknown:
    """The value of something already reported or not decidable: fits everywhere."""

    def __repr__(self) -> str:
        return "?"


UNKNOWN = _Unknown()
_VALUES = (int, float, str, Dim)  # a name that is declared twice may be a layer or a tensor instead


def evaluate(expr: s.Expr, env: Mapping[str, Any]) -> Any:
    """Return the value of a constant expression, UNKNOWN where it depends on something unknown.

    Raises:
        ZeroDivisionError: It divides by zero.
        OverflowError: A number in it leaves 64 bits.
    """
    match expr:
        case s.Literal(value):
            return value
        case s.Name(name):
            return env.get(name, UNKNOWN)
        case s.ListExpr(items):
            return tuple(evaluate(item, env) for item in items)
        case s.Unary(op, operand):
            value = evaluate(operand, env)
            if isinstance(value, _VALUES) and op == "not":
                return not value
            return -value if isinstance(value, int | float | Dim) else UNKNOWN
        case s.Conditional(then, condition, otherwise):
            chosen = evaluate(condition, env)
            if chosen is UNKNOWN or otherwise is None:
                return UNKNOWN
            return evaluate(then if chosen else otherwise, env)
        case s.Binary():
            return _arithmetic(expr, env)
        case s.Call(callee, arguments) if callee.name in CONSTANT_FUNCTIONS:
            values = [evaluate(a.value, env) for a in arguments]
            return _constant_function(callee.name, values)
    return UNKNOWN


def _arithmetic(expr: s.Binary, env: Mapping[str, Any]) -> Any:
    a = evaluate(expr.left, env)
    if expr.op == "and" and a is False:
        return False
    if expr.op == "or" and a is True:
        return True
    b = evaluate(expr.right, env)
    if not (isinstance(a, _VALUES) and isinstance(b, _VALUES)):
        return UNKNOWN
    value = _combine(expr.op, a, b)
    if isinstance(value, int | float) and abs(value) > 2**63:
        raise OverflowError
    return value


def _combine(op: str, a: Any, b: Any) -> Any:
    """Evaluate a binary operation on constants, of which some may be symbolic sizes."""
    if isinstance(a, Dim) or isinstance(b, Dim):
        if op in ("==", "!="):
            equal = same(a, b) if not isinstance(a, float) and not isinstance(b, float) else None
            return UNKNOWN if equal is None else equal == (op == "==")
        if isinstance(a, float) or isinstance(b, float) or op not in ("+", "-", "*", "//", "%"):
            return UNKNOWN
        a, b = dim(a), dim(b)
    match op:
        case "+":
            value = a + b
        case "-":
            value = a - b
        case "*":
            value = a * b
        case "/":
            value = a / b
        case "//":
            value = a // b
        case "%":
            value = a % b
        case "==":
            return a == b
        case "!=":
            return a != b
        case "<":
            return a < b
        case "<=":
            return a <= b
        case ">":
            return a > b
        case ">=":
            return a >= b
        case "and":
            return a and b
        case _:
            return a or b
    if isinstance(value, Dim):
        return value if value.constant is None else value.constant
    if isinstance(value, float) and not math.isfinite(value):
        raise OverflowError
    return value


def _constant_function(name: str, values: list[Any]) -> Any:
    """Evaluate a function on constants."""
    if any(not isinstance(v, int | float) for v in values):
        return UNKNOWN
    match name:
        case "max":
            return max(values)
        case "min":
            return min(values)
        case "round":
            return round(values[0])
        case "int":
            return int(values[0])
        case "float":
            return float(values[0])
    return make_divisible(values[0], values[1])
