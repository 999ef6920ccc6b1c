"""The operators torch.ops.ternary.linear and conv2d: checks, the choice of a kernel, shapes for the compiler."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ternary._torch_private import version_of
from ternary.errors import KernelUnavailableError, LayerShapeError
from ternary.runtime import _fallback as fallback
from ternary.runtime import _gpu as gpu
from ternary.runtime import _native as native
from ternary.runtime._face import check_codes
from ternary.runtime._layout import Geometry, tile_shape

__all__ = [
    "KERNELS",
    "LIBRARY",
    "TRITON",
    "check_kernel",
    "check_linear",
    "check_once",
    "check_size",
    "one_by_one",
    "without_autocast",
]

TRITON = ("triton", "triton-split")
"""Names of the kernels for CUDA; the second also shares the columns of a single row among programs."""

KERNELS = ("auto", "torch", *native.PATHS, *TRITON)
"""Every name that a `kernel` argument may have on some machine."""

# The argument is called path: torch.compile keeps the name kernel for itself.
# Library, not the custom_op decorator, which costs some 30 us a call.
LIBRARY = torch.library.Library("ternary", "DEF")  # type: ignore[no-untyped-call]
LIBRARY.define(  # type: ignore[no-untyped-call]
    "linear(Tensor x, Tensor weight, Tensor scale, Tensor? bias=None, str path='auto', int threads=0) -> Tensor",
    tags=(torch.Tag.pt2_compliant_tag, torch.Tag.needs_contiguous_strides),
)
LIBRARY.define(  # type: ignore[no-untyped-call]
    "conv2d(Tensor x, Tensor weight, Tensor scale, Tensor? bias, int[2] kernel_size, int[2] stride, int[2] padding, "
    "int[2] dilation, int groups, str path='auto', int threads=0) -> Tensor",
    tags=(torch.Tag.pt2_compliant_tag,),
)


def check_kernel(kernel: str) -> str:
    """Any known name is taken here: a layer may be built on one machine and run on another."""
    if kernel not in KERNELS:
        raise LayerShapeError(f"got kernel={kernel!r}, wanted one of {', '.join(KERNELS)}")
    return kernel


def check_linear(x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None) -> None:
    """Raise LayerShapeError unless the parts are those of a packed linear layer and an input that fits it."""
    _check_parts(x, weight, scale, bias)
    if x.dim() == 0:
        raise LayerShapeError("got an input without dimensions, wanted (..., K)")
    k = x.shape[-1]
    wanted = tile_shape(scale.shape[0], k, bits=native.bits_of(weight))
    if weight.shape != wanted:
        raise LayerShapeError(
            f"got an input with {k} features and weights of shape {tuple(weight.shape)}; "
            f"{k} -> {scale.shape[0]} features take {wanted}"
        )


def check_size(x: Tensor, axis: int, wanted: int) -> None:
    """Raise LayerShapeError if an input has other features or channels than the layer.

    The packed weight alone does not tell: tiles of 16 columns are filled up with zeros.
    """
    if not isinstance(x, Tensor) or torch.jit.is_tracing():  # type: ignore[attr-defined,no-untyped-call]
        return  # a trace would record the comparison; torch.fx traces with what is no tensor
    if x.dim() >= -axis and x.shape[axis] != wanted:
        what = "features" if axis == -1 else "channels"
        raise LayerShapeError(f"got an input of shape {tuple(x.shape)}, {x.shape[axis]} {what}; wanted {wanted}")


def _check_conv(x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None, geometry: Geometry) -> None:
    _check_parts(x, weight, scale, bias)
    if x.dim() != 4:
        raise LayerShapeError(f"got an input of shape {tuple(x.shape)}, wanted (batch, channels, height, width)")
    channels, out, groups = x.shape[1], scale.shape[0], geometry.groups
    if groups < 1 or channels % groups or out % groups:
        raise LayerShapeError(f"got {groups} groups for {channels} input and {out} output channels")
    wanted = geometry.weight_shape(channels, out, bits=native.bits_of(weight))
    if weight.shape != wanted:
        raise LayerShapeError(
            f"got an input with {channels} channels and weights of shape {tuple(weight.shape)}; "
            f"{channels} -> {out} channels, kernel {geometry.kernel_size}, {groups} groups take {wanted}"
        )


def _number(path: str, weight: Tensor, columns: int) -> int:
    """Return the number of a native path; -1 for plain torch, which also sums more 8-bit columns than 32 bits hold."""
    return -1 if weight.dtype == torch.int8 and columns > _MOST_BYTES else native.path_number(path)


def without_autocast(compute: Callable[..., Tensor], x: Tensor, *arguments: Any) -> Tensor:
    """Call a kernel made of torch's operators in the types that it chose: half precision would round its integers."""
    with torch.autocast(x.device.type, enabled=False):
        return compute(x, *arguments)


