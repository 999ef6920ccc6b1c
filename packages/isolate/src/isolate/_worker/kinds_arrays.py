"""numpy: scalars, masked, structured and record arrays, matrices, memory orders, dtypes."""

from __future__ import annotations

from typing import Any

from .errors import UnsupportedTypeError, WireError
from .kinds_standard import wanted
from .libraries import imported
from .segments import DTYPE

_FIELD_LIMIT = 1000
_DEPTH_LIMIT = 10
_ITEM_LIMIT = 1 << 20


def _numpy() -> Any:
    return imported("numpy", "a value of numpy", "add it to the dependencies, or send float(value)")


# dtypes


def dtype_parts(dtype: Any) -> Any:
    """Return the wire form of a dtype: a text, or for structured ones names, forms, offsets and size.

    Raises:
        UnsupportedTypeError: It holds objects or metadata, or is of another library.
    """
    if dtype.hasobject or dtype.metadata or dtype.type.__module__ != "numpy":
        raise UnsupportedTypeError(
            f"an array of dtype {dtype} does not travel; wanted booleans, numbers, times, fixed-width text and bytes, "
            "or fields of them; send value.tolist()"
        )
    if dtype.subdtype is not None:
        base, shape = dtype.subdtype
        return ["sub", dtype_parts(base), list(shape)]
    if dtype.names is None:
        if not DTYPE.match(dtype.str) and dtype.kind != "V":
            raise UnsupportedTypeError(f"an array of dtype {dtype} does not travel; convert it with value.astype")
        return dtype.str
    fields = [dtype.fields[name] for name in dtype.names]
    if any(len(field) > 2 for field in fields):
        raise UnsupportedTypeError(f"an array of dtype {dtype} has titles, which do not travel; use plain names")
    forms, offsets = [dtype_parts(field[0]) for field in fields], [field[1] for field in fields]
    return ["fields", list(dtype.names), forms, offsets, dtype.itemsize, dtype.isalignedstruct]


def dtype_of(parts: Any, depth: int = 0) -> Any:
    """Return the dtype for its wire form, checked."""
    numpy = _numpy()
    if type(parts) is str:
        wanted(DTYPE.match(parts) is not None or _void(parts), "a dtype")
        return numpy.dtype(parts)
    wanted(type(parts) is list and depth < _DEPTH_LIMIT and len(parts) in (3, 6), "a dtype")
    if parts[0] == "sub":
        shape = parts[2]
        wanted(_is_shape(shape), "a dtype")
        made = numpy.dtype((dtype_of(parts[1], depth + 1), tuple(shape)))
        wanted(made.itemsize <= _ITEM_LIMIT, "a dtype")
        return made
    form, names, forms, offsets, size, aligned = parts
    wanted(form == "fields" and all(type(part) is list for part in (names, forms, offsets)), "a dtype")
    wanted(len(names) == len(forms) == len(offsets) <= _FIELD_LIMIT and 0 <= size <= _ITEM_LIMIT, "a dtype")
    wanted(all(type(name) is str for name in names) and all(type(at) is int for at in offsets), "a dtype")
    formats = [dtype_of(part, depth + 1) for part in forms]
    wanted(all(at >= 0 and at + part.itemsize <= size for at, part in zip(offsets, formats, strict=True)), "a dtype")
    described = {"names": names, "formats": formats, "offsets": offsets, "itemsize": size}
    return numpy.dtype(described, align=bool(aligned))


def _is_shape(shape: Any) -> bool:
    return type(shape) is list and len(shape) <= 32 and all(type(n) is int and 0 <= n < 1 << 40 for n in shape)


def _void(text: str) -> bool:
    return text[:2] == "|V" and text[2:].isdigit() and int(text[2:]) <= _ITEM_LIMIT


# Arrays and scalars


def describe(value: Any, kind: type) -> tuple[str, Any] | None:
    """Return tag and parts; None for what travels as it is, and for what does not."""
    numpy = _numpy()
    if kind is numpy.ndarray:
        return _array(numpy, value)
    if isinstance(value, numpy.generic):
        if kind.__module__ != "numpy":  # of a library that adds number types
            return None
        if kind in (numpy.str_, numpy.bytes_):  # their zeros at the end are part of them
            return ("numpy.text", str.__add__(value, "")) if kind is numpy.str_ else ("numpy.bytes", bytes(value))
        return "numpy.scalar", [dtype_parts(value.dtype), value.tobytes()]
    if isinstance(value, numpy.ma.MaskedArray):
        if kind is not numpy.ma.MaskedArray:
            return ("numpy.masked", None) if value is numpy.ma.masked else None
        mask = None if value.mask is numpy.ma.nomask else value.mask
        fill = None if value._fill_value is None else numpy.asarray(value._fill_value)  # noqa: SLF001 - None: not set
        return "numpy.array_masked", [value.data, mask, fill, bool(value.hardmask)]
    if kind is numpy.matrix:
        return "numpy.matrix", numpy.asarray(value)
    if kind is numpy.recarray:
        return "numpy.records", value.view(type=numpy.ndarray, dtype=_plain_dtype(numpy, value.dtype))
    if isinstance(value, numpy.dtype):
        return "numpy.dtype", dtype_parts(value)
    return None


