"""Build a model inside the segment file that will hold it, so that its weights are on no heap and are copied nowhere.

`Arena` hands out memory of the file. `InArena` is a torch mode in which large new tensors are made there. Once the
segment is sealed, the memory turns into an ordinary private copy-on-write view of it, so that a later write to a tensor
that is still referenced stays in this process.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import sys
import weakref
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch

from zerocopy._segment.format import PAGE, round_up
from zerocopy._torch_private import TorchDispatchMode, schema_of
from zerocopy.errors import NoSpaceError

ROOM = 8 << 20  # bytes left free for header, manifest and skeleton; they take no memory until they are written
LARGE = 1 << 16  # smaller tensors stay on the heap
_CHUNK = 256 << 20  # bytes mapped at a time; they take no memory until they are handed out
_KEEP_SIZE_PUNCH_HOLE = 3
_MAP_FIXED = 0x10
_libc = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None
if _libc is not None:
    _libc.mmap.restype = ctypes.c_void_p


class _Chunk(NamedTuple):
    """A mapped part of the file."""

    address: int
    offset: int
    nbytes: int
    mapped: mmap.mmap


class Arena:
    """Memory of an open file.

    Args:
        fd: A file that is open for reading and writing and empty.
    """

    def __init__(self, fd: int) -> None:
        self.end = ROOM
        self._fd = fd
        self._chunks: list[_Chunk] = []
        self._used = 0  # of the last chunk
        self._live: dict[int, weakref.ref[memoryview]] = {}
        self._sealed = False

    @property
    def used(self) -> bool:
        """Whether it has handed out any memory."""
        return bool(self._chunks)

    def allocate(self, nbytes: int) -> memoryview:
        """Return zeroed memory of the file. It goes back to the file system when nothing refers to it any more.

        Raises:
            NoSpaceError: The file system is full.
        """
        length = round_up(nbytes, PAGE)
        if not self._chunks or self._used + length > self._chunks[-1].nbytes:
            self._grow(length)
        chunk, start = self._chunks[-1], self._used
        try:
            os.posix_fallocate(self._fd, chunk.offset + start, length)
        except OSError as error:
            raise _no_room(nbytes, error) from error
        self._used += length
        self.end = max(self.end, chunk.offset + start + length)
        view = memoryview(chunk.mapped)[start : start + nbytes]
        offset = chunk.offset + start
        self._live[offset] = weakref.ref(view, self._freed(offset, length))
        return view

    def _freed(self, offset: int, length: int) -> Callable[[object], None]:
        mine = weakref.ref(self)

        def free(_view: object) -> None:
            arena = mine()
            if arena is not None:
                arena.free(offset, length)

        return free

    def free(self, offset: int, length: int) -> None:
        """Give a range back to the file system, unless the segment is sealed."""
        self._live.pop(offset, None)
        if not self._sealed and _libc is not None:
            _libc.fallocate(self._fd, _KEEP_SIZE_PUNCH_HOLE, ctypes.c_long(offset), ctypes.c_long(length))

    def _grow(self, length: int) -> None:
        nbytes = max(_CHUNK, length)
        offset = self._chunks[-1].offset + self._chunks[-1].nbytes if self._chunks else ROOM
        try:
            os.ftruncate(self._fd, offset + nbytes)
            mapped = mmap.mmap(self._fd, nbytes, offset=offset)
        except OSError as error:
            raise _no_room(nbytes, error) from error
        address = torch.frombuffer(mapped, dtype=torch.uint8, count=1).data_ptr()
        self._chunks.append(_Chunk(address, offset, nbytes, mapped))
        self._used = 0

    def offset_of(self, address: int) -> int | None:
        """Return the place in the file of an address, or None for memory that is not of this arena."""
        for chunk in self._chunks:
            if chunk.address <= address < chunk.address + chunk.nbytes:
                return chunk.offset + address - chunk.address
        return None

    def seal(self) -> None:
        """Make what was handed out a private copy-on-write view of the file."""
        self._sealed = True
        if _libc is None:
            return
        private, both = mmap.MAP_PRIVATE | _MAP_FIXED, mmap.PROT_READ | mmap.PROT_WRITE
        for chunk in self._chunks:
            there = _libc.mmap(
                ctypes.c_void_p(chunk.address), ctypes.c_size_t(chunk.nbytes), both, private, self._fd,
                ctypes.c_long(chunk.offset),
            )  # fmt: skip
            if there != chunk.address:
                raise OSError(ctypes.get_errno(), "cannot map the segment privately")


def _no_room(nbytes: int, error: OSError) -> NoSpaceError:
    text = f"no room for {nbytes} more bytes of the model ({error.strerror}); nothing was published"
    return NoSpaceError(error.errno, f"{text}: free some memory, or pass directory= to publish on disk")


class InArena(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Makes large new tensors in an arena.

    Args:
        arena: The arena.
        copies_only: Leave tensors without content on the heap, whose untouched pages take no memory.
    """

    def __init__(self, arena: Arena, *, copies_only: bool = False) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.arena = arena
        self.copies_only = copies_only

    def empty(self, size: Any, stride: Any, dtype: torch.dtype) -> torch.Tensor | None:
        """Return a zeroed tensor in the arena, or None for a small one."""
        reach = 1 + sum((count - 1) * step for count, step in zip(size, stride, strict=True))
        nbytes = 0 if 0 in size else reach * dtype.itemsize
        if nbytes < LARGE:
            return None
        flat = torch.frombuffer(self.arena.allocate(nbytes), dtype=dtype)
        return flat.as_strided(size, stride)


def _is_plain(tensor: object) -> bool:
    return type(tensor) in (torch.Tensor, torch.nn.Parameter)