_checked: dict[tuple[int, int], tuple[int, weakref.ref[Tensor]]] = {}
_MOST_CHECKED = 4096
_MOST_BYTES = 66_000


def check_once(weight: Tensor) -> None:
    """Check the codes of a weight once, and again after a change in place, which torch counts.

    Torch counts no changes of a tensor made in inference mode: such a tensor is checked once.
    """
    if weight.dtype != torch.uint8:
        return
    key = (weight.data_ptr(), weight.numel())
    version = version_of(weight)
    known = _checked.get(key)
    if known is not None and known[0] == version and (version >= 0 or known[1]() is weight):
        return
    if weight.is_cuda:
        gpu.refuse_capture()  # the check waits for the device
    check_codes(weight)
    if len(_checked) >= _MOST_CHECKED:
        _checked.clear()
    _checked[key] = version, weakref.ref(weight)


def _check_parts(x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None) -> None:
    """What the native core relies on: dtypes, one dimension of scales, one device, no gaps."""
    if not x.is_floating_point():
        raise LayerShapeError(f"got an input of dtype {x.dtype}, wanted a floating-point one")
    n = scale.shape[0] if scale.dim() == 1 else -1
    device = x.device
    fits = weight.dtype in (torch.uint8, torch.int8) and weight.device == device and weight.is_contiguous()
    fits = fits and n >= 0 and scale.dtype == torch.float32 and scale.device == device and scale.is_contiguous()
    if bias is not None:
        fits = fits and bias.shape == (n,) and bias.dtype == torch.float32
        fits = fits and bias.device == device and bias.is_contiguous()
    if not fits:
        parts = {"x": x, "weight": weight, "scale": scale, "bias": bias}
        got = ", ".join(f"{k}: {t.dtype} {tuple(t.shape)} on {t.device}" for k, t in parts.items() if t is not None)
        raise LayerShapeError(
            f"got {got}; wanted contiguous uint8 or int8 weight, float32 (N,) scale and bias, on one device"
        )
    check_once(weight)


def _linear_cpu(
    x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None = None, path: str = "auto", threads: int = 0
) -> Tensor:
    check_linear(x, weight, scale, bias)
    # The usual input goes straight through: at batch 1 every call here is a percent of the time.
    plain = x.dtype == torch.float32 and x.dim() == 2 and x.is_contiguous()
    rows = x if plain else x.reshape(x.shape[:-1].numel(), x.shape[-1]).float().contiguous()
    if path in TRITON:
        y = gpu.linear(rows, weight, scale, bias, split=path == "triton-split")
    elif (number := _number(path, weight, x.shape[-1])) < 0:
        y = without_autocast(fallback.linear, rows, weight, scale, bias)
    else:
        y = native.linear(rows, weight, scale, bias, number, threads or torch.get_num_threads())
    return y if plain else y.to(x.dtype).reshape(*x.shape[:-1], scale.shape[0])


def on_triton(path: str, dtype: torch.dtype, device: torch.device, product: str = "linear") -> bool:
    """Return whether a device other than the CPU computes a product, "linear" or "conv2d", by the Triton kernels.

    Raises:
        KernelUnavailableError: The path is one of Triton, and the device cannot use it.
    """
    if path in TRITON and device.type == "cuda":
        split = path == "triton-split" and product == "linear"
        reason = gpu.why_not(device, product) or (gpu.why_not(device, "split") if split else None)
        if reason:
            raise KernelUnavailableError(f'got kernel="{path}": {reason}; use "auto" or "torch"')
    if path == "auto":
        return dtype == torch.uint8 and device.type == "cuda" and gpu.why_not(device, product) is None
    return path in TRITON


def _linear_elsewhere(
    x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None = None, path: str = "auto", threads: int = 0
) -> Tensor:
    del threads  # of the native core
    check_linear(x, weight, scale, bias)
    if on_triton(path, weight.dtype, x.device):
        plain = x if x.dtype in gpu.DTYPES else x.float()
        y = gpu.linear(plain.contiguous(), weight, scale, bias, split=path == "triton-split")
        return y if y.dtype == x.dtype else y.to(x.dtype)
    rows = x.reshape(x.shape[:-1].numel(), x.shape[-1]).float().contiguous()
    y = without_autocast(fallback.linear, rows, weight, scale, bias)
    return y.to(x.dtype).reshape(*x.shape[:-1], scale.shape[0])


def _linear_shape(
    x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None = None, path: str = "auto", threads: int = 0
) -> Tensor:
    del weight, bias, path, threads  # the shape does not depend on them
    return x.new_empty((*x.shape[:-1], scale.shape[0]))


