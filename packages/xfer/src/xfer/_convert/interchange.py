"""Accepts arrays of any library: finds the library and the device without importing that library.

A library is found in `sys.modules`: a caller that passes its arrays has imported it.
"""

from __future__ import annotations

import sys
from functools import lru_cache
from typing import Any, Literal

import numpy as np

from xfer import _compiled
from xfer.errors import DeviceUnavailableError, UnsupportedDtypeError

_DLPACK_CPU = {1, 3, 11, 13}  # host, CUDA pinned host, ROCm pinned host, CUDA managed
_DLPACK_CUDA = 2


Library = Literal["numpy", "torch"]


def is_array(value: Any) -> bool:
    """Return whether a value is an array of some library."""
    if isinstance(value, np.ndarray | np.generic):
        return True
    if isinstance(value, type):  # a class has what its arrays have
        return False
    return any(hasattr(value, name) for name in ("__dlpack__", "__array_interface__", "__array__"))


def _loaded(module: str, name: str) -> Any:
    """Return a class of a module that is loaded, or None; another thread may be in the middle of the import."""
    return getattr(sys.modules.get(module), name, None)


def library_of(array: Any) -> str:
    """Return "numpy", "cupy", "torch" or "other"."""
    if isinstance(array, np.ndarray):
        return "numpy"
    for name, kind in (("torch", "Tensor"), ("cupy", "ndarray")):
        found = _loaded(name, kind)
        if found is not None and isinstance(array, found):
            return name
    return "other"


def device_of(array: Any) -> str:
    """Return "cpu" or "cuda:N"."""
    if isinstance(array, type):  # it has the same names as its arrays
        raise UnsupportedDtypeError(f"got the class {array.__qualname__}, want an array")
    if isinstance(array, np.ndarray | np.generic) or not hasattr(array, "__dlpack_device__"):
        return "cpu"
    library = library_of(array)
    if library == "torch" and array.is_cpu:
        return "cpu"
    if library == "torch" and array.device.type == "meta":
        raise UnsupportedDtypeError("a meta tensor has no data: put a tensor on the host or on a device")
    if library == "cupy":
        return f"cuda:{array.data.device_id}"  # managed memory too, which DLPack counts with the host's
    kind, index = array.__dlpack_device__()
    if int(kind) in _DLPACK_CPU:
        return "cpu"
    if int(kind) == _DLPACK_CUDA:
        return f"cuda:{index}"
    raise UnsupportedDtypeError(f"arrays on DLPack device type {int(kind)} cannot be shared; move it to the host first")


def on_host(value: Any) -> Any:
    """Return NumPy's array over a torch tensor on the host, and any other value as it is."""
    tensor = _loaded("torch", "Tensor")
    if tensor is not None and isinstance(value, tensor) and value.is_cpu:
        return _from_torch(value)
    return value


def host_array(array: Any) -> np.ndarray[Any, Any]:
    """Return a NumPy array over the same memory, or a copy where NumPy cannot view it in place.

    Args:
        array: Anything on the host: an ndarray subclass, a torch tensor, an object with DLPack or array interface, a
        list.

    Raises:
        UnsupportedDtypeError: The elements are Python objects.
    """
    if library_of(array) == "torch":
        return _from_torch(array)
    if isinstance(array, np.ndarray):
        masked = _loaded("numpy.ma", "MaskedArray")
        if masked is not None and isinstance(array, masked):
            raise UnsupportedDtypeError("a masked array is two arrays: put `.data` and `.mask` separately")
        return array.view(np.ndarray)
    if isinstance(array, str | bytes):  # NumPy's as well
        return _listed(array)
    if hasattr(array, "__array_interface__") or hasattr(array, "__array__"):
        return np.asarray(array)
    if hasattr(array, "__dlpack__"):
        return np.from_dlpack(array)
    return _listed(array)


def _listed(value: Any) -> np.ndarray[Any, Any]:
    """Return the array of a number, a text or a sequence; NumPy alone would take a mapping's keys."""
    kind = type(value).__name__
    if hasattr(value, "keys"):
        raise UnsupportedDtypeError(f"a {kind} is no array: put a dict of what it holds")
    try:
        array = np.asarray(value)
    except RuntimeError as error:  # of torch, whose tensors it holds
        raise UnsupportedDtypeError(f"a {kind} of such tensors is no array: put a list of them") from error
    except ValueError as error:
        raise UnsupportedDtypeError(f"a {kind} whose parts differ in shape is no array: put a dict of them") from error
    if array.dtype == object and not array.ndim:
        raise UnsupportedDtypeError(f"got a {kind}, want an array, or a dict, list, tuple or dataclass of arrays")
    if array.dtype.kind in "US" and not _holds_only(value, str if array.dtype.kind == "U" else bytes):
        raise UnsupportedDtypeError(f"a {kind} of text and other values is no array: put a dict of them")
    if array.dtype.kind in "US" and _ends_in_nul(value):
        raise UnsupportedDtypeError("an array drops the NULs that a text ends with: put a dict, which keeps them")
    return array


