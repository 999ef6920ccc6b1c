"""Packed products by Triton, on CUDA and in Triton's interpreter on a CPU: which kernel runs, and its launch.

One row takes one launch, which quantizes it as well, also where programs share its columns. More rows take two: one
quantizes them, one multiplies on the tensor cores. A convolution takes three: the largest magnitudes of the images'
parts, quantization, products. A launch is prepared once for each shape: Triton's own way from arguments to a kernel
takes longer than the kernel does.
"""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from ternary._torch_private import current_stream
from ternary.errors import KernelUnavailableError
from ternary.runtime._layout import Geometry, is_depthwise, tile_shape
from ternary.runtime._split import Cut, Meeting, Split, processors_of, split_of

__all__ = ["DTYPES", "LOWEST", "conv2d", "is_available", "linear", "multiply", "refuse_capture", "why_not"]

LOWEST = (8, 0)
"""The compute capability from which on Triton compiles products of 8-bit integers; a T4 has 7.5, a V100 7.0."""

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
"""Activations that the kernels read and write as they are."""


ROW = Cut((2, 256), 8, 3)
"""Strips of weights, tiles along K; measured on an H200, as those below."""

QUANTIZE = Cut((256,), 4, 3)
"""Bytes of weights along K."""

FEW = Cut((16, 64, 64), 4, 3)
SOME = Cut((64, 64, 64), 4, 3)
MANY = Cut((64, 128, 64), 4, 3)
"""Rows, rows of weights, bytes of weights along K. Each fits in 99 KiB of shared memory, which every device has."""

IMAGE = Cut((1024,), 4, 3)
"""Values of an image at a time; its parts are at most as many as below."""

_MOST_PARTS = 256

PLACES = (Cut((128, 64), 4, 3), Cut((64, 64), 4, 3), Cut((32, 32), 4, 3), Cut((16, 16), 1, 3))
"""Places of the output, channels of the output. The first that makes enough programs to fill a device is taken; not yet
measured on one."""

_ENOUGH_PROGRAMS = 256

DEPTHWISE = Cut((32, 64), 4, 3)
"""Places, channels."""


def is_available() -> bool:
    """Whether Triton is installed."""
    return importlib.util.find_spec("triton") is not None


@functools.cache
def _kernels() -> Any:
    """The module of the kernels, imported at first use: importing triton takes a while and may fail."""
    if not is_available():
        raise KernelUnavailableError('got kernel="triton" without triton; pip install triton')
    from ternary.runtime import _triton_kernels

    return _triton_kernels


def why_not(device: torch.device, product: str = "linear") -> str | None:
    """Return why the kernels of "linear", "split" or "conv2d" cannot be used on a CUDA device; it uses each once."""
    if (device, product) not in _reasons:
        refuse_capture()
        _reasons[device, product] = _found_why_not(device, _CHECKS[product])
    return _reasons[device, product]


_reasons: dict[tuple[torch.device, str], str | None] = {}


def _linear_checks(device: torch.device) -> Iterable[tuple[Tensor, float]]:
    """Products by each kernel, and what each element of them must be."""
    tiles = torch.full(tile_shape(2, 20, bits=2), 0xAA, dtype=torch.uint8, device=device)  # all weights are 1
    ones = torch.ones(2, device=device)
    for rows in (1, 2):
        x = torch.full((rows, 20), 127.0, device=device)
        for _ in range(2):  # the second launch is a prepared one
            yield linear(x, tiles, ones, None), 2540.0


def _split_checks(device: torch.device) -> Iterable[tuple[Tensor, float]]:
    """A product of one row in three parts, again in the memory that the first one left."""
    tiles = torch.full(tile_shape(2, 1100, bits=2), 0xAA, dtype=torch.uint8, device=device)
    x = torch.full((1, 1100), 127.0, device=device)
    for _ in range(3):
        yield linear(x, tiles, torch.ones(2, device=device), None, split=True), 1100 * 127.0


