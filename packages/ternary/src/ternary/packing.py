"""Pack ternary values to bytes and back: 2 bits (4 a byte) and base 3 (5 a byte).

docs/packing-format.md specifies the formats. Unpacking is the exact inverse of packing, and refuses any other bytes.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ternary.errors import PackedDataError, TernaryValueError

__all__ = ["pack_2bit", "pack_base3", "unpack_2bit", "unpack_base3"]

_PER_BYTE_2BIT = 4
_PER_BYTE_BASE3 = 5
_BASE3_CODES = 3**_PER_BYTE_BASE3
_ZERO_CODE = 1


def pack_2bit(values: Tensor) -> Tensor:
    """Pack ternary values along the last dimension, four to a byte, the first one in the lowest two bits.

    Args:
        values: Tensor of -1, 0 or +1 of shape (..., K); int8 as a rule, any real dtype is taken.

    Returns:
        uint8 of shape (..., ceil(K / 4)); each code is value + 1, a last byte is filled up with the code of 0.

    Raises:
        TernaryValueError: A value is not -1, 0 or +1 (NaN included), or there is no dimension to pack along.

    Example:
        >>> import torch
        >>> from ternary.packing import pack_2bit
        >>> pack_2bit(torch.tensor([-1, 0, 1, 0, 1])).tolist()
        [100, 86]
    """
    fields = _codes(values, _PER_BYTE_2BIT)
    return fields[..., 0] | fields[..., 1] << 2 | fields[..., 2] << 4 | fields[..., 3] << 6


def unpack_2bit(packed: Tensor, k: int) -> Tensor:
    """Unpack the k ternary values per row that `pack_2bit` packed.

    Args:
        packed: Uint8 tensor of shape (..., ceil(k / 4)).
        k: Number of values in the last dimension.

    Returns:
        int8 of shape (..., k).

    Raises:
        PackedDataError: Wrong dtype or size, a code 3, or filling that is not the code of 0.

    Example:
        >>> import torch
        >>> from ternary.packing import unpack_2bit
        >>> unpack_2bit(torch.tensor([100, 86], dtype=torch.uint8), 5).tolist()
        [-1, 0, 1, 0, 1]
    """
    _check_packed(packed, k, _PER_BYTE_2BIT)
    fields = torch.stack([packed >> shift & 3 for shift in (0, 2, 4, 6)], dim=-1)
    if fields.numel() and int(fields.max()) == 3:
        raise PackedDataError(
            "got 2-bit code 3 in packed ternary data; the codes are 0, 1 and 2. "
            "The bytes are damaged or were packed by another format"
        )
    return _values(fields, k)


def pack_base3(values: Tensor) -> Tensor:
    """Pack ternary values along the last dimension, five to a byte as digits of a base-3 number, lowest digit first.

    1.6 bits a weight against 2, for storage only: taking digits out costs more than the bytes it saves when computing.

    Args:
        values: Tensor of -1, 0 or +1 of shape (..., K); int8 as a rule, any real dtype is taken.

    Returns:
        uint8 of shape (..., ceil(K / 5)), each at most 242; each digit is value + 1, filled up with the digit of 0.

    Raises:
        TernaryValueError: A value is not -1, 0 or +1 (NaN included), or there is no dimension to pack along.

    Example:
        >>> import torch
        >>> from ternary.packing import pack_base3
        >>> pack_base3(torch.tensor([-1, 0, 1, 0, 1])).tolist()
        [210]
    """
    digits = _codes(values, _PER_BYTE_BASE3)
    packed = digits[..., 4]
    for place in (3, 2, 1, 0):
        packed = packed * 3 + digits[..., place]
    return packed


def unpack_base3(packed: Tensor, k: int) -> Tensor:
    """Unpack the k ternary values per row that `pack_base3` packed.

    Args:
        packed: Uint8 tensor of shape (..., ceil(k / 5)).
        k: Number of values in the last dimension.

    Returns:
        int8 of shape (..., k).

    Raises:
        PackedDataError: Wrong dtype or size, a byte above 242, or filling that is not the digit of 0.

    Example:
        >>> import torch
        >>> from ternary.packing import unpack_base3
        >>> unpack_base3(torch.tensor([210], dtype=torch.uint8), 5).tolist()
        [-1, 0, 1, 0, 1]
    """
    _check_packed(packed, k, _PER_BYTE_BASE3)
    if packed.numel() and int(packed.max()) >= _BASE3_CODES:
        raise PackedDataError(
            f"got byte {int(packed.max())} in base-3 data; five ternary digits end at {_BASE3_CODES - 1}. "
            "The bytes are damaged or were packed by another format"
        )
    # A table row per byte value: one gather instead of four divisions.
    numbers = torch.arange(_BASE3_CODES, device=packed.device)
    table = torch.stack([numbers // 3**place % 3 for place in range(_PER_BYTE_BASE3)], dim=-1).to(torch.uint8)
    return _values(table[packed.long()], k)


def _codes(values: Tensor, per_byte: int) -> Tensor:
    """Values as codes 0, 1, 2 of shape (..., bytes, per_byte), filled up with the code of 0."""
    if values.dim() == 0:
        raise TernaryValueError(
            "got a tensor without dimensions; packing runs along the last one. Use values.reshape(1)"
        )
    if values.dtype == torch.bool or values.is_complex():
        raise TernaryValueError(f"got dtype {values.dtype}; ternary values are signed numbers. Convert to torch.int8")
    legal = (values == -1) | (values == 0) | (values == 1)
    if not bool(legal.all()):
        wrong = values[~legal]
        raise TernaryValueError(
            f"got {wrong.numel()} of {values.numel()} values outside {{-1, 0, +1}}, the first is {wrong[0].item()}. "
            "Quantize before packing"
        )
    k = values.shape[-1]
    size = -(-k // per_byte)
    codes = torch.full((*values.shape[:-1], size * per_byte), _ZERO_CODE, dtype=torch.uint8, device=values.device)
    codes[..., :k] = (values.to(torch.int8) + 1).to(torch.uint8)
    return codes.reshape(*values.shape[:-1], size, per_byte)


def _values(codes: Tensor, k: int) -> Tensor:
    """Codes of shape (..., bytes, per_byte) as int8 values of shape (..., k), the filling checked."""
    flat = codes.flatten(-2)
    filling = flat[..., k:]
    if filling.numel() and not bool((filling == _ZERO_CODE).all()):
        raise PackedDataError(
            f"got filling other than zeros after the {k} values of a row. "
            "Either k is too small for these bytes, or they are damaged"
        )
    return flat[..., :k].to(torch.int8) - 1


def _check_packed(packed: Tensor, k: int, per_byte: int) -> None:
    if packed.dtype != torch.uint8:
        raise PackedDataError(f"got packed data of dtype {packed.dtype}, wanted torch.uint8")
    if k < 0:
        raise PackedDataError(f"got k = {k}; a row holds 0 values or more")
    size = -(-k // per_byte)
    if packed.dim() == 0 or packed.shape[-1] != size:
        raise PackedDataError(
            f"got packed data of shape {tuple(packed.shape)}; {k} values at {per_byte} a byte "
            f"take {size} bytes in the last dimension"
        )


import ternary.runtime  # noqa: E402, F401 # registers the operators; it needs the names above