def _contiguous(size: Any) -> list[int]:
    stride, step = [], 1
    for count in reversed(size):
        stride.append(step)
        step *= max(1, count)
    return stride[::-1]


def _on_host(options: dict[str, Any], like: torch.Tensor | None = None) -> bool:
    device = options.get("device")
    kind = torch.device(device).type if device is not None else like.device.type if like is not None else "cpu"
    return kind == "cpu" and options.get("layout") in (None, torch.strided) and not options.get("pin_memory")


def _make_empty(mode: InArena, func: Any, args: Any, options: dict[str, Any]) -> torch.Tensor | None:
    """Make what an operator like empty, zeros, full or randn returns; None leaves it to the operator."""
    name = schema_of(func).name.removeprefix("aten::")
    like = args[0] if args and isinstance(args[0], torch.Tensor) else None
    if mode.copies_only or not _on_host(options, like) or options.get("memory_format") not in (
        None, torch.contiguous_format, torch.preserve_format,
    ):  # fmt: skip
        return None
    if name.endswith("_like"):
        assert like is not None
        if like.device.type != "cpu" or not _is_plain(like) or not like.is_contiguous():
            return None
        size, rest = like.shape, args[1:]
    elif name.startswith("new_"):
        size, rest = args[1], args[2:]
    else:
        size, rest = args[0], args[1:]
    dtype = options.get("dtype") or (like.dtype if like is not None else torch.get_default_dtype())
    stride = rest[0] if name.endswith("empty_strided") else _contiguous(size)
    made = mode.empty(size, stride, dtype)
    if made is None:
        return None
    kind = name.removeprefix("new_").removesuffix("_like")
    if kind == "ones":
        made.fill_(1)
    elif kind == "full":
        made.fill_(rest[0])
    elif kind in ("rand", "randn"):
        fill = made.uniform_ if kind == "rand" else made.normal_
        fill(generator=options.get("generator"))
    return made


def _make_copy(mode: InArena, func: Any, args: Any, options: dict[str, Any]) -> torch.Tensor | None:
    """Make what `_to_copy`, `clone`, `cat` or `stack` returns; None leaves it to the operator."""
    name = schema_of(func).name.removeprefix("aten::")
    if name in ("cat", "stack"):
        parts = args[0]
        if not all(_is_plain(part) and part.device.type == "cpu" for part in parts):
            return None
        if len({part.dtype for part in parts}) != 1:
            return None
        shape = func(*[[part.to("meta") for part in parts], *args[1:]], **options).shape
        out = mode.empty(shape, _contiguous(shape), parts[0].dtype)
        if out is not None:
            getattr(torch.ops.aten, name).out(*args, **options, out=out)
        return out
    source = args[0]
    if not _is_plain(source) or source.device.type != "cpu" or not _on_host(options, source):
        return None
    layout = options.get("memory_format") or torch.preserve_format
    if layout not in (torch.preserve_format, torch.contiguous_format):
        return None
    dense = torch.empty_like(source, device="meta", memory_format=layout)
    out = mode.empty(source.shape, dense.stride(), options.get("dtype") or source.dtype)
    return None if out is None else out.copy_(source)


_MAKERS: dict[str, Any] = {
    **dict.fromkeys(
        (
            "empty", "empty_strided", "empty_like", "new_empty", "zeros", "zeros_like", "new_zeros", "ones",
            "ones_like", "new_ones", "full", "full_like", "new_full", "rand", "randn", "rand_like", "randn_like",
        ),
        _make_empty,
    ),
    **dict.fromkeys(("_to_copy", "clone", "cat", "stack"), _make_copy),
}  # fmt: skip


def run_in_arena(mode: InArena, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """Run an operator, with a large new result in the arena."""
    maker = _MAKERS.get(schema_of(func).name.removeprefix("aten::"))
    if maker is not None:
        made = maker(mode, func, args, kwargs)
        if made is not None:
            return made
        return func(*args, **kwargs)
    result = func(*args, **kwargs)
    return _moved(mode, result, args, kwargs) if isinstance(result, torch.Tensor) else result


def _moved(mode: InArena, result: torch.Tensor, args: Any, kwargs: dict[str, Any]) -> torch.Tensor:
    """Move a large new tensor into the arena."""
    if type(result) is not torch.Tensor or result.device.type != "cpu" or result.layout is not torch.strided:
        return result
    if result.is_quantized or result.nbytes < LARGE or result.is_conj() or result.is_neg():
        return result
    storage = result.untyped_storage()
    if mode.arena.offset_of(storage.data_ptr()) is not None or storage.nbytes() != result.nbytes:
        return result
    for value in _leaves((args, kwargs)):
        if isinstance(value, torch.Tensor) and _address(value) == storage.data_ptr():
            return result  # a view, or written in place
    made = mode.empty(result.shape, result.stride(), result.dtype)
    return result if made is None else made.copy_(result)


def _leaves(value: Any) -> Iterator[Any]:
    if isinstance(value, dict):
        value = value.values()
    if isinstance(value, list | tuple | type({}.values())):
        for part in value:
            yield from _leaves(part)
    else:
        yield value


def _address(tensor: torch.Tensor) -> int:
    try:
        return tensor.untyped_storage().data_ptr()
    except (RuntimeError, NotImplementedError):
        return 0


def _dispatch(
    mode: InArena, func: Any, _types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
) -> Any:
    return run_in_arena(mode, func, args, kwargs or {})


# Set after the class is made for the reason given in _writes.py: it keeps torch._dynamo out.
InArena.__torch_dispatch__ = _dispatch  # type: ignore[method-assign, assignment]
