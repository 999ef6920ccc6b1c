"""`cupy.ndarray` over the emulated machine: its values are only seen by work on streams."""

from __future__ import annotations

import warnings

import numpy as np

from cupy import cuda
from cupy._machine import POISON, machine


class _Flags:
    def __init__(self, flags):
        self.c_contiguous, self.f_contiguous = flags.c_contiguous, flags.f_contiguous
        self.writeable = True


class ndarray:
    """An array on a device."""

    __array_priority__ = 100
    __array_ufunc__ = None

    def __init__(self, shape, dtype=float, memptr=None, strides=None, order="C"):
        shape = (shape,) if isinstance(shape, int) else tuple(shape)
        dtype = np.dtype(dtype)
        if dtype.name.startswith("float8"):
            raise ValueError(f"Unsupported dtype {dtype}")  # as CuPy before 15
        if memptr is None:
            memptr = cuda.alloc(int(np.prod(shape, dtype=np.int64)) * dtype.itemsize)
        self.data = memptr
        self._np = machine.view(memptr.ptr, shape, dtype, strides, order)

    @classmethod
    def _over(cls, data, view):
        made = object.__new__(cls)
        made.data, made._np = data, view
        return made

    shape = property(lambda self: self._np.shape)
    dtype = property(lambda self: self._np.dtype)
    strides = property(lambda self: self._np.strides)
    size = property(lambda self: self._np.size)
    ndim = property(lambda self: self._np.ndim)
    nbytes = property(lambda self: self._np.nbytes)
    itemsize = property(lambda self: self._np.itemsize)
    flags = property(lambda self: _Flags(self._np.flags))
    device = property(lambda self: cuda.Device(self.data.device_id))

    @property
    def T(self):
        return self._view(self._np.T)

    def _view(self, view):
        offset = view.__array_interface__["data"][0] - self.data.mem.ptr if view.size else 0
        return ndarray._over(cuda.MemoryPointer(self.data.mem, offset), view)

    def view(self, dtype=None):
        return self._view(self._np.view(np.dtype(dtype)))

    def reshape(self, *shape):
        return self._view(self._np.reshape(*shape))

    def transpose(self, *axes):
        return self._view(self._np.transpose(*axes))

    def __getitem__(self, key):
        return self._view(_at(self._np, key))

    def __setitem__(self, key, value):
        _launch(lambda out, x: np.copyto(out, x, casting="unsafe"), _at(self._np, key), [value])

    def __len__(self):
        return len(self._np)

    def fill(self, value):
        self[...] = value

    def astype(self, dtype, order="K", copy=True):
        if not copy and self.dtype == dtype:
            return self
        return _call(lambda x: x.astype(dtype), self)

    def copy(self, order="C"):
        if self.data.device_id == machine.device:
            return _call(lambda x: x.copy(order), self)
        if not (self._np.flags.c_contiguous or self._np.flags.f_contiguous):
            raise NotImplementedError("CuPy cannot copy non-contiguous array between devices.")
        made = ndarray(self.shape, self.dtype, order="C" if self._np.flags.c_contiguous else "F")
        made.data.copy_from_device_async(self.data, self.nbytes)
        return made

    def get(self, stream=None, order="C", out=None, blocking=True):
        with cuda.Device(self.data.device_id):
            result = np.empty(self.shape, self.dtype, order)
            stream = stream or cuda.get_current_stream()
            source = self._np

            def work():
                if machine.touch([source], "a copy to the host"):
                    result[...] = source
                else:
                    result.reshape(-1).view(np.uint8)[:] = POISON

            machine.run(machine.enqueue(stream.ptr, work, launching=True))
            return result

    def item(self):
        return self.get().item()

    def tolist(self):
        return self.get().tolist()

    __int__ = lambda self: int(self.get().item())  # noqa: E731
    __float__ = lambda self: float(self.get().item())  # noqa: E731
    __bool__ = lambda self: bool(self.get().item())  # noqa: E731
    __index__ = lambda self: int(self.get().item())  # noqa: E731

    def __array__(self, *args, **options):
        raise TypeError("Implicit conversion to a NumPy array is not allowed. Please use `.get()`.")

    def __dlpack_device__(self):
        region = machine.find(self.data.ptr)
        return (13 if region is not None and region.kind == "managed" else 2), self.data.device_id

    def __dlpack__(self, *, stream=None, **options):
        current = cuda.get_current_stream()
        if stream not in (-1, None) and stream != (current.ptr or 1):
            event = current.record()
            machine.wait_event(stream, event.ptr)
        return self  # the emulated consumers take the array for a capsule

    def sum(self, axis=None, keepdims=False):
        return _call(lambda x: np.sum(x, axis=axis, keepdims=keepdims), self)

    def mean(self, axis=None, keepdims=False):
        return _call(lambda x: np.mean(x, axis=axis, keepdims=keepdims), self)

    def min(self, axis=None, keepdims=False):
        return _call(lambda x: np.min(x, axis=axis, keepdims=keepdims), self)

    def max(self, axis=None, keepdims=False):
        return _call(lambda x: np.max(x, axis=axis, keepdims=keepdims), self)

    def all(self):
        return _call(lambda x: np.all(x), self)