def _plain_dtype(numpy: Any, dtype: Any) -> Any:
    return numpy.dtype(dtype.fields and {**_fields(dtype), "itemsize": dtype.itemsize}) if dtype.names else dtype


def _fields(dtype: Any) -> dict[str, Any]:
    pairs = [dtype.fields[name][:2] for name in dtype.names]
    return {"names": list(dtype.names), "formats": [form for form, _ in pairs], "offsets": [at for _, at in pairs]}


def _array(numpy: Any, value: Any) -> tuple[str, Any] | None:
    if value.dtype.names is not None or value.dtype.kind == "V":
        parts = dtype_parts(value.dtype)
        flat = numpy.ascontiguousarray(value).reshape(-1)
        raw = flat.view(numpy.uint8) if flat.nbytes else numpy.empty(0, numpy.uint8)
        return "numpy.structured", [parts, list(value.shape), raw]
    if value.flags.c_contiguous or value.ndim < 2 or not value.size:
        if value.dtype.metadata:
            dtype_parts(value.dtype)
        return None
    axes = sorted(range(value.ndim), key=lambda axis: -value.strides[axis])
    turned = value.transpose(axes)
    return ("numpy.order", [axes, turned]) if turned.flags.c_contiguous else None


def build(tag: str, parts: Any) -> Any:
    """Return the value for a tag and its parts."""
    numpy = _numpy()
    if tag == "numpy.scalar":
        text, data = parts
        dtype = dtype_of(text)
        wanted(type(data) is bytes and len(data) == dtype.itemsize, "a scalar")
        if not data:
            return dtype.type()
        found = numpy.frombuffer(data, dtype)[0]
        return found.copy() if isinstance(found, numpy.void) else found
    if tag in ("numpy.text", "numpy.bytes"):
        wanted(type(parts) is (str if tag == "numpy.text" else bytes), "a text")
        return numpy.str_(parts) if tag == "numpy.text" else numpy.bytes_(parts)
    if tag == "numpy.dtype":
        return dtype_of(parts)
    if tag == "numpy.masked":
        return numpy.ma.masked
    if tag == "numpy.structured":
        return _structured(numpy, parts)
    if tag == "numpy.order":
        axes, turned = parts
        wanted(isinstance(turned, numpy.ndarray) and sorted(axes) == list(range(turned.ndim)), "an array's order")
        return turned.transpose(numpy.argsort(axes))
    if tag == "numpy.array_masked":
        return _masked(numpy, parts)
    wanted(isinstance(parts, numpy.ndarray), "an array")
    if tag == "numpy.matrix":
        wanted(parts.ndim == 2, "a matrix")
        return parts.view(numpy.matrix)
    if tag == "numpy.records":
        wanted(parts.dtype.names is not None, "a record array")
        return parts.view(numpy.recarray)
    raise WireError(f"there is no type {tag!r:.40} in the protocol")


def _structured(numpy: Any, parts: Any) -> Any:
    described, shape, raw = parts
    dtype = dtype_of(described)
    wanted(_is_shape(shape), "an array's shape")
    count = 1
    for n in shape:
        count *= n
    wanted(isinstance(raw, numpy.ndarray) and raw.dtype == numpy.uint8, "a structured array")
    wanted(raw.size == count * dtype.itemsize, "a structured array")
    if not raw.size:
        return numpy.empty(shape, dtype)
    return raw.view(dtype).reshape(shape)


def _masked(numpy: Any, parts: Any) -> Any:
    data, mask, fill, hard = parts
    wanted(isinstance(data, numpy.ndarray), "a masked array")
    wanted(mask is None or (isinstance(mask, numpy.ndarray) and mask.shape == data.shape), "a masked array")
    made = numpy.ma.MaskedArray(data, mask=numpy.ma.nomask if mask is None else mask, hard_mask=bool(hard))
    if fill is not None:
        wanted(isinstance(fill, numpy.ndarray) and fill.shape == (), "a masked array")
        made.fill_value = fill[()]
    return made
