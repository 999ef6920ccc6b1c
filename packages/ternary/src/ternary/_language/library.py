"""The layers and functions that every program can use: their arguments, shape rules and PyTorch names."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any, TypeAlias

from ternary._language.dims import Dim, dim
from ternary._options import QuantizerOptions

REQUIRED = object()


class ShapeError(Exception):
    """A shape rule does not hold; the checker turns it into a diagnostic."""

    def __init__(self, message: str, expected: str = "", hint: str = ""):
        self.message, self.expected, self.hint = message, expected, hint
        self.assumed: Tensor | None = None  # the result if the input had been right
        super().__init__(message)


class UndecidedError(Exception):
    """A shape depends on something unknown, which is not an error."""


@dataclass(frozen=True, slots=True)
class Tensor:
    """What is known of a tensor: its dtype ('float' or 'int') and dims; a dim of None is not known."""

    dtype: str
    dims: tuple[Dim | None, ...]

    def __str__(self) -> str:
        return f"{self.dtype}[{', '.join('_' if d is None else str(d) for d in self.dims)}]"


@dataclass(frozen=True, slots=True)
class Arg:
    """One argument; its type is int, float, bool, str, tensor, tensors or dims."""

    name: str
    type: str
    default: Any = REQUIRED
    torch: str = ""
    positive: bool = False


Values: TypeAlias = dict[str, Any]


@dataclass(frozen=True, slots=True)
class LayerSpec:
    """A built-in layer."""

    name: str
    args: tuple[Arg, ...]
    shape: Callable[[Values, Tensor], Tensor]
    torch: str
    ternary: str = ""
    check: Callable[[Values], None] = lambda _: None


@dataclass(frozen=True, slots=True)
class FunctionSpec:
    """A built-in function on tensors; `torch` is a dotted function, or a method if it starts with a dot."""

    name: str
    args: tuple[Arg, ...]
    shape: Callable[[Values], Tensor]
    torch: str


def known(*values: Any) -> bool:
    """Whether all sizes are known and free of parameters without a value."""
    return all(isinstance(v, int) or (isinstance(v, Dim) and not v.depends_on_parameters) for v in values)


def same(a: Any, b: Any) -> bool | None:
    """Whether two sizes are equal; None if that cannot be decided yet."""
    if _unknown(a) or _unknown(b):
        return None
    try:
        difference = dim(a) - dim(b)
    except OverflowError:
        return None
    if difference.constant == 0:
        return True
    return False if known(difference) else None


def want_rank(x: Tensor, layer: str, dims: str) -> None:
    """Refuse a tensor of another number of dimensions."""
    rank = dims.count(",") + 1
    if len(x.dims) != rank:
        raise ShapeError(f"{layer} got {x}, which has {len(x.dims)} dimensions", f"[{dims}]")


def want_dim(x: Tensor, at: int, size: Any, layer: str, what: str) -> None:
    """Refuse a tensor that lacks a dimension, or in which it has surely another size."""
    if not x.dims:
        raise ShapeError(f"{layer} got {x}, which has no dimensions", f"a {what}")
    if same(x.dims[at], size) is False:
        raise ShapeError(f"{layer} got {x}: its {what} is {x.dims[at]}", f"{size}")


def want_float(x: Tensor, layer: str) -> None:
    """Refuse integers."""
    if x.dtype != "float":
        raise ShapeError(f"{layer} got {x}", "a float tensor")


def _unknown(value: Any) -> bool:
    return not isinstance(value, int | Dim)


def window(size: Dim | None, kernel: Any, stride: Any, padding: Any, layer: str, dilation: Any = 1) -> Dim | None:
    """Return the output size of a sliding window; an empty output is an error."""
    if size is None or any(_unknown(v) for v in (kernel, stride, padding, dilation)):
        return None
    if not (isinstance(stride, int) and stride > 0):
        return None
    reach = size + dim(padding) * 2 - dim(dilation) * (dim(kernel) - 1) - 1
    out = reach // stride + 1
    if out.constant is not None and out.constant < 1:
        message = f"{layer} has a window of {dim(dilation) * (dim(kernel) - 1) + 1} but the padded input has only "
        raise ShapeError(message + f"{size + dim(padding) * 2}", "an input as large as the window")
    return out


def _out(value: Any) -> Dim | None:
    return None if _unknown(value) else dim(value)


def _linear(v: Values, x: Tensor) -> Tensor:
    want_float(x, "Linear")
    want_dim(x, -1, v["inputs"], "Linear", "last dimension")
    return Tensor("float", (*x.dims[:-1], _out(v["outputs"])))


def _conv(name: str, rank: int, dims: str) -> Callable[[Values, Tensor], Tensor]:
    def shape(v: Values, x: Tensor) -> Tensor:
        want_float(x, name)
        want_rank(x, name, dims)
        want_dim(x, 1, v["inputs"], name, "channel count")
        space = (window(d, v["kernel"], v["stride"], v["padding"], name, v["dilation"]) for d in x.dims[2 : 2 + rank])
        return Tensor("float", (x.dims[0], _out(v["outputs"]), *space))

    return shape


def _conv_check(v: Values) -> None:
    for side in ("inputs", "outputs"):
        if isinstance(v["groups"], int) and isinstance(v[side], int) and v["groups"] > 0 and v[side] % v["groups"]:
            raise ShapeError(f"{v[side]} {side} cannot be divided into {v['groups']} groups", "a divisor")


def _norm(name: str, at: int, ranks: tuple[int, ...]) -> Callable[[Values, Tensor], Tensor]:
    def shape(v: Values, x: Tensor) -> Tensor:
        want_float(x, name)
        if ranks and len(x.dims) not in ranks:
            wanted = " or ".join(map(str, ranks))
            raise ShapeError(f"{name} got {x}, which has {len(x.dims)} dimensions", f"{wanted} dimensions")
        want_dim(x, at, v["features"], name, "channel count" if at == 1 else "last dimension")
        return x

    return shape


def _pool(name: str, dims: str) -> Callable[[Values, Tensor], Tensor]:
    def shape(v: Values, x: Tensor) -> Tensor:
        want_float(x, name)
        want_rank(x, name, dims)
        kernel, padding = v["kernel"], v["padding"]
        stride = kernel if v["stride"] == 0 else v["stride"]
        if isinstance(kernel, int) and isinstance(padding, int) and padding * 2 > kernel:
            raise ShapeError(f"{name} has padding {padding} for a window of {kernel}", f"at most {kernel // 2}")
        return Tensor("float", (*x.dims[:2], *(window(d, kernel, stride, padding, name) for d in x.dims[2:])))

    return shape


def _float_through(name: str) -> Callable[[Values, Tensor], Tensor]:
    def shape(_: Values, x: Tensor) -> Tensor:
        want_float(x, name)
        return x

    return shape


def _embedding(v: Values, x: Tensor) -> Tensor:
    if x.dtype != "int":
        raise ShapeError(f"Embedding got {x}", "an int tensor of indices")
    return Tensor("float", (*x.dims, _out(v["features"])))


def product(dims: tuple[Dim | None, ...]) -> Dim | None:
    """Return the number of elements, None if a dim is not known."""
    total = dim(1)
    for d in dims:
        if d is None:
            return None
        total = total * d
    return total


def axis(x: Tensor, index: Any, what: str) -> int:
    """Return a dimension's index counted from the front, if the tensor has it."""
    if not isinstance(index, int):
        if isinstance(index, Dim):
            raise ShapeError(f"{what} needs a dimension with a fixed number")
        raise UndecidedError
    if not -len(x.dims) <= index < len(x.dims):
        raise ShapeError(f"{what} got dimension {index} of {x}", f"{-len(x.dims)} to {len(x.dims) - 1}")
    return index % len(x.dims)