def _conv2d(
    x: Tensor,
    weight: Tensor,
    scale: Tensor,
    bias: Tensor | None,
    kernel_size: list[int],
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
    path: str = "auto",
    threads: int = 0,
) -> Tensor:
    geometry = Geometry.of(kernel_size, stride, padding, dilation, groups)
    _check_conv(x, weight, scale, bias, geometry)
    unusable = min(*stride, *dilation, *kernel_size) < 1 or min(padding) < 0
    if unusable or min(geometry.out_size(x.shape[2], x.shape[3])) < 1:
        raise LayerShapeError(
            f"got an input of {x.shape[2]} x {x.shape[3]}, too small for kernel {geometry.kernel_size}, stride "
            f"{geometry.stride}, padding {geometry.padding}, dilation {geometry.dilation}"
        )
    if path in TRITON if x.device.type == "cpu" else on_triton(path, weight.dtype, x.device, "conv2d"):
        plain = x if x.is_cuda and x.dtype in gpu.DTYPES else x.float()  # the interpreter does not round to bfloat16
        return gpu.conv2d(plain, weight, scale, bias, geometry).to(x.dtype)
    columns = geometry.taps * x.shape[1] // geometry.groups
    number = -1 if x.device.type != "cpu" else _number(path, weight, columns)
    if number < 0:
        y = _strided(without_autocast(fallback.conv2d, x.float(), weight, scale, bias, geometry))
    else:
        image = x.float().contiguous(memory_format=torch.channels_last)
        y = native.conv2d(image, weight, scale, bias, geometry, number, threads or torch.get_num_threads())
    return y.to(x.dtype)


def _strided(y: Tensor) -> Tensor:
    """Channels last with one stride only for each dimension, those of size 1 too.

    A memory format leaves these open, but convolutions go by them, and torch.compile plans with the fake kernel's.
    """
    channels, height, width = max(y.shape[1], 1), y.shape[2], y.shape[3]
    strides = (height * width * channels, 1, width * channels, channels)
    return y.contiguous(memory_format=torch.channels_last).as_strided(y.shape, strides)


def _conv2d_shape(
    x: Tensor,
    weight: Tensor,
    scale: Tensor,
    bias: Tensor | None,
    kernel_size: list[int],
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
    path: str = "auto",
    threads: int = 0,
) -> Tensor:
    del weight, bias, path, threads  # the shape does not depend on them
    geometry = Geometry.of(kernel_size, stride, padding, dilation, groups)
    height, width = geometry.out_size(x.shape[2], x.shape[3])
    return x.new_empty((x.shape[0], height, width, scale.shape[0])).permute(0, 3, 1, 2)


def _map_linear(info: Any, in_dims: tuple[Any, ...], x: Tensor, *rest: Any) -> tuple[Tensor, int]:
    """The rule of torch.func.vmap: each row is a product of its own, so more rows are one call."""
    if in_dims[0] is None or any(dim is not None for dim in in_dims[1:4]):
        return one_by_one(torch.ops.ternary.linear, info.batch_size, in_dims, (x, *rest))
    return torch.ops.ternary.linear(x.movedim(in_dims[0], 0), *rest), 0


def _map_conv2d(info: Any, in_dims: tuple[Any, ...], x: Tensor, *rest: Any) -> tuple[Tensor, int]:
    """The same for images: more of them are a larger batch."""
    if in_dims[0] is None or any(dim is not None for dim in in_dims[1:4]):
        return one_by_one(torch.ops.ternary.conv2d, info.batch_size, in_dims, (x, *rest))
    images = x.movedim(in_dims[0], 0)
    made = torch.ops.ternary.conv2d(images.flatten(0, 1), *rest)
    return made.unflatten(0, images.shape[:2]), 0


def one_by_one(
    op: Callable[..., Tensor], count: int, in_dims: tuple[Any, ...], arguments: tuple[Any, ...]
) -> tuple[Tensor, int]:
    """Call an operator for each of several weights."""
    tensors = list(zip(arguments[:4], in_dims[:4], strict=True))
    calls = [[t if dim is None else t.select(dim, i) for t, dim in tensors] for i in range(count)]
    return torch.stack([op(*(t if t is None else t.contiguous() for t in one), *arguments[4:]) for one in calls]), 0


LIBRARY.impl("linear", _linear_cpu, "CPU")  # type: ignore[no-untyped-call]
LIBRARY.impl("linear", _linear_elsewhere, "CUDA")  # type: ignore[no-untyped-call]
LIBRARY.impl("linear", _linear_elsewhere, "CompositeExplicitAutograd")  # type: ignore[no-untyped-call]
LIBRARY.impl("conv2d", _conv2d, "CompositeExplicitAutograd")  # type: ignore[no-untyped-call]
torch.library.register_fake("ternary::linear", _linear_shape, lib=LIBRARY)
torch.library.register_fake("ternary::conv2d", _conv2d_shape, lib=LIBRARY)
torch.library.register_vmap("ternary::linear", _map_linear, lib=LIBRARY)
torch.library.register_vmap("ternary::conv2d", _map_conv2d, lib=LIBRARY)
