"""The Triton kernels of packed products and convolutions. Import this module only where Triton is installed.

A 32-bit word of a tile holds 16 columns of a row: bits 2 c and 2 c + 1 are the code of column c. A code is the weight
plus 1, so that a product with codes is too large by the sum of the activations, the surplus. The kernels multiply four
codes at once: bits 2 f and 2 f + 1 of the four bytes of a word are columns f, 4 + f, 8 + f and 12 + f.
"""

from __future__ import annotations

import triton
import triton.language as tl

__all__ = [
    "convolve",
    "convolve_depthwise",
    "image_peaks",
    "many_products",
    "quantize_images",
    "quantize_rows",
    "row_products",
    "split_row_products",
]

_EVEN = tl.constexpr(12582912.0)  # 1.5 * 2^23: adding it rounds to the next integer, half to even, in the lowest bits
_SMALLEST = tl.constexpr(1e-30)


@triton.jit
def _scales(absmax):  # type: ignore[no-untyped-def]
    """Return 127 / absmax and absmax / 127 of a row; 0 and 0 for a zero row, 0 and NaN for one that is not finite."""
    used = (absmax >= _SMALLEST) & (absmax < float("inf"))
    limit = tl.full(absmax.shape, 127.0, dtype=tl.float32)
    inverse = tl.where(used, tl.div_rn(limit, tl.where(used, absmax, 1.0)), 0.0)
    scale = tl.where(used, tl.div_rn(absmax, limit), tl.where(absmax < float("inf"), 0.0, float("nan")))
    return inverse, scale


@triton.jit  # type: ignore[untyped-decorator]
def _peak(x, first, k, step, WIDTH: tl.constexpr):  # type: ignore[no-untyped-def]
    """Return the largest magnitude of WIDTH values from the first on, of WIDTH a step further, …; infinity for NaN."""
    top = tl.zeros((WIDTH,), dtype=tl.float32)
    for start in range(first, k, step):
        column = start + tl.arange(0, WIDTH)
        size = tl.abs(tl.load(x + column, mask=column < k, other=0.0).to(tl.float32))
        top = tl.maximum(top, tl.where(size < float("inf"), size, float("inf")))  # NaN is not below infinity
    return tl.max(top, axis=0)


@triton.jit  # type: ignore[untyped-decorator]
def _row_scale(x, k, WIDTH: tl.constexpr):  # type: ignore[no-untyped-def]
    """Return the scales of one row."""
    return _scales(_peak(x, 0, k, WIDTH, WIDTH))


@triton.jit
def _rounded(x, inverse):  # type: ignore[no-untyped-def]
    """Return x * inverse, which is in -127 … 127, rounded half to even, as the lowest 8 bits of an int32."""
    return (x * inverse + _EVEN).to(tl.int32, bitcast=True)


@triton.jit  # type: ignore[untyped-decorator]
def _add_products(total, codes, q, BY_INSTRUCTION: tl.constexpr):  # type: ignore[no-untyped-def]
    """Return total + the sum of four products of bytes."""
    if BY_INSTRUCTION:
        return tl.inline_asm_elementwise(
            "dp4a.s32.s32 $0, $1, $2, $3;", "=r,r,r,r", [codes, q, total], dtype=tl.int32, is_pure=True, pack=1
        )
    for j in tl.static_range(4):
        total += (codes << (24 - 8 * j) >> 24) * (q << (24 - 8 * j) >> 24)
    return total


