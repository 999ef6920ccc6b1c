"""Fuzzing with an independent grammar: the same verdict on syntax, and nothing but a TernaryError."""

from __future__ import annotations

import functools

import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from lark import Lark
from lark.exceptions import LarkError

import ternary
from ternary import zoo
from ternary._language.compiler import parse_source
from ternary._language.diagnostics import Diagnostics, SourceText
from ternary._language.lexer import KEYWORDS
from ternary._language.parser import parse
from ternary.errors import CompileError

# Written from the language guide, not from the parser. Line ends are made explicit by `tokens` below.
GRAMMAR = r"""
start: _nl* (definition _nl*)*
definition: ("model" | "layer") NAME params? (sequence | block)
params: "(" (param ("," param)* ","?)? ")"
param: NAME ":" TYPE ("=" expr)?
sequence: "=" list
block: "{" _nl* (statement (_nl+ statement)*)? _nl* "}"
statement: "let" NAME "=" expr | "require" expr ("," STRING)? | NAME "=" expr | forward
forward: "forward" "(" (input ("," input)* ","?)? ")" "->" tensor "{" _nl* (step (_nl+ step)*)? _nl* "}"
input: NAME ":" tensor
tensor: ("int" | "float") "[" (dim ("," dim)* ","?)? "]"
dim: "_" | expr
step: "return" expr | NAME "=" expr
expr: or_ ("if" or_ ("else" expr)?)?
or_: and_ ("or" and_)*
and_: not_ ("and" not_)*
not_: "not" not_ | compare
compare: sum (OP sum)?
sum: product (("+" | "-") product)*
product: unary (("*" | "/" | "//" | "%" | "@") unary)*
unary: "-" unary | prefixed | atom
prefixed: ("ternary" args? | "repeat" "(" expr ","? ")") layer
layer: prefixed | NAME args? | list
atom: NUMBER | STRING | "true" | "false" | list | "(" expr ")" | (NAME | "int" | "float") args | NAME
list: "[" (expr ("," expr)* ","?)? "]"
args: "(" (arg ("," arg)* ","?)? ")"
arg: NAME "=" expr | expr
_nl: ";"
OP: "==" | "!=" | "<=" | ">=" | "<" | ">"
TYPE: "int" | "float" | "bool" | "str"
NAME: /(?!(?:KEYWORDS|_)\b)[A-Za-z_][A-Za-z0-9_]*/
NUMBER: /(\d+\.\d*|\.\d+)([eE][+-]?\d+)?|\d+([eE][+-]?\d+)?/
STRING: /"([^"\\;]|\\.)*"/
WS: /[ ]+/
%ignore WS
""".replace("KEYWORDS", "|".join(sorted(KEYWORDS)))


@functools.cache
def oracle() -> Lark:
    """The independent parser."""
    return Lark(GRAMMAR, parser="earley", lexer="dynamic")


NAMES = st.sampled_from(["a", "b", "x", "y", "n", "Linear", "ReLU", "Conv2d", "relu", "Block", "N", "max", "divisible"])
ATOMS = st.one_of(
    NAMES, st.integers(0, 9).map(str), st.sampled_from(["1.5", '"twn"', "true", "false", "[1, n]", "Identity()"])
)


