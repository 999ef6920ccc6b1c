"""Writes a NumPy dtype as a short token and reads it back exactly.

A plain dtype is its `str` (`<f4`), one of ml_dtypes is `~bfloat16`, and a structured one is a JSON list that keeps
offsets, titles, sub-arrays and item size. `dtype.str` alone turns both of the latter into anonymous bytes.
"""

from __future__ import annotations

import importlib
import json
import re
import struct
from functools import lru_cache
from typing import Any

import numpy as np

from xfer.errors import HandleError, UnsupportedDtypeError

# What NumPy, JSON and struct raise for a description that makes no sense or does not fit its bytes.
MISFITS = (
    ValueError, TypeError, KeyError, AttributeError, IndexError, OverflowError, RecursionError, MemoryError,
    StopIteration, struct.error,
)  # fmt: skip
ML_PREFIX = "~"
# What `dtype.str` makes: byte order, kind, bytes, and the unit of a time. No other text reaches NumPy's own parser.
_PLAIN = re.compile(r"[<>|=][biufcSUVmM?]\d{1,10}(\[\d{0,10}[A-Za-z]{1,2}\])?|[<>][mM]8")


@lru_cache(maxsize=1024)
def encode(dtype: np.dtype[Any]) -> bytes:
    """Return the token of a dtype.

    Raises:
        UnsupportedDtypeError: The dtype holds Python objects or pointers.
    """
    return (
        json.dumps(_tree(dtype), separators=(",", ":")).encode() if dtype.names is not None else _leaf(dtype).encode()
    )


@lru_cache(maxsize=1024)
def decode(token: bytes) -> np.dtype[Any]:
    """Return the dtype of a token.

    Raises:
        HandleError: The token does not describe a dtype that can be shared.
    """
    try:
        text = token.decode()
        return _from_tree(json.loads(text) if text.startswith("[") else text)
    except MISFITS as error:
        if isinstance(error, UnsupportedDtypeError):
            raise
        raise HandleError(f"the handle's data type {token!r} cannot be read: {error}") from error


def _leaf(dtype: np.dtype[Any]) -> str:
    if dtype.hasobject or dtype.kind in "OT":
        raise UnsupportedDtypeError(
            f"arrays of {dtype} hold pointers, which mean nothing in another process; convert to a fixed-size dtype"
        )
    if dtype.type.__module__ == "numpy":
        return dtype.str
    return _ml_token(dtype)


def _ml_token(dtype: np.dtype[Any]) -> str:
    if dtype.type.__module__.split(".")[0] != "ml_dtypes":
        raise UnsupportedDtypeError(f"{dtype!r} comes from {dtype.type.__module__}, which xfer cannot describe")
    return ML_PREFIX + dtype.name


def _tree(dtype: np.dtype[Any]) -> Any:
    if dtype.subdtype is not None:
        return ["sub", _tree(dtype.subdtype[0]), list(dtype.subdtype[1])]
    if dtype.names is None:
        return _leaf(dtype)
    fields = []
    for name in dtype.names:
        field: Any = dtype.fields[name]  # type: ignore[index]  # names is not None, so fields is not either
        fields.append([name, _tree(field[0]), field[1], *field[2:]])
    return ["rec", dtype.itemsize, int(dtype.isalignedstruct), fields]


def _from_tree(tree: Any) -> np.dtype[Any]:
    if isinstance(tree, str):
        if tree.startswith(ML_PREFIX):
            return _ml_dtype(tree[1:])
        if not _PLAIN.fullmatch(tree):
            raise ValueError("it is no token of a plain dtype")
        dtype: np.dtype[Any] = np.dtype(tree)
        return dtype
    if tree[0] == "sub":
        return np.dtype((_from_tree(tree[1]), tuple(tree[2])))
    if tree[0] != "rec":
        raise ValueError("it is no list of fields")
    fields = tree[3]
    spec: dict[str, Any] = {
        "names": [field[0] for field in fields],
        "formats": [_from_tree(field[1]) for field in fields],
        "offsets": [field[2] for field in fields],
        "titles": [field[3] if len(field) > 3 else None for field in fields],
        "itemsize": tree[1],
    }
    return np.dtype(spec, align=bool(tree[2]))  # type: ignore[call-overload,no-any-return]  # the stubs want literals


def _ml_dtype(name: str) -> np.dtype[Any]:
    try:
        module = importlib.import_module("ml_dtypes")
    except ImportError as error:
        raise UnsupportedDtypeError(f"{name} needs ml_dtypes: install pentad-xfer[dtypes]") from error
    dtype: np.dtype[Any] = np.dtype(getattr(module, name))
    if dtype.hasobject or dtype.type.__module__.split(".")[0] != "ml_dtypes":
        raise ValueError("it is no dtype of ml_dtypes")
    return dtype