@triton.jit  # type: ignore[untyped-decorator]
def _row_sums(  # type: ignore[no-untyped-def]
    x, words, strip, inverse, n, k, k16, begin, end,
    STRIPS: tl.constexpr, BLOCK_T: tl.constexpr, BY_INSTRUCTION: tl.constexpr,
):  # fmt: skip
    """Return the integer products of a row's tiles from begin on and before end with strips of weights."""
    at = strip.to(tl.int64)[:, None, None] * k16 * 16 + tl.arange(0, 16)[None, None, :]
    is_strip = (strip * 16 < n)[:, None, None]
    total = tl.zeros((STRIPS, BLOCK_T, 16), dtype=tl.int32)
    surplus = tl.zeros((BLOCK_T,), dtype=tl.int32)
    for start in range(begin, end, BLOCK_T):
        tile = start + tl.arange(0, BLOCK_T)
        word = tl.load(words + (at + (tile * 16)[None, :, None]), mask=is_strip & (tile < k16)[None, :, None], other=0)
        for field in tl.static_range(4):
            q = tl.zeros((BLOCK_T,), dtype=tl.int32)
            for j in tl.static_range(4):
                c = tile * 16 + (4 * j + field)
                q |= (_rounded(tl.load(x + c, mask=c < k, other=0.0).to(tl.float32), inverse) & 255) << (8 * j)
            surplus = _add_products(surplus, tl.full((BLOCK_T,), 0x01010101, dtype=tl.int32), q, BY_INSTRUCTION)
            codes = (word >> (2 * field)) & 0x03030303
            every = tl.broadcast_to(q[None, :, None], (STRIPS, BLOCK_T, 16))
            total = _add_products(total, codes, every, BY_INSTRUCTION)
    sums = tl.sum(total, axis=1) - tl.sum(surplus, axis=0)
    return tl.where(inverse > 0.0, sums, 0)  # x may have held what has no integer


@triton.jit  # type: ignore[untyped-decorator]
def _store_row(sums, x_scale, scale, bias, out, column, n, HAS_BIAS: tl.constexpr):  # type: ignore[no-untyped-def]
    """Store the products of the sums of one row."""
    y = sums.to(tl.float32) * x_scale * tl.load(scale + column, mask=column < n, other=0.0)
    if HAS_BIAS:
        y += tl.load(bias + column, mask=column < n, other=0.0)
    tl.store(out + column, y.to(out.dtype.element_ty), mask=column < n)


@triton.jit  # type: ignore[untyped-decorator]
def row_products(  # type: ignore[no-untyped-def]
    x, words, scale, bias, out, n, k, k16,
    HAS_BIAS: tl.constexpr, STRIPS: tl.constexpr, BLOCK_T: tl.constexpr, BY_INSTRUCTION: tl.constexpr,
):  # fmt: skip
    """Quantize a row of x and multiply it with STRIPS strips of weights; grid (blocks of strips, rows of x)."""
    row = tl.program_id(1).to(tl.int64)
    strip = tl.program_id(0) * STRIPS + tl.arange(0, STRIPS)
    column = strip[:, None] * 16 + tl.arange(0, 16)[None, :]
    x += row * k
    inverse, x_scale = _row_scale(x, k, BLOCK_T * 16)
    sums = _row_sums(x, words, strip, inverse, n, k, k16, 0, k16, STRIPS, BLOCK_T, BY_INSTRUCTION)
    _store_row(sums, x_scale, scale, bias, out + row * n, column, n, HAS_BIAS)


@triton.jit  # type: ignore[untyped-decorator]
def split_row_products(  # type: ignore[no-untyped-def]
    x, words, scale, bias, out, meeting, n, k, k16, per_part,
    HAS_BIAS: tl.constexpr, STRIPS: tl.constexpr, BLOCK_T: tl.constexpr, WIDTH: tl.constexpr,
    BY_INSTRUCTION: tl.constexpr,
):  # fmt: skip
    """`row_products` of one row whose tiles are shared out; grid (blocks of strips, parts of per_part tiles).

    The parts of a block add their integers where they meet: STRIPS * 16 sums for each block, then a count for each. The
    part that finds all others counted stores the products. It leaves zeros, as it found them, for the next launch.
    """
    block, blocks, part, parts = tl.program_id(0), tl.num_programs(0), tl.program_id(1), tl.num_programs(1)
    strip = block * STRIPS + tl.arange(0, STRIPS)
    column = strip[:, None] * 16 + tl.arange(0, 16)[None, :]
    inverse, x_scale = _row_scale(x, k, WIDTH)
    begin = part * per_part
    end = tl.minimum(begin + per_part, k16)
    sums = _row_sums(x, words, strip, inverse, n, k, k16, begin, end, STRIPS, BLOCK_T, BY_INSTRUCTION)
    count = meeting + blocks * (STRIPS * 16) + block
    tl.atomic_add(meeting + column, sums, sem="relaxed")
    tl.debug_barrier()  # the count releases what all threads of this program have added
    if tl.atomic_add(count, 1, sem="acq_rel") == parts - 1:
        tl.debug_barrier()  # and no thread reads before it
        sums = tl.atomic_xchg(meeting + column, 0, sem="relaxed")
        tl.store(count, 0)
        _store_row(sums, x_scale, scale, bias, out, column, n, HAS_BIAS)


