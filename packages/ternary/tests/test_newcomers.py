"""Habits from PyTorch, Keras and Python: each newcomer's mistake gets the hint that mends it."""

from __future__ import annotations

import pytest

import ternary

BODY = "forward(x: float[N, 4]) -> float[N, 4] { return x }"


def wrap(members: str = "", forward: str = BODY) -> str:
    """A model around some members."""
    return f"model M {{\n{members}\n{forward}\n}}\n"


def net(result: str) -> str:
    """A model that returns an expression."""
    return wrap("a = Linear(4, 4)", f"forward(x: float[N, 4]) -> float[N, 4] {{\nreturn {result}\n}}")


MISTAKES = {
    "nn.Linear": (wrap("a = nn.Linear(4, 4)"), "without nn"),
    "self.a": (net("self.a(x)"), "without self"),
    "torch.relu": (net("torch.relu(x)"), "without torch"),
    "F.relu": (net("F.relu(x)"), "without F"),
    "x.view": (net("x.view(4)"), "names have no dots"),
    "False": (wrap("a = Linear(4, 4, bias=False)"), "write false"),
    "True": (wrap("a = Linear(4, 4, bias=True)"), "write true"),
    "None": (wrap("a = Linear(4, 4, bias=None)"), "leave the argument out"),
    "TernaryLinear": (wrap("a = TernaryLinear(4, 4)"), "write ternary Linear(...)"),
    "TernaryConv2d": (wrap("a = TernaryConv2d(4, 4, 3)"), "write ternary Conv2d(...)"),
    "Dense": (wrap("a = Dense(4)"), "write Linear(inputs, outputs)"),
    "Sequential": (wrap("a = Sequential(Linear(4, 4))"), "as a list: [a, b, c]"),
    "Conv2D": (wrap("a = Conv2D(4, 4, 3)"), "write Conv2d("),
    "MaxPooling2D": (wrap("a = MaxPooling2D(2)"), "write MaxPool2d("),
    "BatchNormalization": (wrap("a = BatchNormalization()"), "BatchNorm2d(features)"),
    "GlobalAveragePooling2D": (wrap("a = GlobalAveragePooling2D()"), "global_avg_pool(x)"),
    "AdaptiveAvgPool2d": (wrap("a = AdaptiveAvgPool2d(1)"), "global_avg_pool(x)"),
    "Activation": (wrap('a = Activation("relu")'), "such as ReLU()"),
    "LSTM": (wrap("a = LSTM(4, 4)"), "no recurrent layers"),
    "MultiheadAttention": (wrap("a = MultiheadAttention(4, 2)"), "attention(query, key, value)"),
    "ModuleList": (wrap("a = ModuleList([Linear(4, 4)])"), "repeat(n)"),
    "kernel_size": (wrap("a = Conv2d(4, 4, kernel_size=3)"), "called 'kernel'"),
    "in_channels": (wrap("a = Conv2d(in_channels=4, outputs=4, kernel=3)"), "called 'inputs'"),
    "out_features": (wrap("a = Linear(4, out_features=4)"), "called 'outputs'"),
    "units": (wrap("a = Linear(4, units=4)"), "called 'outputs'"),
    "num_features": (wrap("a = LayerNorm(num_features=4)"), "called 'features'"),
    "embedding_dim": (wrap("a = Embedding(4, embedding_dim=4)"), "called 'features'"),
    "activation=": (wrap('a = Linear(4, 4, activation="relu")'), "after the layer in a list"),
    "strides": (wrap("a = Conv2d(4, 4, 3, strides=2)"), "called 'stride'"),
    "rate": (wrap("a = Dropout(rate=0.5)"), "called 'p'"),
    "view": (net("view(x, [4])"), "reshape(x, [sizes])"),
    "cat": (net("cat([x, x])"), "concat([x, y]"),
    "matmul": (net("matmul(x, x)"), "a @ b"),
    "permute": (net("permute(x, 0, 1)"), "transpose(x, first, second)"),
    "dropout": (net("dropout(x)"), "member Dropout(p)"),
    "squeeze": (net("squeeze(x)"), "reshape(x, [sizes])"),
    "class": ("class Net {\n" + BODY + "\n}\n", "model Name(...)"),
    "import": ("import torch\n" + wrap(), "nothing is imported"),
    "def": (wrap(forward="def forward(x: float[N, 4]) -> float[N, 4] { return x }"), "without def"),
    "colon": (wrap(forward="forward(x: float[N, 4]) -> float[N, 4]:\nreturn x"), "braces: { ... }"),
    "for": (wrap("for i in range(3)"), "repeat(n)"),
    "single quotes": (wrap("a = ternary(quantizer='twn') Linear(4, 4)"), "double quotes"),
    "and": (wrap("require 1 && 2"), "write 'and'"),
    "or": (wrap("require true || false"), "write 'or'"),
    "Tensor": (wrap(forward="forward(x: Tensor) -> float[N, 4] { return x }"), "float[N, 4]"),
    "__init__": (wrap("__init__(self)"), "no constructor"),
    "super": (wrap("super()"), "no constructor"),
    "softmax": (wrap("a = Softmax()"), "softmax(x) in forward"),
    "range": (wrap("a = [Linear(4,4) for i in range(3)]"), "repeat(n)"),
    "assert": (wrap("assert 1 == 1"), "require condition"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_each_mistake_gets_its_hint(mistake: str) -> None:
    """One of the errors says what to write instead."""
    source, wanted = MISTAKES[mistake]
    found = ternary.check(source)
    assert found
    assert any(wanted in problem.hint for problem in found), [(p.message, p.hint) for p in found]


def test_there_are_enough() -> None:
    """The table holds at least forty mistakes."""
    assert len(MISTAKES) >= 40


class TestEveryIndependentError:
    """An error behind another one is found in the same run."""

    @pytest.mark.parametrize(
        ("members", "body", "count"),
        [
            ("a = Linear(5, 4)\nb = Linear(6, 4)", "p = a(x)\nq = b(x)\nreturn p + q", 2),
            ("a = Linear(5, 4)\nb = Linear(6, 4)", "return b(a(x))", 2),
            ("a = Linear(5, 7)\nb = Linear(7, 4)", "return b(a(x))", 1),
            ("a = LayerNorm(5)\nb = Linear(6, 4)\nc = Linear(9, 4)", "return c(b(a(x)))", 3),
            ("a = Linear(5, 4)", "y = a(x)\nreturn concat([x, y], dim=1)", 2),
        ],
    )
    def test_errors_in_a_row(self, members: str, body: str, count: int) -> None:
        """After a wrong input the checker goes on with what the layer declares; a right one behind it is no error."""
        forward = f"forward(x: float[N, 4]) -> float[N, 4] {{\n{body}\n}}"
        found = ternary.check(wrap(members, forward))
        assert len(found) == count, [p.message for p in found]
