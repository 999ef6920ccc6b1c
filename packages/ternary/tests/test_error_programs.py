"""Wrong programs: every error is found, at the right place, in one run. The sign § stands in front of each place."""

from __future__ import annotations

import time

import pytest

import ternary
from ternary._language.compiler import analyse
from ternary._language.diagnostics import SourceText
from ternary.errors import CompileError

BODY = "forward(x: float[N, 4]) -> float[N, 4] { return x }"


def wrap(members: str, forward: str = BODY, params: str = "") -> str:
    """A model around some members."""
    return f"model M({params}) {{\n{members}\n{forward}\n}}\n"


def net(members: str, result: str, shape: str = "N, 4", out: str = "N, 4") -> str:
    """A model with some members and one returned expression."""
    return wrap(members, f"forward(x: float[{shape}]) -> float[{out}] {{\nreturn {result}\n}}")


def other(members: str, result: str) -> str:
    """A second model."""
    return net(members, result).replace("model M", "model Other")


PROGRAMS = {
    "unknown layer": wrap("a = §Linaer(4, 4)"),
    "unknown member": net("", "§b(x)"),
    "unknown value": net("a = Linear(4, 4)", "a(§y)"),
    "unknown constant": wrap("a = Linear(4, §width)"),
    "unknown keyword": wrap("a = Linear(4, 4, §bais=false)"),
    "two unknown at once": wrap("a = §Foo(4)\nb = §Bar(5)"),
    "too many arguments": wrap("a = Linear(4, 4, true, §4)"),
    "argument twice": wrap("a = Linear(4, 4, §inputs=4)"),
    "missing argument": wrap("a = §Linear(4)"),
    "positional after named": wrap("a = Linear(inputs=4, §4)"),
    "string for a size": wrap('a = Linear(§"four", 4)'),
    "float for a size": wrap("a = Linear(§4.5, 4)"),
    "number for a truth value": wrap("a = Linear(4, 4, bias=§1)"),
    "condition is no truth value": wrap("a = ReLU() if §3 else Identity()"),
    "arithmetic on text": wrap('let a = §1 + "b"'),
    "layer as value": net("a = ReLU()", "§a + x"),
    "layer made in forward": net("", "§Linear(4, 4)"),
    "function outside forward": wrap("a = §relu(3)"),
    "wrong input size": net("a = Linear(5, 4)", "§a(x)"),
    "wrong rank": net("a = Conv2d(4, 4, 3)", "§a(x)"),
    "wrong channels": net("a = Conv2d(3, 8, 3)", "§a(x)", "N, 4, H, W", "N, 8, _, _"),
    "no dimensions": net("a = Linear(4, 4)", "§a(x)", "", ""),
    "result not as declared": net("a = Linear(4, 5)", "§a(x)"),
    "sum of unlike shapes": net("a = Linear(4, 5)", "§x + a(x)"),
    "sum over strides": net("a = Conv2d(4, 4, 3, stride=2, padding=1)", "§x + a(x)", "N, 4, H, W", "N, 4, _, _"),
    "product of unlike shapes": net("", "§x @ x"),
    "empty output": net("a = Conv2d(4, 4, 9)", "§a(x)", "N, 4, 5, 5", "N, 4, _, _"),
    "groups do not divide": wrap("a = §Conv2d(4, 6, 3, groups=4)"),
    "size of zero": wrap("a = Linear(§0, 4)"),
    "negative stride": wrap("a = Conv2d(4, 4, 3, stride=§-1)"),
    "division by zero": wrap("let a = §4 // 0"),
    "requirement": wrap('require §3 == 4, "three is not four"'),
    "reshape changes the count": net("", "§reshape(x, [N, 5])", "N, 4", "N, 5"),
    "axis out of range": net("", "§softmax(x, dim=3)"),
    "float tensor as index": net("a = Embedding(9, 4)", "§a(x)", "N, 4", "N, 4, 4"),
    "contains itself": "layer A() {\na = §A()\n" + BODY + "\n}\n",
    "contain each other": "layer A() {\nb = B()\n" + BODY + "\n}\nlayer B() {\na = §A()\n" + BODY + "\n}\n",
    "defined twice": f"model M {{ {BODY} }}\nmodel §M {{ {BODY} }}\n",
    "member twice": wrap("a = ReLU()\n§a = ReLU()"),
    "a layer named like a parameter": wrap(
        "§n = Linear(4, 4)", "forward(x: float[N, 4]) -> float[N, (n * 2)] { return x }", "n: int"
    ),
    "a tensor named like a constant": wrap(
        "let k = 4", "forward(x: float[N, 4]) -> float[N, 4] {\n§k = x\nreturn x + 2 * k\n}"
    ),
    "reserved member": wrap("§forward_hooks = ReLU()\n§train = ReLU()").replace("§forward_hooks", "forward_hooks"),
    "a layer named like an imported one": "layer §TernaryLinear() {\na = ternary Linear(4, 4)\n" + BODY + "\n}\n",
    "Python keyword": wrap("§class = ReLU()"),
    "underscore": wrap("§_a = ReLU()"),
    "no forward": "model §M { a = ReLU() }\n",
    "no return": wrap("", "forward(x: float[N, 4]) -> float[N, 4] { y = x §}"),
    "unreachable": wrap("", "forward(x: float[N, 4]) -> float[N, 4] {\nreturn x\n§y = x\n}"),
    "not ternary": wrap("a = ternary §ReLU()"),
    "unknown quantizer": wrap('a = ternary(quantizer=§"twm") Linear(4, 4)'),
    "syntax in three statements": wrap("a = Linear(4, 4§\nb = §* 3\nlet §5 = c"),
    "missing brace": "model M {\na = ReLU()§",
    "strange character": wrap("a = ReLU() §$"),
    "open string": wrap('let a = §"abc'),
    "no such statement": "§import os\n" + f"model M {{ {BODY} }}\n",
    "Unicode name": wrap("gr§öße = ReLU()\nb = Linear(4)".replace("Lin", "§Lin")),
    "default missing": wrap("", params="a: int = 3, §b: int"),
    "second forward": wrap(BODY, "§" + BODY),
    "chained comparison": wrap("let a = 1 < 2 §< 3"),
    "repeat below zero": wrap("a = repeat(§-1) ReLU()"),
    "inside a used layer": "layer L(n: int) {\na = Linear(n, 3)\n"
    "forward(x: float[N, 4]) -> float[N, 3] {\nreturn §a(x)\n}\n}\n" + net("b = L(7)", "b(x)", "N, 4", "N, 3"),
    "wrong use of a layer": "layer L(n: int) {\na = Linear(n, 3)\n"
    "forward(x: float[N, n]) -> float[N, 3] {\nreturn a(x)\n}\n}\n" + net("b = L(7)", "§b(x)", "N, 4", "N, 3"),
    "number too long": wrap("let a = §" + "9" * 30),
    "name too long": wrap("§" + "a" * 200 + " = ReLU()"),
    "every constant operation holds": wrap(
        "require §not (7 % 3 == 1 and 7 / 2 == 3.5 and 2 < 3 and 2 <= 2 and 3 > 2 and 3 >= 3 and 1 != 2 and -(1) < 0"
        " and max(1, 2) == 2 and min(1, 2) == 1 and round(2.5) == 2 and int(2.7) == 2 and float(2) == 2.0"
        " and divisible(13.0, 8) == 16 and 5 - 7 // 2 == 2 or false)"
    ),
    "syntax in one model, shape in another": net("a = Linear(5, §* 4)", "a(x)") + other("b = Linear(5, 4)", "§b(x)"),
    "syntax beside an unknown layer": wrap("a = Linear(4, 4§\nb = §Linaer(4, 4)"),
    "syntax beside a wrong shape": net("a = Linear(4, 4)\nb = §+\nc = Linear(5, 4)", "b(§c(a(x)))"),
    "what an unreadable line defines is not missed": net("a = Linear(4,, 4)".replace(",,", ",§,"), "a(x)"),
    "a tensor made on an unreadable line": wrap(
        "a = Linear(4, 5)\nb = Linear(5, 4)",
        "forward(x: float[N, 4]) -> float[N, 4] {\nx = a(x§\ny = b(x)\nreturn y\n}",
    ),
    "shapes on both sides of an unreadable line": wrap(
        "a = Linear(5, 4)\nb = Linear(5, 4)",
        "forward(x: float[N, 4]) -> float[N, 4] {\ny = §a(x)\nz = §)\nreturn §b(x)\n}",
    ),
    "unreadable parameters": "layer L(n §int) {\na = Linear(n, 3)\n"
    "forward(x: float[N, n]) -> float[N, 3] { return a(x) }\n}\n" + other("b = L(7)\nc = L(m=3)", "§y + c(b(x))"),
    "misspelt keyword": "§modle L(n: int) {\na = Linear(n, 3)\n}\n" + other("b = L(7)\nc = Linear(5, 4)", "b(§c(x))"),
    "misspelt forward": wrap("a = ReLU()", "forwrad§(x: float[N, 4]) -> float[N, 4] {\nreturn a(x)\n}"),
    "brace never opened": "model M§\na = ReLU()\n" + BODY + "\n}\n" + other("b = Linear(5, 4)", "§b(x)"),
    "brace never closed": "model M {\na = §Foo()\n" + BODY + "§\n\n" + other("b = Linear(5, 4)", "§b(x)"),
    "brace closed too early": "model M {\na = ReLU()\n}\n§b = ReLU()\n" + BODY + "\n}\n" + other("", "§q"),
    "forward never closed": "model M {\na = ReLU()\n" + BODY[:-1] + "\n}§\n" + other("b = Linear(5, 4)", "§b(x)"),
    "junk between models": "§junk 1 2\nmore junk\n" + other("b = Linear(5, 4)", "§b(x)"),
    "bad character in an argument": net("a = Linear(§$, 4)\nb = Linear(5, 4)", "a(§b(x))"),
    "bad characters in many places": wrap("a = ReLU() §$\nb = §? ReLU()\nlet c = §²"),
    "list never closed": net("a = §[ReLU(),\nReLU()\nb = Linear(5, 4)\nc = Linear(6, 4)", "a(§c(x))"),
    "text in single quotes": wrap("a = ternary(quantizer=§'twn') Linear(4, 4)\nb = §Foo()"),
    "Unicode text in an unreadable line": wrap('require 1 == 1 §"größer"\na = §Foo()'),
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_each_error_is_at_its_place(name: str) -> None:
    """All errors are reported, and nothing else, at the line and column where § stands."""
    marked = PROGRAMS[name]
    pieces = marked.split("§")
    places, text = [], pieces[0]
    for piece in pieces[1:]:
        places.append(SourceText(text).position(len(text)))
        text += piece
    source = SourceText(text)
    found = analyse(source)[1].sorted()
    shown = "\n".join(d.render(source) for d in found)
    assert [source.position(d.span.start) for d in found] == places, shown
    assert all(d.code and d.message for d in found)
    with pytest.raises(CompileError) as caught:
        ternary.compile(text)
    assert caught.value.diagnostics == found


def test_undecided_layers_are_no_error() -> None:
    """What depends on a parameter without a value is not complained about before it has one."""
    text = (
        "layer L(n: int, wide: bool) {\na = Linear(n, 2 * n) if wide else Identity()\n"
        "b = [ReLU(), Linear(4, 4) if n > 2, Flatten(n)]\nc = [Conv1d(n, n + 1, 3) if wide else Conv1d(n, n + 1, 5)]\n"
        "forward(x: float[N, T, n]) -> float[N, _, _] {\ny = a(x) if wide else x\nreturn c(transpose(y, 1, 2))\n}\n}\n"
    )
    assert ternary.check(text) == ()
    wrong = ternary.check(text + net("d = L(3, wide=true)", "d(x)", "N, 9, 3", "N, 4, 7"))
    assert [d.code for d in wrong] == ["shape-mismatch"]
    assert any("L(n=3, wide=True)" in note for note in wrong[0].notes)


def test_there_are_many() -> None:
    """The collection is as large as promised."""
    assert len(PROGRAMS) >= 70


def test_rendering_shows_line_caret_and_hint() -> None:
    """A message holds file, line, column, the line itself, a caret under the place and a suggestion."""
    with pytest.raises(CompileError) as caught:
        ternary.compile("model M {\n  a = Linaer(4, 4)\n" + BODY + "\n}\n", name="net.tri")
    lines = str(caught.value).splitlines()
    assert "net.tri:2:7: error: unknown layer 'Linaer' [unknown-name]" in lines
    at = lines.index("    2 |   a = Linaer(4, 4)")
    assert lines[at + 1] == "      |       ^^^^^^"
    assert "did you mean 'Linear'?" in lines[at + 2]


def test_notes_say_where_a_template_was_used() -> None:
    """An error inside a layer names the arguments that it was used with."""
    marked = PROGRAMS["inside a used layer"].replace("§", "")
    assert any("L(n=7)" in note for note in ternary.check(marked)[0].notes)


HUGE = {
    "10 MB line": lambda: "model M { a = Linear(" + "4 + " * 2_500_000 + "4) }",
    "1 MB line": lambda: "model M { a = Linear(" + "4 + " * 250_000 + "4, 4)\n" + BODY + "}",
    "10 MB of names": lambda: "a" * 10_000_000,
    "3 MB of one name": lambda: "model " + "a" * 3_000_000,
    "3 MB of a number": lambda: wrap("let a = " + "9" * 3_000_000),
    "10,000 parentheses": lambda: wrap("let a = " + "(" * 10_000 + "1" + ")" * 10_000),
    "10,000 brackets": lambda: wrap("a = " + "[" * 10_000 + "]" * 10_000),
    "10,000 minus signs": lambda: wrap("let a = " + "-" * 10_000 + "1"),
    "10,000 nots": lambda: wrap("let a = " + "not " * 10_000 + "true"),
    "10,000 ternaries": lambda: wrap("a = " + "ternary " * 10_000 + "ReLU()"),
    "10,000 repeats": lambda: wrap("a = " + "repeat(2) " * 10_000 + "ReLU()"),
    "10,000 elses": lambda: wrap("let a = " + "1 if true else " * 10_000 + "2"),
    "10,000 calls": lambda: wrap("", "forward(x: float[N]) -> float[N] { return " + "relu(" * 10_000 + "x"),
    "10,000 definitions deep": lambda: "".join(
        f"layer L{i} {{ a = {f'L{i - 1}()' if i else 'ReLU()'}\nforward(x: float[N]) -> float[N] {{ return a(x) }} }}\n"
        for i in range(10_000)
    ),
    "10,000 braces": lambda: "{" * 10_000,
    "two to the sixty layers": lambda: "".join(
        f"layer L{i}() = [{f'L{i - 1}(), L{i - 1}()' if i else 'ReLU()'}]\n" for i in range(40)
    ),
    "a billion layers": lambda: wrap("a = repeat(1000000000) ReLU()"),
    "bad characters": lambda: "$" * 3_000_000,
    "a size past 64 bits": lambda: wrap("let a = " + "999999999 * " * 30 + "2"),
}


@pytest.mark.parametrize("name", HUGE)
def test_huge_sources_end_in_an_error_soon(name: str) -> None:
    """However large or deep, the answer is a list of errors; the time is only printed, being no matter of a test."""
    text = HUGE[name]()
    begin = time.perf_counter()
    found = ternary.check(text)
    print(f"{name}: {time.perf_counter() - begin:.2f} s")
    assert found
    assert len(str(CompileError(SourceText(text), found))) < 100_000