@triton.jit  # type: ignore[untyped-decorator]
def quantize_rows(x, q, x_scales, surpluses, k, k16, WIDTH: tl.constexpr):  # type: ignore[no-untyped-def]
    """Quantize a row of x into 4 planes of 4 * k16: q[row, field, i] is column 4 i + field; grid (rows of x,)."""
    row = tl.program_id(0).to(tl.int64)
    x += row * k
    q += row * k16 * 16
    inverse, x_scale = _row_scale(x, k, WIDTH * 4)
    surplus = tl.zeros((WIDTH, 4), dtype=tl.int32)
    field = tl.arange(0, 4)[None, :]
    for start in range(0, k16 * 4, WIDTH):
        i = start + tl.arange(0, WIDTH)[:, None]
        c = i * 4 + field
        value = _rounded(tl.load(x + c, mask=c < k, other=0.0).to(tl.float32), inverse) << 24 >> 24
        value = tl.where(inverse > 0.0, value, 0)
        surplus += value
        tl.store(q + (field * (k16 * 4) + i), value.to(tl.int8), mask=(i < k16 * 4) & (field < 4))
    tl.store(x_scales + row, x_scale)
    tl.store(surpluses + row, tl.sum(tl.sum(surplus, axis=1), axis=0))


@triton.jit  # type: ignore[untyped-decorator]
def _codes(packed, FIELD: tl.constexpr, BY_INSTRUCTION: tl.constexpr):  # type: ignore[no-untyped-def]
    """Return one of the four codes of each byte."""
    if BY_INSTRUCTION:  # four bytes at once
        shift = tl.full((1, 1), 2 * FIELD, dtype=tl.int8)
        return tl.inline_asm_elementwise(
            "{.reg .b32 a, s; and.b32 s, $2, 7; shr.b32 a, $1, s; and.b32 $0, a, 0x03030303;}",
            "=r,r,r", [packed, shift], dtype=tl.int8, is_pure=True, pack=4,
        )  # fmt: skip
    return ((packed >> (2 * FIELD)) & 3).to(tl.int8)


@triton.jit  # type: ignore[untyped-decorator]
def _store(total, x_scale, scale, bias, out, row, column, rows, n, step, HAS_BIAS: tl.constexpr):  # type: ignore[no-untyped-def]
    """Store the products of sums (columns, rows); rows of the output are `step` apart."""
    y = total.to(tl.float32) * x_scale[None, :]
    y *= tl.load(scale + column, mask=column < n, other=0.0)[:, None]
    if HAS_BIAS:
        y += tl.load(bias + column, mask=column < n, other=0.0)[:, None]
    to = row.to(tl.int64)[None, :] * step + column[:, None]
    tl.store(out + to, y.to(out.dtype.element_ty), mask=(row < rows)[None, :] & (column < n)[:, None])


