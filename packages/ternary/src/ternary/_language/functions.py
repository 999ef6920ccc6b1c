"""The functions that a forward can use: their arguments, shape rules and PyTorch names."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ternary._language.dims import Dim, dim
from ternary._language.library import (
    POOL2,
    Arg,
    ShapeError,
    Tensor,
    Values,
    axis,
    flatten_shape,
    pool_shape,
    product,
    same,
    want_float,
    want_rank,
)


@dataclass(frozen=True, slots=True)
class FunctionSpec:
    """A built-in function on tensors.

    `torch` is a dotted function, a method if it starts with a dot, or a function of `ternary.nn` if with `ternary.`.
    """

    name: str
    args: tuple[Arg, ...]
    shape: Callable[[Values], Tensor]
    torch: str


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


def _grouped(q: Tensor, k: Tensor, value: Tensor) -> Tensor:
    """Return the shape of an attention in which several heads of the query share one of key and value."""
    for x in (k, value):
        want_rank(x, "attention", "N, heads, T, D")
    heads, shared = q.dims[1], k.dims[1]
    if same(shared, value.dims[1]) is False:
        raise ShapeError(f"attention of {shared} heads of keys and {value.dims[1]} of values", "as many")
    many, few = (None if d is None else d.constant for d in (heads, shared))
    if many is not None and few is not None and (few < 1 or many % few):
        raise ShapeError(f"attention of {heads} heads in groups of {shared}", f"a divisor of {heads} heads")
    one = [Tensor("float", (x.dims[0], dim(1), *x.dims[2:])) for x in (q, k, value)]
    out = matmul(matmul(one[0], _transpose({"x": one[1], "first": -1, "second": -2})), one[2])
    return Tensor("float", (out.dims[0], heads, *out.dims[2:]))


def _rotary(v: Values) -> Tensor:
    x: Tensor = v["x"]
    want_float(x, "rotary")
    if len(x.dims) < 2:
        raise ShapeError(f"rotary got {x}", "[..., T, D]")
    size = x.dims[-1]
    if size is not None and size.constant is not None and size.constant % 2:
        raise ShapeError(f"rotary got {x}: its last dimension is {size}", "an even one")
    if isinstance(v["base"], int | float) and v["base"] <= 0:
        raise ShapeError(f"rotary with base = {v['base']}", "a positive number")
    return x


def _attention(v: Values) -> Tensor:
    q, k, value = v["query"], v["key"], v["value"]
    want_rank(q, "attention", "N, heads, T, D")
    if v["grouped"] is not False:
        return _grouped(q, k, value)
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
            (_X, *POOL2),
            lambda v: pool_shape("max_pool2d", "N, C, H, W")(v, v["x"]),
            "functional.max_pool2d",
        ),
        FunctionSpec(
            "avg_pool2d",
            (_X, *POOL2),
            lambda v: pool_shape("avg_pool2d", "N, C, H, W")(v, v["x"]),
            "functional.avg_pool2d",
        ),
        FunctionSpec("global_avg_pool", (_X,), _global_pool, ".flatten(2).mean"),
        FunctionSpec("flatten", (_X, Arg("start", "int", 1)), lambda v: flatten_shape(v["x"], v["start"]), ".flatten"),
        FunctionSpec("reshape", (_X, Arg("shape", "dims")), _reshape, ".reshape"),
        FunctionSpec("expand", (_X, Arg("shape", "dims")), _expand, ".expand"),
        FunctionSpec("transpose", (_X, Arg("first", "int"), Arg("second", "int")), _transpose, ".transpose"),
        FunctionSpec("concat", (Arg("parts", "tensors"), Arg("dim", "int", 1)), _concat, "torch.cat"),
        FunctionSpec("mean", (_X, Arg("dim", "int")), _mean, ".mean"),
        FunctionSpec("select", (_X, Arg("dim", "int"), Arg("index", "int")), _select, ".select"),
        FunctionSpec("rotary", (_X, Arg("base", "float", 10000.0)), _rotary, "ternary.rotary"),
        FunctionSpec(
            "attention",
            (
                Arg("query", "tensor"),
                Arg("key", "tensor"),
                Arg("value", "tensor"),
                Arg("causal", "bool", False, "is_causal"),
                Arg("grouped", "bool", False, "enable_gqa"),
            ),
            _attention,
            "functional.scaled_dot_product_attention",
        ),
    )
}