def _conv2d_checks(device: torch.device) -> Iterable[tuple[Tensor, float]]:
    """The same of convolutions: dense ones with few and with many channels, grouped and depthwise ones."""
    for channels, groups in ((2, 1), (32, 1), (4, 2), (4, 4)):
        geometry = Geometry((3, 3), groups=groups)
        shape = geometry.weight_shape(channels, 4)
        weight = torch.full(shape, 0xAA, dtype=torch.uint8, device=device)
        x = torch.full((2, channels, 3, 3), 127.0, device=device)
        for _ in range(2):
            yield conv2d(x, weight, torch.ones(4, device=device), None, geometry), 9 * 127.0 * channels / groups


_CHECKS = {"linear": _linear_checks, "split": _split_checks, "conv2d": _conv2d_checks}


def _found_why_not(
    device: torch.device, checks: Callable[[torch.device], Iterable[tuple[Tensor, float]]]
) -> str | None:
    if not is_available():
        return "triton is not installed"
    capability = torch.cuda.get_device_capability(device)
    if capability < LOWEST:
        found, wanted = (".".join(map(str, version)) for version in (capability, LOWEST))
        return f"Triton needs compute capability {wanted} for 8-bit products, and {device} has {found}"
    try:
        for got, right in checks(device):
            if bool((got != right).any()):
                return f"wrong products on {device}: {got.tolist()}, wanted {right}"
    except Exception as error:
        return f"{type(error).__name__} on {device}: {(str(error).splitlines() or [''])[0]}"
    return None


def refuse_capture() -> None:
    """Raise `KernelUnavailableError` while a CUDA graph is captured: what follows waits for the device or compiles."""
    if torch.cuda.is_available() and torch.cuda.is_current_stream_capturing():
        raise KernelUnavailableError(
            "got a CUDA graph that captures the first call of a packed layer with an input of this shape; "
            "call the layer once before the capture"
        )


def _refuse_cpu(x: Tensor) -> None:
    """Raise `KernelUnavailableError` for an input on the CPU, but in Triton's interpreter."""
    kernels = _kernels()
    from triton import JITFunction

    if not x.is_cuda and isinstance(kernels.row_products, JITFunction):
        raise KernelUnavailableError(
            f'got kernel="triton" and an input on {x.device}, wanted one on a CUDA device; move it, or use "auto"'
        )


_Launch = Callable[[Tensor, int, int, int, int, int], None]
_prepared: dict[tuple[Any, ...], _Launch] = {}
_MOST_PREPARED = 4096


def linear(x: Tensor, tiles: Tensor, scale: Tensor, bias: Tensor | None, *, split: bool = False) -> Tensor:
    """(..., N) product of contiguous (..., K) with tiled weights, in x's dtype, which is one of DTYPES.

    With `split`, programs share the columns of a single row wherever that fills more of the device.
    """
    held = 0 if bias is None else bias.data_ptr()
    return multiply(x, tiles, scale, bias, (tiles.data_ptr(), scale.data_ptr(), held), split=split)


def multiply(
    x: Tensor,
    tiles: Tensor,
    scale: Tensor,
    bias: Tensor | None,
    addresses: tuple[int, int, int],
    *,
    split: bool = False,
) -> Tensor:
    """`linear`, with the addresses of weights, scale and bias."""
    shape = x.shape
    n, k, device = scale.shape[0], shape[-1], x.get_device()
    out = x.new_empty((*shape[:-1], n))
    rows = x.numel() // k if k else 0
    if not rows or not n:
        return out.zero_() if bias is None else out.copy_(bias.expand_as(out))
    at, to = x.data_ptr(), out.data_ptr()
    launch = _prepared.get((device, x.dtype, rows, n, k, bias is None, split))
    if launch is None or (at | addresses[0] | addresses[1] | addresses[2]) & 15:
        _prepare(out, x, tiles, scale, bias, split)
    elif device == torch.cuda.current_device():
        launch(x, at, *addresses, to)
    else:
        with torch.cuda.device(device):  # a launch goes to the current device
            launch(x, at, *addresses, to)
    return out