def _at(array, key):
    """Return a view, of no dimensions where NumPy would return a scalar."""
    key = key if isinstance(key, tuple) else (key,)
    return array[key] if Ellipsis in [k for k in key if k is Ellipsis] else array[(*key, ...)]


def _operand(value):
    """Return a device array's memory, or the value of a number or host array (copied when the call is made)."""
    if isinstance(value, ndarray):
        if value.data.device_id != machine.device:
            raise ValueError(
                f"Array device must be same as the current device: array device = {value.data.device_id} "
                f"while current = {machine.device}"
            )
        return value._np
    if isinstance(value, np.ndarray) and value.ndim:
        raise TypeError(f"Unsupported type {type(value)}")
    return value


def _launch(function, out, operands):
    """Queue `function(out, *operands)` on the current stream."""
    operands = [_operand(value) for value in operands]
    gone = [x for x in operands if isinstance(x, np.ndarray) and x.size]

    def work():
        if machine.touch([out], "a kernel") and machine.touch(gone, "a kernel"):
            with np.errstate(all="ignore"), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                function(out, *operands)
        elif machine.find(_address(out)) is not None:
            out[...] = np.frombuffer(bytes([POISON]) * out.itemsize, out.dtype)[0]

    machine.enqueue(cuda.get_current_stream().ptr, work, launching=True)


def _address(array):
    return array.__array_interface__["data"][0]


def _call(function, *operands):
    """Return a new array for the result of a kernel; its shape is found without looking at the values."""
    shapes = [np.ones(x.shape, x.dtype) if isinstance(x, ndarray) else x for x in operands]
    with np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        like = np.asarray(function(*shapes))
    made = ndarray(
        like.shape, like.dtype, order="F" if like.flags.f_contiguous and not like.flags.c_contiguous else "C"
    )
    _launch(lambda out, *values: np.copyto(out, function(*values), casting="unsafe"), made._np, operands)
    return made


def _operator(name):
    function = getattr(np, name)
    return lambda self, other: _call(function, self, other), lambda self, other: _call(function, other, self)


for _symbol, _name in {
    "add": "add", "sub": "subtract", "mul": "multiply", "truediv": "true_divide", "pow": "power", "matmul": "matmul",
    "floordiv": "floor_divide", "mod": "remainder",
}.items():  # fmt: skip
    _forward, _backward = _operator(_name)
    setattr(ndarray, f"__{_symbol}__", _forward)
    setattr(ndarray, f"__r{_symbol}__", _backward)


def _in_place(function):
    def method(self, other):
        _launch(lambda out, x: np.copyto(out, function(out, x), casting="unsafe"), self._np, [other])
        return self

    return method


for _symbol, _name in {"add": "add", "sub": "subtract", "mul": "multiply"}.items():
    setattr(ndarray, f"__i{_symbol}__", _in_place(getattr(np, _name)))
for _symbol, _name in {"eq": "equal", "ne": "not_equal", "lt": "less", "gt": "greater"}.items():
    setattr(ndarray, f"__{_symbol}__", _operator(_name)[0])
ndarray.__hash__ = None


def unary(function):
    return lambda x, *args, **options: _call(lambda y: function(y, *args, **options), x)


def binary(name):
    function = getattr(np, name)
    return lambda a, b: _call(function, a, b)


def empty(shape, dtype=float, order="C"):
    return ndarray(shape, dtype, order=order)


def full(shape, value, dtype=None):
    made = ndarray(shape, dtype or np.asarray(value).dtype)
    made.fill(value)
    return made


def asarray(value, dtype=None, order=None):
    """Return an array on the current device: host data is staged, then copied on the current stream (rule 2)."""
    if isinstance(value, ndarray):
        if value.data.device_id == machine.device:
            return value if dtype in (None, value.dtype) else value.astype(dtype)
        return value.copy()
    staged = np.array(value, dtype, order=order or "K")
    if staged.dtype.hasobject:
        raise ValueError(f"Unsupported dtype {staged.dtype}")
    fortran = staged.flags.f_contiguous and not staged.flags.c_contiguous
    made = ndarray(staged.shape, staged.dtype, order="F" if fortran else "C")
    _launch_host(made._np, staged)
    return made


def _launch_host(out, staged):
    def work():
        if machine.touch([out], "a copy from the host"):
            out[...] = staged

    machine.enqueue(cuda.get_current_stream().ptr, work, launching=True)


def ascontiguousarray(value, dtype=None):
    """Return a C-contiguous array of at least one dimension, as CuPy does."""
    array = asarray(value, dtype)
    if not array.ndim:
        array = array.reshape(1)
    return array if array._np.flags.c_contiguous else _call(lambda x: np.ascontiguousarray(x), array)


def asfortranarray(value):
    array = asarray(value)
    return array if array._np.flags.f_contiguous else _call(lambda x: np.asfortranarray(x), array)


def from_dlpack(value):
    """Return an array over a device array of another library, ordered behind its work on CuPy's current stream."""
    kind, index = value.__dlpack_device__()
    if int(kind) not in (2, 13):
        raise TypeError("CPU arrays cannot be directly imported to CuPy.")
    with cuda.Device(index):
        return value.__dlpack__(stream=cuda.get_current_stream().ptr or 1)