def deeper(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    """Expressions made of expressions."""
    ops = st.sampled_from(["+", "-", "*", "/", "//", "%", "@", "==", "!=", "<", "<=", ">", ">=", "and", "or"])
    args = st.lists(st.one_of(inner, st.tuples(NAMES, inner).map("=".join)), max_size=3).map(", ".join)
    return st.one_of(
        st.tuples(inner, ops, inner).map(" ".join),
        inner.map("({})".format),
        inner.map("-{}".format),
        inner.map("not {}".format),
        st.tuples(NAMES, args).map(lambda t: f"{t[0]}({t[1]})"),
        st.lists(inner, max_size=3).map(lambda items: f"[{', '.join(items)}]"),
        st.tuples(inner, inner, inner).map(lambda t: f"{t[0]} if {t[1]} else {t[2]}"),
        st.tuples(inner, inner).map(lambda t: f"{t[0]} if {t[1]}"),
        inner.map("ternary {}".format),
        st.tuples(inner, inner).map(lambda t: f"repeat({t[0]}) {t[1]}"),
    )


EXPRESSIONS = st.recursive(ATOMS, deeper, max_leaves=6)
DIMS = st.lists(st.one_of(st.sampled_from(["N", "n", "_", "4", "H", "(n * 2)"]), EXPRESSIONS), max_size=4).map(
    ", ".join
)


@st.composite
def programs(draw: st.DrawFn) -> str:
    """Whole programs, most of them wrong in some way, on lines ended by `;`."""
    out = []
    for _ in range(draw(st.integers(1, 2))):
        params = draw(st.sampled_from(["", "()", "(n: int)", "(n: int = 4)", '(s: str = "twn", n: int = 2,)']))
        head = f"{draw(st.sampled_from(['model', 'layer']))} {draw(NAMES)}{params}"
        if draw(st.integers(0, 5)) == 0:
            out.append(f"{head} = [{draw(EXPRESSIONS)}]")
            continue
        parts = []
        for _ in range(draw(st.integers(0, 3))):
            form = draw(st.sampled_from(["{n} = {e}", "let {n} = {e}", 'require {e}, "text"', "{n} = Linear(4, 4)"]))
            parts.append(form.format(n=draw(NAMES), e=draw(EXPRESSIONS)))
        body = f"{draw(NAMES)} = {draw(EXPRESSIONS)}; return {draw(EXPRESSIONS)}"
        parts.append(f"forward(x: float[{draw(DIMS)}]) -> float[{draw(DIMS)}] {{ {body} }}")
        out.append(f"{head} {{ {'; '.join(parts)} }}")
    text = "; ".join(out) + ";"
    if draw(st.booleans()):
        at = draw(st.integers(0, len(text) - 1))
        text = (
            text[:at] + draw(st.sampled_from(["", "(", ")", "{", "}", ",", "=", "[", " if ", " 3 "])) + text[at + 1 :]
        )
    return text


@settings(max_examples=50, deadline=None, suppress_health_check=list(HealthCheck))
@given(programs())
def test_same_verdict_on_syntax_as_the_oracle(text: str) -> None:
    """What the hand-written parser takes, an independent Earley parser takes, and the other way round."""
    try:
        oracle().parse(text)
        wanted = True
    except LarkError:
        wanted = False
    diagnostics = Diagnostics()
    parse(SourceText(text), diagnostics)
    assert (not diagnostics) == wanted, (text, [d.message for d in diagnostics.sorted()])


@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
@given(programs())
def test_any_program_compiles_or_says_why(text: str) -> None:
    """No crash: either errors with places, or code that Python accepts and that comes out the same formatted."""
    try:
        made = ternary.generate(text)
    except CompileError as e:
        found = e.diagnostics
    else:
        compile(made, "generated", "exec")
        assert ternary.generate(ternary.format_source(text)) == made
        return
    assert found
    assert all(0 <= d.span.start <= len(text) for d in found)


@settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.one_of(st.text(max_size=200), st.text(alphabet='modelayr {}()[]=:,"\n#+-*/01if', max_size=300)))
def test_any_text_is_an_error_or_a_program(text: str) -> None:
    """Arbitrary text never raises anything but a TernaryError."""
    try:
        ternary.generate(text)
    except CompileError as e:
        message = str(e)
    else:
        return
    assert "error: " in message


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.sampled_from(["mlp", "vit", "bitnet"]), st.data())
def test_damaged_zoo_programs(name: str, data: st.DataObject) -> None:
    """A real program with a piece cut out or doubled is checked without a crash."""
    text = zoo.source(name)
    start = data.draw(st.integers(0, len(text)))
    end = min(len(text), start + data.draw(st.integers(0, 40)))
    for damaged in (text[:start] + text[end:], text[:end] + text[start:]):
        assert all(d.message for d in ternary.check(damaged))


@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.sampled_from(["mlp", "vit", "bitnet"]), st.sampled_from(["", "(", "}", "{", "$", '"', "= ["]), st.data())
def test_damage_in_one_model_leaves_the_others_to_be_checked(name: str, put: str, data: st.DataObject) -> None:
    """However a program is damaged, a model after it has exactly its own errors, at their places."""
    text = zoo.source(name)
    start = data.draw(st.integers(0, len(text)))
    end = min(len(text), start + data.draw(st.integers(0, 40)))
    damaged = text[:start] + put + text[end:] + "\n"
    after = "model After {\n  q = Linear(5, 4)\n  forward(z: float[N, SIZE]) -> float[N, 4] { return q(z) }\n}\n"
    place = after.replace("SIZE", "6").index("q(z)")
    for size, wanted in (("5", []), ("6", [len(damaged) + place])):
        found = ternary.check(damaged + after.replace("SIZE", size))
        assert [d.span.start for d in found if d.span.start >= len(damaged)] == wanted


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    st.integers(1, 5), st.integers(1, 6), st.integers(1, 3), st.integers(0, 3), st.integers(1, 3), st.integers(4, 20)
)
def test_inferred_shapes_are_the_real_ones(
    channels: int, out: int, stride: int, padding: int, kernel: int, size: int
) -> None:
    """What the checker infers for convolution and pooling is what torch computes."""
    text = f"""model M {{
      a = Conv2d({channels}, {out}, {kernel}, stride={stride}, padding={padding})
      b = MaxPool2d(2, stride=1)
      forward(x: float[N, {channels}, {size}, {size}]) -> float[N, {out}, SIZE, SIZE] {{ return b(a(x)) }}
    }}"""
    real = (size + 2 * padding - kernel) // stride + 1 - 1
    assume(real >= 1)
    good = text.replace("SIZE", str(real))
    assert ternary.check(good) == ()
    assert ternary.compile(good)()(torch.zeros(2, channels, size, size)).shape == (2, out, real, real)
    assert [d.code for d in ternary.check(text.replace("SIZE", str(real + 1)))] == ["shape-mismatch"]


def test_oracle_takes_the_zoo() -> None:
    """The independent grammar is not trivially narrow: the shipped programs pass it, comments and line ends apart."""
    for name in ("mlp", "resnet18"):
        program = parse_source(zoo.source(name))[0]
        assert program.definitions
        lines = [line.split("#")[0].strip() for line in zoo.source(name).splitlines()]
        flat = ""
        depth = 0
        for line in lines:
            depth += sum(line.count(c) for c in "([") - sum(line.count(c) for c in ")]")
            flat += line + (" " if depth else ";")
        oracle().parse(flat)
