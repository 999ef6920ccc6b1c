"""The layers and functions that every program can use: their arguments, shape rules and PyTorch names."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
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
    """One argument; its type is int, sizes (an int or a list of two), float, bool, str, tensor, tensors or dims."""

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


def each(value: Any, at: int) -> Any:
    """Return the size for one of the dimensions of space: a list has one for each."""
    if not isinstance(value, tuple):
        return value
    return value[at] if at < len(value) else None


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
        space = (
            window(
                d, each(v["kernel"], at), each(v["stride"], at), each(v["padding"], at), name, each(v["dilation"], at)
            )
            for at, d in enumerate(x.dims[2 : 2 + rank])
        )
        return Tensor("float", (x.dims[0], _out(v["outputs"]), *space))

    return shape


def _transposed(name: str, dims: str) -> Callable[[Values, Tensor], Tensor]:
    def shape(v: Values, x: Tensor) -> Tensor:
        want_float(x, name)
        want_rank(x, name, dims)
        want_dim(x, 1, v["inputs"], name, "channel count")
        sizes = [_spread(d, v, at, name) for at, d in enumerate(x.dims[2:])]
        return Tensor("float", (x.dims[0], _out(v["outputs"]), *sizes))

    return shape


def _spread(size: Dim | None, v: Values, at: int, layer: str) -> Dim | None:
    """Return the output size of a transposed convolution, whose window slides over the output."""
    kernel, stride, padding, extra, dilation = (
        each(v[w], at) for w in ("kernel", "stride", "padding", "extra", "dilation")
    )
    if size is None or any(_unknown(a) for a in (kernel, stride, padding, extra, dilation)):
        return None
    out = (size - 1) * dim(stride) - dim(padding) * 2 + dim(dilation) * (dim(kernel) - 1) + dim(extra) + 1
    if out.constant is not None and out.constant < 1:
        raise ShapeError(f"{layer} leaves nothing of an input of {size}", "a smaller padding")
    return out


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


def pool_shape(name: str, dims: str) -> Callable[[Values, Tensor], Tensor]:
    def shape(v: Values, x: Tensor) -> Tensor:
        want_float(x, name)
        want_rank(x, name, dims)
        steps = v["kernel"] if v["stride"] == 0 else v["stride"]
        space = []
        for at, size in enumerate(x.dims[2:]):
            kernel, padding = each(v["kernel"], at), each(v["padding"], at)
            if isinstance(kernel, int) and isinstance(padding, int) and padding * 2 > kernel:
                raise ShapeError(f"{name} has padding {padding} for a window of {kernel}", f"at most {kernel // 2}")
            space.append(window(size, kernel, each(steps, at), padding, name))
        return Tensor("float", (*x.dims[:2], *space))

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


def flatten_shape(x: Tensor, start: Any) -> Tensor:
    at = axis(x, start, "flatten")
    return Tensor(x.dtype, (*x.dims[:at], product(x.dims[at:])))


def _probability(v: Values) -> None:
    if isinstance(v["p"], int | float) and not 0 <= v["p"] < 1:
        raise ShapeError(f"Dropout with p = {v['p']}", "0 <= p < 1")


def _transposed_check(v: Values) -> None:
    _conv_check(v)
    for at in range(2):
        extra, stride, dilation = (each(v[w], at) for w in ("extra", "stride", "dilation"))
        if all(isinstance(a, int) for a in (extra, stride, dilation)) and extra >= max(stride, dilation):
            raise ShapeError(f"extra = {extra} with a stride of {stride}", "less than the stride or the dilation")


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
_CONV2 = tuple(replace(a, type="sizes") if a.name in ("kernel", "stride", "padding", "dilation") else a for a in _CONV)


def _transposing(args: tuple[Arg, ...]) -> tuple[Arg, ...]:
    """The arguments of a transposed convolution, in torch's order."""
    *first, dilation, groups, bias = args
    return (*first, Arg("extra", first[2].type, 0, "output_padding"), groups, bias, dilation)


_FEATURES = Arg("features", "int", positive=True)
_POOL = (
    Arg("kernel", "int", torch="kernel_size", positive=True),
    Arg("stride", "int", 0, positive=True),  # 0 means the window's own size
    Arg("padding", "int", 0),
)
POOL2 = tuple(replace(a, type="sizes") for a in _POOL)
_EPS = Arg("eps", "float", 1e-5)

LAYERS: dict[str, LayerSpec] = {
    spec.name: spec
    for spec in (
        LayerSpec("Linear", (_I, _O, _BIAS), _linear, "nn.Linear", "TernaryLinear"),
        LayerSpec("Conv1d", _CONV, _conv("Conv1d", 1, "N, C, L"), "nn.Conv1d", "TernaryConv1d", _conv_check),
        LayerSpec("Conv2d", _CONV2, _conv("Conv2d", 2, "N, C, H, W"), "nn.Conv2d", "TernaryConv2d", _conv_check),
        LayerSpec(
            "ConvTranspose1d",
            _transposing(_CONV),
            _transposed("ConvTranspose1d", "N, C, L"),
            "nn.ConvTranspose1d",
            check=_transposed_check,
        ),
        LayerSpec(
            "ConvTranspose2d",
            _transposing(_CONV2),
            _transposed("ConvTranspose2d", "N, C, H, W"),
            "nn.ConvTranspose2d",
            check=_transposed_check,
        ),
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
        LayerSpec("MaxPool1d", _POOL, pool_shape("MaxPool1d", "N, C, L"), "nn.MaxPool1d"),
        LayerSpec("MaxPool2d", POOL2, pool_shape("MaxPool2d", "N, C, H, W"), "nn.MaxPool2d"),
        LayerSpec("AvgPool2d", POOL2, pool_shape("AvgPool2d", "N, C, H, W"), "nn.AvgPool2d"),
        LayerSpec(
            "Flatten", (Arg("start", "int", 1, "start_dim"),), lambda v, x: flatten_shape(x, v["start"]), "nn.Flatten"
        ),
        LayerSpec("Identity", (), lambda _, x: x, "nn.Identity"),
        *(LayerSpec(n, (), _float_through(n), f"nn.{n}") for n in ("ReLU", "ReLU6", "GELU", "SiLU", "Sigmoid", "Tanh")),
    )
}

TERNARY_OPTIONS = tuple(Arg(f.name, str(f.type), f.default) for f in fields(QuantizerOptions))

# Functions on constants: argument types and the type of the result ('same' is that of the arguments).
CONSTANT_FUNCTIONS = {
    "max": (("number", "number"), "same"),
    "min": (("number", "number"), "same"),
    "round": (("number",), "int"),
    "int": (("number",), "int"),
    "float": (("number",), "float"),
    "divisible": (("number", "int"), "int"),
}