def _prepare(out: Tensor, x: Tensor, tiles: Tensor, scale: Tensor, bias: Tensor | None, split: bool) -> None:
    """Compute by Triton's own launch, which compiles, and keep the compiled kernels for further calls."""
    refuse_capture()
    _refuse_cpu(x)
    n, k, on_device = scale.shape[0], x.shape[-1], x.is_cuda
    rows = x.numel() // k
    parts = [part if part.data_ptr() % 16 == 0 else part.clone() for part in (x, tiles, scale)]
    held = parts[2] if bias is None else bias if bias.data_ptr() % 16 == 0 else bias.clone()
    given, weights, factors = parts

    def prepare() -> _Launch | None:
        if rows > 1:
            return _prepare_rows(out, given, weights, factors, held, rows, n, k, bias is not None)
        shared = _split_for(x.device, n, tiles.shape[1], split)
        if shared is None:
            return _prepare_row(out, given, weights, factors, held, n, k, bias is not None)
        return _prepare_split(out, given, weights, factors, held, n, k, bias is not None, shared)

    if not on_device:
        prepare()
        return
    with torch.cuda.device(x.device):
        launch = prepare()
    if launch is not None:
        _keep((x.get_device(), x.dtype, rows, n, k, bias is None, split), launch)


def _split_for(device: torch.device, n: int, k16: int, wanted: bool) -> Split | None:
    """Return how to share out the tiles of one row on a device; None where not, or where the device cannot."""
    shared = split_of(n, k16, processors_of(device), wanted=wanted)
    return shared if shared is None or wanted or device.type != "cuda" or why_not(device, "split") is None else None


def _keep(key: tuple[Any, ...], launch: _Launch) -> None:
    while len(_prepared) >= _MOST_PREPARED:
        _prepared.pop(next(iter(_prepared)), None)
    _prepared[key] = launch