def _flatten(x: Tensor, start: Any) -> Tensor:
    at = axis(x, start, "flatten")
    return Tensor(x.dtype, (*x.dims[:at], product(x.dims[at:])))


def _probability(v: Values) -> None:
    if isinstance(v["p"], int | float) and not 0 <= v["p"] < 1:
        raise ShapeError(f"Dropout with p = {v['p']}", "0 <= p < 1")


_I, _O = Arg("inputs", "int", positive=True), Arg("outputs", "int", positive=True)
_BIAS = Arg("bias", "bool", True)
_CONV = (
    _I,
    _O,
    Arg("kernel", "int", torch="kernel_size", positive=True),
    Arg("stride", "int", 1, positive=True),
    Arg("padding", "int", 0),
    Arg("dilation", "int", 1, positive=True),
    Arg("groups", "int", 1, positive=True),
    _BIAS,
)
_FEATURES = Arg("features", "int", positive=True)
_POOL = (
    Arg("kernel", "int", torch="kernel_size", positive=True),
    Arg("stride", "int", 0, positive=True),  # 0 means the window's own size
    Arg("padding", "int", 0),
)
_EPS = Arg("eps", "float", 1e-5)

LAYERS: dict[str, LayerSpec] = {
    spec.name: spec
    for spec in (
        LayerSpec("Linear", (_I, _O, _BIAS), _linear, "nn.Linear", "TernaryLinear"),
        LayerSpec("Conv1d", _CONV, _conv("Conv1d", 1, "N, C, L"), "nn.Conv1d", "TernaryConv1d", _conv_check),
        LayerSpec("Conv2d", _CONV, _conv("Conv2d", 2, "N, C, H, W"), "nn.Conv2d", "TernaryConv2d", _conv_check),
        LayerSpec(
            "Embedding",
            (Arg("count", "int", positive=True), _FEATURES),
            _embedding,
            "nn.Embedding",
            "TernaryEmbedding",
        ),
        LayerSpec("BatchNorm1d", (_FEATURES, _EPS), _norm("BatchNorm1d", 1, (2, 3)), "nn.BatchNorm1d"),
        LayerSpec("BatchNorm2d", (_FEATURES, _EPS), _norm("BatchNorm2d", 1, (4,)), "nn.BatchNorm2d"),
        LayerSpec("LayerNorm", (_FEATURES, _EPS), _norm("LayerNorm", -1, ()), "nn.LayerNorm"),
        LayerSpec("RMSNorm", (_FEATURES, _EPS), _norm("RMSNorm", -1, ()), "nn.RMSNorm"),
        LayerSpec("Dropout", (Arg("p", "float", 0.5),), _float_through("Dropout"), "nn.Dropout", "", _probability),
        LayerSpec("MaxPool1d", _POOL, _pool("MaxPool1d", "N, C, L"), "nn.MaxPool1d"),
        LayerSpec("MaxPool2d", _POOL, _pool("MaxPool2d", "N, C, H, W"), "nn.MaxPool2d"),
        LayerSpec("AvgPool2d", _POOL, _pool("AvgPool2d", "N, C, H, W"), "nn.AvgPool2d"),
        LayerSpec(
            "Flatten", (Arg("start", "int", 1, "start_dim"),), lambda v, x: _flatten(x, v["start"]), "nn.Flatten"
        ),
        LayerSpec("Identity", (), lambda _, x: x, "nn.Identity"),
        *(LayerSpec(n, (), _float_through(n), f"nn.{n}") for n in ("ReLU", "ReLU6", "GELU", "SiLU", "Sigmoid", "Tanh")),
    )
}

