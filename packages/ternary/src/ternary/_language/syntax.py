"""The syntax tree: frozen values with source spans. Equality ignores spans."""

from __future__ import annotations

from dataclasses import dataclass, field

from ternary._language.diagnostics import Span

NOWHERE = Span(0, 0)
ANYTHING = "*"  # in `lost`: names that are not known either


@dataclass(frozen=True, slots=True)
class Node:
    """Anything with a place in the source."""

    span: Span = field(default=NOWHERE, compare=False, kw_only=True)


class Expr(Node):
    """Anything that has a value: a constant, a layer or a tensor."""

    __slots__ = ()


@dataclass(frozen=True, slots=True)
class Literal(Expr):
    """A number, string or truth value."""

    value: int | float | bool | str


@dataclass(frozen=True, slots=True)
class Name(Expr):
    """A reference by name."""

    name: str


@dataclass(frozen=True, slots=True)
class Argument(Node):
    """One argument of a call; `name` is empty for a positional one."""

    name: str
    value: Expr


@dataclass(frozen=True, slots=True)
class Call(Expr):
    """`name(arguments)`: a layer, a function, or a member applied to a tensor."""

    callee: Name
    arguments: tuple[Argument, ...]


@dataclass(frozen=True, slots=True)
class Unary(Expr):
    """`-x` or `not x`."""

    op: str
    operand: Expr


@dataclass(frozen=True, slots=True)
class Binary(Expr):
    """Arithmetic, comparison, `and`, `or`."""

    op: str
    left: Expr
    right: Expr


@dataclass(frozen=True, slots=True)
class Conditional(Expr):
    """`then if condition else otherwise`; without `else` only inside a list, where the item is left out."""

    then: Expr
    condition: Expr
    otherwise: Expr | None


@dataclass(frozen=True, slots=True)
class ListExpr(Expr):
    """`[a, b, c]`: layers in sequence, or dimensions."""

    items: tuple[Expr, ...]


@dataclass(frozen=True, slots=True)
class Ternary(Expr):
    """`ternary Layer(...)` or `ternary(options) Layer(...)`."""

    options: tuple[Argument, ...]
    layer: Expr


@dataclass(frozen=True, slots=True)
class Repeat(Expr):
    """`repeat(count) Layer(...)`: that many separate layers in sequence."""

    count: Expr
    layer: Expr


@dataclass(frozen=True, slots=True)
class TensorType(Node):
    """`float[N, 3, H, W]`; a dimension of None is `_`, left to inference."""

    dtype: str
    dims: tuple[Expr | None, ...]


@dataclass(frozen=True, slots=True)
class Parameter(Node):
    """`name: type = default` of a definition."""

    name: str
    type: str
    default: Expr | None


@dataclass(frozen=True, slots=True)
class Let(Node):
    """`let name = value`: a constant."""

    name: str
    value: Expr


@dataclass(frozen=True, slots=True)
class Require(Node):
    """`require condition, "message"`: must hold for the parameters given."""

    condition: Expr
    message: str


@dataclass(frozen=True, slots=True)
class Member(Node):
    """`name = Layer(...)`: a layer that the definition owns."""

    name: str
    value: Expr
    name_span: Span = field(default=NOWHERE, compare=False, kw_only=True)


@dataclass(frozen=True, slots=True)
class Input(Node):
    """One input of `forward`."""

    name: str
    type: TensorType


@dataclass(frozen=True, slots=True)
class Assign(Node):
    """`name = expression` in `forward`."""

    name: str
    value: Expr


@dataclass(frozen=True, slots=True)
class Return(Node):
    """`return expression`."""

    value: Expr


@dataclass(frozen=True, slots=True)
class Forward(Node):
    """`forward(inputs) -> output { body }`."""

    inputs: tuple[Input, ...]
    output: TensorType
    body: tuple[Assign | Return, ...]


@dataclass(frozen=True, slots=True)
class Definition(Node):
    """A model or a layer: either `sequence` (`= [...]`) or statements with a `forward`.

    After syntax errors, `lost` holds the names that the unreadable parts may have defined; nothing is known of them.
    """

    kind: str
    name: str
    parameters: tuple[Parameter, ...]
    statements: tuple[Let | Require | Member, ...]
    forward: Forward | None
    sequence: ListExpr | None
    lost: frozenset[str] = field(default=frozenset(), kw_only=True)
    known_parameters: bool = field(default=True, kw_only=True)
    name_span: Span = field(default=NOWHERE, compare=False, kw_only=True)


@dataclass(frozen=True, slots=True)
class Program(Node):
    """A whole source; `lost` holds the names in unreadable text between the definitions."""

    definitions: tuple[Definition, ...]
    lost: frozenset[str] = field(default=frozenset(), kw_only=True)


def children(expr: Expr) -> tuple[Expr, ...]:
    """Return the expressions directly inside an expression."""
    match expr:
        case Call():
            return tuple(a.value for a in expr.arguments)
        case Unary():
            return (expr.operand,)
        case Binary():
            return (expr.left, expr.right)
        case Conditional():
            return (expr.then, expr.condition, *(() if expr.otherwise is None else (expr.otherwise,)))
        case ListExpr():
            return expr.items
        case Ternary():
            return (*(a.value for a in expr.options), expr.layer)
        case Repeat():
            return (expr.count, expr.layer)
    return ()