def _ends_in_nul(value: Any) -> bool:
    """Return whether a text, or one of a nested sequence of texts, ends with a NUL."""
    if isinstance(value, str | bytes):
        return value[-1:] in ("\0", b"\0")
    return any(map(_ends_in_nul, value))


def _holds_only(value: Any, kind: type) -> bool:
    return isinstance(value, kind) or (not isinstance(value, str | bytes) and _is_filled(value, kind))


def _is_filled(value: Any, kind: type) -> bool:
    try:
        return all(_holds_only(item, kind) for item in value)
    except TypeError:  # a number
        return False


def check_has_values(tensor: Any) -> None:
    """Refuse a parameter of a lazy module of torch that was never called.

    Raises:
        UnsupportedDtypeError: It is one.
    """
    is_lazy = _loaded("torch.nn.parameter", "is_lazy")
    if is_lazy is not None and is_lazy(tensor):
        raise UnsupportedDtypeError("this parameter has no shape and no values yet: call its lazy module first")


_BITS = {"bfloat16": "int16", "float8": "uint8"}  # torch types that NumPy has only with ml_dtypes, by their carrier


def _from_torch(tensor: Any) -> np.ndarray[Any, Any]:
    torch = sys.modules["torch"]
    try:
        plain: np.ndarray[Any, Any] = tensor.numpy()  # refuses what needs more, which costs the common case nothing
        return plain
    except (TypeError, RuntimeError, NotImplementedError):
        pass
    except ValueError:
        check_has_values(tensor)
        raise
    if tensor.layout is torch.strided and not getattr(tensor, "is_nested", False) and not tensor.is_quantized:
        tensor = tensor.detach().resolve_conj().resolve_neg()
    try:
        resolved: np.ndarray[Any, Any] = tensor.numpy()
        return resolved
    except (TypeError, RuntimeError, NotImplementedError) as error:
        reason = error
    name = str(tensor.dtype).removeprefix("torch.")
    if tensor.is_quantized:
        raise UnsupportedDtypeError("a quantized tensor is integers with scales: put `int_repr()` and the scales")
    if tensor.layout is not torch.strided or getattr(tensor, "is_nested", False):
        what = "nested" if getattr(tensor, "is_nested", False) else f"layout {tensor.layout}"
        raise UnsupportedDtypeError(f"a tensor of {what} is several arrays: put its parts or to_dense()")
    carrier = next((bits for start, bits in _BITS.items() if name.startswith(start)), None)
    if carrier is None:
        raise UnsupportedDtypeError(f"NumPy cannot view this tensor of {name}: {reason}") from reason
    from xfer._shared import dtypes

    dtype = dtypes.decode(f"{dtypes.ML_PREFIX}{name}".encode())
    view: np.ndarray[Any, Any] = tensor.contiguous().view(getattr(torch, carrier)).numpy().view(dtype)
    return view


# What `torch.from_numpy` takes as it is; a list, since looking for a dtype by identity is faster than its hash.
_PLAIN_KINDS = [np.dtype(kind) for kind in ("f4", "i8", "f8", "i4", "u1", "?", "f2", "i2", "i1")]
# DLPack's codes of kinds of elements.
_CODES = {"i": 0, "u": 1, "f": 2, "c": 5, "b": 6}
_ML_CODES = {"bfloat16": 4, "float8_e4m3fn": 10, "float8_e4m3fnuz": 11, "float8_e5m2": 12, "float8_e5m2fnuz": 13}


def dlpack_kind(dtype: np.dtype[Any]) -> int:
    """Return DLPack's code, bits and lanes of a dtype as one number, or 0 where torch has no such dtype."""
    ml = dtype.type.__module__.split(".")[0] == "ml_dtypes"
    code = _ML_CODES.get(dtype.name) if ml else _CODES.get(dtype.kind)
    if code is None or not dtype.isnative or dtype.itemsize > (16 if dtype.kind == "c" else 8):
        return 0
    return code | dtype.itemsize * 8 << 8 | 1 << 16


def tensor_interface() -> tuple[type, Any] | None:
    """Return torch's class of tensors and its DLPack exchange interface, or None where the core cannot use it."""
    kind = _loaded("torch", "Tensor")
    interface = getattr(kind, "__dlpack_c_exchange_api__", None)
    return None if kind is None or interface is None or not _core_takes(interface) else (kind, interface)