TERNARY_OPTIONS = tuple(Arg(f.name, str(f.type), f.default) for f in fields(QuantizerOptions))

_X = Arg("x", "tensor")


def _activation(v: Values) -> Tensor:
    want_float(v["x"], "this function")
    return Tensor("float", v["x"].dims)


def _softmax(v: Values) -> Tensor:
    axis(v["x"], v["dim"], "softmax")
    return _activation(v)


def _global_pool(v: Values) -> Tensor:
    if len(v["x"].dims) < 3:
        raise ShapeError(f"global_avg_pool got {v['x']}", "[N, C, L] or [N, C, H, W]")
    return Tensor("float", v["x"].dims[:2])


def _reshape(v: Values) -> Tensor:
    before, after = product(v["x"].dims), product(v["shape"])
    if same(before, after) is False:
        raise ShapeError(f"reshape of {v['x']} with {before} elements to {after}", f"a shape with {before} elements")
    return Tensor(v["x"].dtype, v["shape"])


def _expand(v: Values) -> Tensor:
    x, shape = v["x"], v["shape"]
    if len(x.dims) > len(shape):
        raise ShapeError(f"expand of {x} to {len(shape)} dimensions", f"at least {len(x.dims)} dimensions")
    padded = (None,) * (len(shape) - len(x.dims)) + x.dims
    for a, b in zip(padded, shape, strict=True):
        if a is not None and a.constant != 1 and same(a, b) is False:
            raise ShapeError(f"expand of {x}: {a} cannot become {b}", "1 or the same size")
    return Tensor(x.dtype, shape)