@triton.jit(do_not_specialize=["rows"])  # type: ignore[untyped-decorator]
def many_products(  # type: ignore[no-untyped-def]
    q, x_scales, surpluses, tiles, scale, bias, out, rows, n, k16,
    HAS_BIAS: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, WIDTH: tl.constexpr,
    BY_INSTRUCTION: tl.constexpr,
):  # fmt: skip
    """Multiply BLOCK_M quantized rows with BLOCK_N rows of weights; grid (blocks of rows, blocks of n)."""
    row = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    column = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    from_row = q + row.to(tl.int64)[None, :] * k16 * 16
    at = (column // 16).to(tl.int64) * k16 * 64 + column % 16 * 4
    total = tl.zeros((BLOCK_N, BLOCK_M), dtype=tl.int32)
    for start in range(0, k16 * 4, WIDTH):
        i = start + tl.arange(0, WIDTH)
        mask = (column < n)[:, None] & (i < k16 * 4)[None, :]
        packed = tl.load(tiles + (at[:, None] + (i // 4 * 64 + i % 4)[None, :]), mask=mask, other=0)
        for field in tl.static_range(4):
            mask = (i < k16 * 4)[:, None] & (row < rows)[None, :]
            part = tl.load(from_row + (field * (k16 * 4) + i)[:, None], mask=mask, other=0)
            total = tl.dot(_codes(packed, field, BY_INSTRUCTION), part, total, out_dtype=tl.int32)
    x_scale = tl.load(x_scales + row, mask=row < rows, other=0.0)
    surplus = tl.load(surpluses + row, mask=row < rows, other=0)
    _store(total - surplus[None, :], x_scale, scale, bias, out, row, column, rows, n, n, HAS_BIAS)


@triton.jit  # type: ignore[untyped-decorator]
def image_peaks(x, peaks, size, WIDTH: tl.constexpr):  # type: ignore[no-untyped-def]
    """Find the largest magnitude of each part of an image, infinity for NaN; grid (parts, images)."""
    part, parts, image = tl.program_id(0), tl.num_programs(0), tl.program_id(1).to(tl.int64)
    top = _peak(x + image * size, part * WIDTH, size, parts * WIDTH, WIDTH)
    tl.store(peaks + image * parts + part, top)


@triton.jit  # type: ignore[untyped-decorator]
def quantize_images(x, peaks, q, x_scales, size, PARTS: tl.constexpr, WIDTH: tl.constexpr):  # type: ignore[no-untyped-def]
    """Quantize a part of an image by the peaks of all its parts; grid (PARTS, images)."""
    part, image = tl.program_id(0), tl.program_id(1).to(tl.int64)
    inverse, x_scale = _scales(tl.max(tl.load(peaks + image * PARTS + tl.arange(0, PARTS)), axis=0))
    x += image * size
    q += image * size
    for start in range(part * WIDTH, size, PARTS * WIDTH):
        at = start + tl.arange(0, WIDTH)
        value = _rounded(tl.load(x + at, mask=at < size, other=0.0).to(tl.float32), inverse) << 24 >> 24
        tl.store(q + at, tl.where(inverse > 0.0, value, 0).to(tl.int8), mask=at < size)
    if part == 0:
        tl.store(x_scales + image, x_scale)


@triton.jit
def _corner(row, out_height, out_width, step_y, step_x, edge_y, edge_x):  # type: ignore[no-untyped-def]
    """Return the image of each row of the output, and where the kernel's first tap lies in it."""
    place = row % (out_height * out_width)
    top = place // out_width * step_y - edge_y
    left = place % out_width * step_x - edge_x
    return row // (out_height * out_width), top, left


_SIZES = (
    "rows", "height", "width", "out_height", "out_width", "kernel_width", "taps",
    "step_y", "step_x", "edge_y", "edge_x", "spread_y", "spread_x",
)  # fmt: skip


@triton.jit(do_not_specialize=_SIZES)  # type: ignore[untyped-decorator]
def convolve(  # type: ignore[no-untyped-def]
    q, x_scales, weight, scale, bias, out, rows, n, channels, height, width, out_height, out_width,
    kernel_width, taps, step_y, step_x, edge_y, edge_x, spread_y, spread_x,
    HAS_BIAS: tl.constexpr, TILED: tl.constexpr, BY_TAP: tl.constexpr, BY_WORD: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """Multiply BLOCK_M places of channels-last images with BLOCK_N channels; grid (places, channels, groups).

    The matrix of places and columns is never in memory: column (tap, channel) of a place is read from the image.
    """
    row = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    column = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    group, every = tl.program_id(2), channels * tl.num_programs(2)
    image, top, left = _corner(row, out_height, out_width, step_y, step_x, edge_y, edge_x)
    from_image = q + image.to(tl.int64) * height * width * every + group * channels
    k = taps * channels
    if TILED:
        from_column = weight + (column // 16).to(tl.int64) * tl.cdiv(k, 16) * 64 + column % 16 * 4
    else:
        from_column = weight + (group * n + column).to(tl.int64) * tl.cdiv(k, 4)
    parts = tl.cdiv(channels, WIDTH)
    total = tl.zeros((BLOCK_N, BLOCK_M), dtype=tl.int32)
    for step in range(taps * parts if BY_TAP else tl.cdiv(k, WIDTH)):
        if BY_TAP:  # channels of one tap lie side by side
            tap = step // parts
            channel = step % parts * WIDTH + tl.arange(0, WIDTH)
            first = tap * channels + step % parts * WIDTH
            known = channel < channels
            y = top[None, :] + tap // kernel_width * spread_y
            x = left[None, :] + tap % kernel_width * spread_x
        else:
            first = step * WIDTH
            at = first + tl.arange(0, WIDTH)
            tap = at // channels
            channel = at % channels
            known = at < k
            y = top[None, :] + (tap // kernel_width * spread_y)[:, None]
            x = left[None, :] + (tap % kernel_width * spread_x)[:, None]
        inside = (y >= 0) & (y < height) & (x >= 0) & (x < width) & (row < rows)[None, :] & known[:, None]
        place = (y * width + x).to(tl.int64) * every
        part = tl.load(from_image[None, :] + place + channel[:, None], mask=inside, other=0)
        if BY_WORD:  # tiles begin where taps do
            tile = first // 16 + tl.arange(0, WIDTH // 16)
            mask = (column < n)[:, None] & (tile * 16 < k)[None, :]
            word = tl.load(from_column.to(tl.pointer_type(tl.int32))[:, None] + tile[None, :] * 16, mask=mask, other=0)
            codes = (word[:, :, None] >> (2 * tl.arange(0, 16))[None, None, :]) & 3
            values = tl.reshape(codes.to(tl.int8) - 1, (BLOCK_N, WIDTH))
        else:
            at = first + tl.arange(0, WIDTH)
            byte = at // 16 * 64 + at % 16 // 4 if TILED else at // 4
            packed = tl.load(from_column[:, None] + byte[None, :], mask=(column < n)[:, None] & known[None, :], other=0)
            values = ((packed >> (at % 4 * 2)[None, :]) & 3).to(tl.int8) - 1
        total = tl.dot(values, part, total, out_dtype=tl.int32)
    x_scale = tl.load(x_scales + image, mask=row < rows, other=0.0)
    to = out + group * n
    _store(
        total, x_scale, scale + group * n, bias + group * n, to, row, column, rows, n, n * tl.num_programs(2), HAS_BIAS
    )


@triton.jit(do_not_specialize=_SIZES)  # type: ignore[untyped-decorator]
def convolve_depthwise(  # type: ignore[no-untyped-def]
    q, x_scales, weight, scale, bias, out, rows, n, height, width, out_height, out_width,
    kernel_width, taps, step_y, step_x, edge_y, edge_x, spread_y, spread_x,
    HAS_BIAS: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Multiply each channel with a kernel of its own; grid (places, channels)."""
    row = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    column = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    image, top, left = _corner(row, out_height, out_width, step_y, step_x, edge_y, edge_x)
    from_image = q + image.to(tl.int64)[None, :] * height * width * n + column[:, None]
    total = tl.zeros((BLOCK_N, BLOCK_M), dtype=tl.int32)
    for tap in range(taps):
        y = top + tap // kernel_width * spread_y
        x = left + tap % kernel_width * spread_x
        inside = (y >= 0) & (y < height) & (x >= 0) & (x < width) & (row < rows)
        at = (y * width + x).to(tl.int64) * n
        part = tl.load(from_image + at[None, :], mask=inside[None, :] & (column < n)[:, None], other=0)
        packed = tl.load(weight + tap * tl.cdiv(n, 4) + column // 4, mask=column < n, other=0)
        total += part.to(tl.int32) * (((packed >> (column % 4 * 2)) & 3).to(tl.int32) - 1)[:, None]
    x_scale = tl.load(x_scales + image, mask=row < rows, other=0.0)
    _store(total, x_scale, scale, bias, out, row, column, rows, n, n, HAS_BIAS)