@lru_cache(maxsize=4)
def _core_takes(interface: Any) -> bool:
    """Return whether the core knows this version of the interface; without a core none is used."""
    if _compiled.module is None:
        return False
    try:
        _compiled.module.look([], None, interface)
    except ValueError:
        return False
    return True


def plain_tensor(tensor: Any) -> tuple[Any, np.dtype[Any] | None]:
    """Return a tensor of a device as DLPack can export it, and its dtype where only ml_dtypes has it.

    Raises:
        UnsupportedDtypeError: It is not one array, such as a sparse or quantized tensor.
    """
    torch = sys.modules["torch"]
    check_has_values(tensor)
    if tensor.layout is not torch.strided or getattr(tensor, "is_nested", False) or tensor.is_quantized:
        raise UnsupportedDtypeError(
            f"a {'quantized' if tensor.is_quantized else 'sparse or nested'} tensor is several arrays: put its parts"
        )
    tensor = tensor.detach().resolve_conj().resolve_neg()
    name = str(tensor.dtype).removeprefix("torch.")
    carrier = next((bits for start, bits in _BITS.items() if name.startswith(start)), None)
    if carrier is None:
        return tensor, None
    from xfer._shared import dtypes

    return tensor.view(getattr(torch, carrier)), dtypes.decode(f"{dtypes.ML_PREFIX}{name}".encode())


def private_tensor(array: np.ndarray[Any, Any]) -> Any:
    """Return a torch tensor over a copy of a small array.

    Raises:
        UnsupportedDtypeError: Torch has no such dtype.
    """
    copy = array.copy()
    try:
        return sys.modules["torch"].from_numpy(copy)
    except (
        KeyError,
        AttributeError,
        TypeError,
        ValueError,
    ):  # torch is not imported yet, or takes this dtype only by another
        return to_torch(copy)[0]


def check_library(as_: str, pin: bool = False) -> None:
    """Refuse the name of a library that arrays cannot be received in, and pinned memory where there is none.

    Raises:
        ValueError: It is no such library, or cannot be pinned.
        DeviceUnavailableError: There is no CUDA device.
    """
    if as_ not in ("numpy", "torch"):
        raise ValueError(f"got as_={as_!r}, want 'numpy' or 'torch'")
    if not pin:
        return
    if as_ != "torch":
        raise ValueError("only tensors are pinned: use as_='torch' with pin=True")
    import torch

    if not torch.cuda.is_available():
        raise DeviceUnavailableError("pinned memory needs a CUDA device that torch can use: leave `pin` out here")


def pinned(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Return a copy of an array in pinned memory, from which a GPU copies without waiting for the host."""
    import torch

    memory = torch.empty(array.nbytes, dtype=torch.uint8, pin_memory=True).numpy()
    copy: np.ndarray[Any, Any] = np.ndarray(array.shape, array.dtype, memory, 0, None, "F" if array.flags.fnc else "C")
    copy[...] = array
    return copy


def tensors(arrays: list[np.ndarray[Any, Any]]) -> list[Any]:
    """Return torch tensors over arrays, or over copies where torch needs one.

    Raises:
        UnsupportedDtypeError: Torch lacks a dtype.
    """
    import torch

    plain, make = _PLAIN_KINDS, torch.from_numpy
    if not all(array.flags.writeable for array in arrays):
        return [to_torch(array)[0] for array in arrays]
    return [make(array) if array.dtype in plain else to_torch(array)[0] for array in arrays]


def to_torch(array: np.ndarray[Any, Any]) -> tuple[Any, bool]:
    """Return a torch tensor over the array, and whether it had to be copied.

    Torch has no read-only tensors, no negative strides and no foreign byte order; each of those is a copy.

    Raises:
        UnsupportedDtypeError: Torch has no such dtype.
    """
    import torch

    copied = not array.dtype.isnative or not array.flags.writeable or any(s < 0 for s in array.strides)
    if copied:
        array = array.astype(array.dtype.newbyteorder("="), order="C", copy=True)
    if array.dtype.type.__module__.split(".")[0] == "ml_dtypes":
        target = getattr(torch, array.dtype.name, None)
        carrier = {1: np.uint8, 2: np.int16}.get(array.dtype.itemsize)
        if target is None or carrier is None:
            raise UnsupportedDtypeError(f"torch has no {array.dtype}")
        return torch.from_numpy(array.view(carrier)).view(target), copied
    try:
        return torch.from_numpy(array), copied
    except TypeError as error:
        raise UnsupportedDtypeError(f"torch has no {array.dtype}: {error}") from error