def _prepare_row(
    out: Tensor, x: Tensor, tiles: Tensor, scale: Tensor, bias: Tensor, n: int, k: int, has_bias: bool
) -> _Launch | None:
    k16 = tiles.shape[1]
    numbers = (n, k, k16, has_bias, *ROW.sizes, x.is_cuda)
    words = tiles.view(-1).view(torch.int32)
    run = _first(_kernels().row_products, (-(-n // (16 * ROW.sizes[0])), 1), ROW, x, words, scale, bias, out, *numbers)

    def launch(_: Tensor, x: int, tiles: int, scale: int, bias: int, out: int) -> None:
        run(x, tiles, scale, bias, out, *numbers)

    return launch


_meetings: dict[torch.device, Meeting] = {}


def _prepare_split(
    out: Tensor, x: Tensor, tiles: Tensor, scale: Tensor, bias: Tensor, n: int, k: int, has_bias: bool, shared: Split
) -> _Launch | None:
    numbers = (n, k, tiles.shape[1], shared.per_part, has_bias, *shared.cut.sizes, x.is_cuda)
    words, grid = tiles.view(-1).view(torch.int32), (shared.blocks, shared.parts)
    kernel, room = _kernels().split_row_products, shared.room
    if not x.is_cuda:
        _first(kernel, grid, shared.cut, x, words, scale, bias, out, x.new_zeros(room, dtype=torch.int32), *numbers)
        return None
    if x.device not in _meetings:
        _meetings.setdefault(x.device, Meeting(x.device, processors_of(x.device)))
    meeting = _meetings[x.device]
    run = _first(kernel, grid, shared.cut, x, words, scale, bias, out, meeting.take(room), *numbers)

    def launch(_: Tensor, x: int, tiles: int, scale: int, bias: int, out: int) -> None:
        held = meeting.take(room)
        run(x, tiles, scale, bias, out, held.data_ptr(), *numbers)

    return launch


def _prepare_rows(
    out: Tensor, x: Tensor, tiles: Tensor, scale: Tensor, bias: Tensor, rows: int, n: int, k: int, has_bias: bool
) -> _Launch | None:
    kernels, k16 = _kernels(), tiles.shape[1]
    cut = FEW if rows <= FEW.sizes[0] else SOME if rows <= SOME.sizes[0] else MANY
    # One allocation: the bytes, the scales, the surpluses.
    scales_at = rows * k16 * 16
    surpluses_at = scales_at + -(-rows // 4) * 16
    room = surpluses_at + rows * 4
    work = torch.empty(room, dtype=torch.uint8, device=x.device)
    q, x_scales = work[:scales_at].view(torch.int8), work[scales_at:surpluses_at].view(torch.float32)
    surpluses = work[surpluses_at:].view(torch.int32)
    sizes = (k, k16, *QUANTIZE.sizes)
    numbers = (rows, n, k16, has_bias, *cut.sizes, x.is_cuda)
    quantize = _first(kernels.quantize_rows, (rows, 1), QUANTIZE, x, q, x_scales, surpluses, *sizes)
    grid = (-(-rows // cut.sizes[0]), -(-n // cut.sizes[1]))
    run = _first(kernels.many_products, grid, cut, q, x_scales, surpluses, tiles, scale, bias, out, *numbers)

    def launch(near: Tensor, x: int, tiles: int, scale: int, bias: int, out: int) -> None:
        work = near.new_empty(room, dtype=torch.uint8)
        q = work.data_ptr()
        quantize(x, q, q + scales_at, q + surpluses_at, *sizes)
        run(q, q + scales_at, q + surpluses_at, tiles, scale, bias, out, *numbers)

    return launch


_DIRECT = ((3, 3), (3, 8))
"""From the first of these releases of Triton on and before the second, a compiled kernel's `run` is called directly."""


def _first(kernel: Any, grid: tuple[int, ...], cut: Cut, *arguments: Any) -> Callable[..., None]:
    """Launch a kernel and return a function that launches what was compiled, on pointers as numbers.

    Products and sums are not fused: x * inverse is rounded before it is rounded to an integer, as elsewhere.
    """
    grid3 = (*grid, 1, 1)[:3]
    made = kernel[grid3](*arguments, num_warps=cut.warps, num_stages=cut.stages, enable_fp_fusion=False)
    if made is None:  # the interpreter compiles nothing
        return lambda *_: None
    import triton

    version = tuple(int(part) for part in triton.__version__.split(".")[:2])
    if not _DIRECT[0] <= version < _DIRECT[1]:
        return made[grid3]  # type: ignore[no-any-return]
    run, function, metadata = made.run, made.function, made.packed_metadata

    def launch(*arguments: Any) -> None:
        run(*grid3, current_stream(), function, metadata, None, None, None, *arguments)

    return launch


def conv2d(x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None, geometry: Geometry) -> Tensor:
    """(B, C_out, OH, OW) convolution of (B, C_in, H, W) in one of DTYPES with packed weights; channels last."""
    image = x.contiguous(memory_format=torch.channels_last)
    n, device = scale.shape[0], x.get_device()
    out = x.new_empty((x.shape[0], *geometry.out_size(x.shape[2], x.shape[3]), n))
    if not x.numel() or not out.numel():
        out = out.zero_() if bias is None else out.copy_(bias.expand_as(out))
        return out.permute(0, 3, 1, 2)
    held = 0 if bias is None else bias.data_ptr()
    addresses = image.data_ptr(), weight.data_ptr(), scale.data_ptr(), held, out.data_ptr()
    key = (device, x.dtype, x.shape, n, geometry, bias is None)
    launch = _prepared.get(key)
    if launch is None or any(address & 15 for address in addresses):
        refuse_capture()
        _refuse_cpu(x)
        image, weight, scale = (part if part.data_ptr() % 16 == 0 else part.clone() for part in (image, weight, scale))
        bias = bias if bias is None or bias.data_ptr() % 16 == 0 else bias.clone()
        if device < 0:
            _prepare_conv(out, image, weight, scale, bias, geometry)
        else:
            with torch.cuda.device(device):  # a launch goes to the current device
                _keep(key, _prepare_conv(out, image, weight, scale, bias, geometry))
    elif device == torch.cuda.current_device():
        launch(x, *addresses)
    else:
        with torch.cuda.device(device):
            launch(x, *addresses)
    return out.permute(0, 3, 1, 2)


def _prepare_conv(
    out: Tensor, x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None, geometry: Geometry
) -> _Launch:
    """Convolve by Triton's own launches, which compile, and return a function that launches what was compiled."""
    images, channels, height, width = x.shape
    size = channels * height * width
    parts = min(_MOST_PARTS, 1 << (-(-size // IMAGE.sizes[0]) - 1).bit_length())
    # One allocation: the bytes, the peaks of the parts, the scales.
    peaks_at = -(-images * size // 16) * 16
    scales_at = peaks_at + images * parts * 4 + 15 & -16
    room = scales_at + images * 4
    work = torch.empty(room, dtype=torch.uint8, device=x.device)
    q, x_scales = work[: images * size].view(torch.int8), work[scales_at:].view(torch.float32)
    peaks = work[peaks_at : peaks_at + images * parts * 4].view(torch.float32)
    kernels, sizes = _kernels(), (size, *IMAGE.sizes)
    peak = _first(kernels.image_peaks, (parts, images), IMAGE, x, peaks, *sizes)
    quantize = _first(kernels.quantize_images, (parts, images), IMAGE, x, peaks, q, x_scales, size, parts, *IMAGE.sizes)
    kernel, cut, grid, numbers = _way(out, x, bias is not None, geometry)
    run = _first(kernel, grid, cut, q, x_scales, weight, scale, scale if bias is None else bias, out, *numbers)

    def launch(near: Tensor, x: int, weight: int, scale: int, bias: int, out: int) -> None:
        work = near.new_empty(room, dtype=torch.uint8)
        q = work.data_ptr()
        peak(x, q + peaks_at, *sizes)
        quantize(x, q + peaks_at, q, q + scales_at, size, parts, *IMAGE.sizes)
        run(q, q + scales_at, weight, scale, bias, out, *numbers)

    return launch


def _way(out: Tensor, x: Tensor, has_bias: bool, geometry: Geometry) -> tuple[Any, Cut, tuple[int, ...], Any]:
    """Return the kernel of a convolution, how it is cut, its grid, and its arguments behind the tensors."""
    rows, n = out.numel() // out.shape[3], out.shape[3]
    channels, groups = x.shape[1], geometry.groups
    moves = (*x.shape[2:], *out.shape[1:3], geometry.kernel_size[1], geometry.taps)
    moves = (*moves, *geometry.stride, *geometry.padding, *geometry.dilation)
    if is_depthwise(channels, n, groups):
        blocks = (-(-rows // DEPTHWISE.sizes[0]), -(-n // DEPTHWISE.sizes[1]))
        return _kernels().convolve_depthwise, DEPTHWISE, blocks, (rows, n, *moves, has_bias, *DEPTHWISE.sizes)
    n, channels = n // groups, channels // groups
    for cut in PLACES:
        grid = (-(-rows // cut.sizes[0]), -(-n // cut.sizes[1]), groups)
        if grid[0] * grid[1] * groups >= _ENOUGH_PROGRAMS:
            break
    tiled, by_tap, columns = groups == 1, channels >= 32, 64 if channels % 64 == 0 else 32
    by_word = tiled and channels % 16 == 0
    numbers = (rows, n, channels, *moves, has_bias, tiled, by_tap, by_word, *cut.sizes, columns)
    return _kernels().convolve, cut, grid, numbers