def _transpose(v: Values) -> Tensor:
    dims = list(v["x"].dims)
    a, b = axis(v["x"], v["first"], "transpose"), axis(v["x"], v["second"], "transpose")
    dims[a], dims[b] = dims[b], dims[a]
    return Tensor(v["x"].dtype, tuple(dims))


def _concat(v: Values) -> Tensor:
    parts: list[Tensor] = v["parts"]
    if not parts:
        raise ShapeError("concat of nothing", "one tensor or more")
    at = axis(parts[0], v["dim"], "concat")
    total: Dim | None = dim(0)
    for part in parts:
        if len(part.dims) != len(parts[0].dims) or part.dtype != parts[0].dtype:
            raise ShapeError(f"concat of {parts[0]} and {part}", "the same type and number of dimensions")
        for i, (a, b) in enumerate(zip(parts[0].dims, part.dims, strict=True)):
            if i != at and same(a, b) is False:
                raise ShapeError(f"concat of {parts[0]} and {part} along dimension {at}", f"{a} in dimension {i}")
        size = part.dims[at]
        total = None if total is None or size is None else total + size
    return Tensor(parts[0].dtype, (*parts[0].dims[:at], total, *parts[0].dims[at + 1 :]))


def _mean(v: Values) -> Tensor:
    want_float(v["x"], "mean")
    at = axis(v["x"], v["dim"], "mean")
    return Tensor("float", (*v["x"].dims[:at], *v["x"].dims[at + 1 :]))


def _select(v: Values) -> Tensor:
    at = axis(v["x"], v["dim"], "select")
    size = v["x"].dims[at]
    if (
        isinstance(v["index"], int)
        and size is not None
        and size.constant is not None
        and not (-size.constant <= v["index"] < size.constant)
    ):
        raise ShapeError(f"select of index {v['index']} from {v['x']}", f"below {size}")
    return Tensor(v["x"].dtype, (*v["x"].dims[:at], *v["x"].dims[at + 1 :]))


def broadcast(a: Tensor, b: Tensor, op: str) -> Tensor:
    """Return the shape of an elementwise operation on two tensors."""
    if a.dtype != b.dtype:
        raise ShapeError(f"'{op}' of {a} and {b}", "the same type on both sides")
    rank = max(len(a.dims), len(b.dims))
    left = (dim(1),) * (rank - len(a.dims)) + a.dims
    right = (dim(1),) * (rank - len(b.dims)) + b.dims
    out: list[Dim | None] = []
    for x, y in zip(left, right, strict=True):
        if x is not None and x.constant == 1:
            out.append(y)
        elif y is not None and y.constant == 1:
            out.append(x)
        elif same(x, y) is False:
            raise ShapeError(f"'{op}' of {a} and {b}: {x} is not {y}", "equal shapes (or 1)")
        else:
            out.append(x if x is not None else y)
    return Tensor(a.dtype, tuple(out))


def matmul(a: Tensor, b: Tensor) -> Tensor:
    """Return the shape of a batched matrix product."""
    want_float(a, "'@'")
    want_float(b, "'@'")
    if len(a.dims) < 2 or len(b.dims) < 2:
        raise ShapeError(f"'@' of {a} and {b}", "two matrices (2 dimensions or more)")
    if same(a.dims[-1], b.dims[-2]) is False:
        raise ShapeError(f"'@' of {a} and {b}: {a.dims[-1]} is not {b.dims[-2]}", "the inner sizes equal")
    batch = broadcast(Tensor("float", a.dims[:-2]), Tensor("float", b.dims[:-2]), "@").dims
    return Tensor("float", (*batch, a.dims[-2], b.dims[-1]))


def _attention(v: Values) -> Tensor:
    q, k, value = v["query"], v["key"], v["value"]
    want_rank(q, "attention", "N, heads, T, D")
    scores = matmul(q, _transpose({"x": k, "first": -1, "second": -2}) if len(k.dims) > 1 else k)
    return matmul(scores, value)


FUNCTIONS: dict[str, FunctionSpec] = {
    spec.name: spec
    for spec in (
        *(
            FunctionSpec(n, (_X,), _activation, f"functional.{n}")
            for n in ("relu", "relu6", "gelu", "silu", "sigmoid", "tanh")
        ),
        FunctionSpec("softmax", (_X, Arg("dim", "int", -1)), _softmax, "functional.softmax"),
        FunctionSpec(
            "max_pool2d",
            (_X, *_POOL),
            lambda v: _pool("max_pool2d", "N, C, H, W")(v, v["x"]),
            "functional.max_pool2d",
        ),
        FunctionSpec(
            "avg_pool2d",
            (_X, *_POOL),
            lambda v: _pool("avg_pool2d", "N, C, H, W")(v, v["x"]),
            "functional.avg_pool2d",
        ),
        FunctionSpec("global_avg_pool", (_X,), _global_pool, ".flatten(2).mean"),
        FunctionSpec("flatten", (_X, Arg("start", "int", 1)), lambda v: _flatten(v["x"], v["start"]), ".flatten"),
        FunctionSpec("reshape", (_X, Arg("shape", "dims")), _reshape, ".reshape"),
        FunctionSpec("expand", (_X, Arg("shape", "dims")), _expand, ".expand"),
        FunctionSpec("transpose", (_X, Arg("first", "int"), Arg("second", "int")), _transpose, ".transpose"),
        FunctionSpec("concat", (Arg("parts", "tensors"), Arg("dim", "int", 1)), _concat, "torch.cat"),
        FunctionSpec("mean", (_X, Arg("dim", "int")), _mean, ".mean"),
        FunctionSpec("select", (_X, Arg("dim", "int"), Arg("index", "int")), _select, ".select"),
        FunctionSpec(
            "attention",
            (
                Arg("query", "tensor"),
                Arg("key", "tensor"),
                Arg("value", "tensor"),
                Arg("causal", "bool", False, "is_causal"),
            ),
            _attention,
            "functional.scaled_dot_product_attention",
        ),
    )
}

# Functions on constants: argument types and the type of the result ('same' is that of the arguments).
CONSTANT_FUNCTIONS = {
    "max": (("number", "number"), "same"),
    "min": (("number", "number"), "same"),
    "round": (("number",), "int"),
    "int": (("number",), "int"),
    "float": (("number",), "float"),
    "divisible": (("number", "int"), "int"),
}
