"""Ways to hand arrays to another process: xfer and each peer behind the same four calls; knows nothing of timing.

A peer is made in the parent, where `send(array)` hands over. The child gets its `token` and makes from
it, with `receiver(token)`, a function that waits for the next array and returns it.
"""

# ruff: noqa: D102  # the four methods are the same everywhere; the module says what they do

from __future__ import annotations

import array
import ctypes
import mmap
import os
import socket
from multiprocessing import shared_memory
from typing import Any

import numpy as np


class Xfer:
    """This library: a channel from a pool, with leases and flow control."""

    name = "xfer"
    compiled = True

    def __init__(self, context: Any, capacity: int, pool: Any = None) -> None:
        import xfer

        self.pool = pool or xfer.Pool("4GiB")
        self.channel = xfer.Channel(capacity, pool=self.pool, compiled=self.compiled)
        self.token = self.channel.receiver

    def send(self, array: Any) -> None:
        self.channel.sender.send(array)

    def close(self) -> None:
        self.channel.close()
        self.pool.close()

    @staticmethod
    def receiver(token: Any) -> Any:
        return token.recv


class XferPlain(Xfer):
    """The same with the channel's core in Python, as where there was no compiler at installation."""

    name = "xfer, Python only"
    compiled = False


class Iceoryx2:
    """iceoryx2's publish and subscribe of byte slices, the payload copied in; waits by spinning, its fastest way."""

    name = "iceoryx2"

    def __init__(self, context: Any, capacity: int) -> None:
        import iceoryx2 as iox2

        iox2.set_log_level(iox2.LogLevel.Error)
        self.service_name = f"xfer-bench-{os.getpid()}-{os.urandom(4).hex()}"
        self.node, service = _iox_service(self.service_name, capacity)
        self.publisher = (
            service.publisher_builder()
            .initial_max_slice_len(64)
            .allocation_strategy(iox2.AllocationStrategy.PowerOfTwo)
            .create()
        )
        self.service = service
        self.token = (self.service_name, capacity)

    def send(self, array: Any) -> None:
        raw = np.ascontiguousarray(array).view(np.uint8).reshape(-1)
        sample = self.publisher.loan_slice_uninit(raw.nbytes)
        ctypes.memmove(sample.payload_ptr, raw.ctypes.data, raw.nbytes)
        sample.assume_init().send()

    def close(self) -> None:
        del self.publisher, self.service, self.node

    @staticmethod
    def receiver(token: Any) -> Any:
        _, service = node_service = _iox_service(*token)
        subscriber = service.subscriber_builder().buffer_size(token[1]).create()
        keep = [node_service]

        def recv() -> Any:
            assert keep
            while (sample := subscriber.receive()) is None:
                pass
            return np.frombuffer(sample.payload().as_memory_view(), np.uint8), sample

        return recv


def _iox_service(name: str, capacity: int) -> Any:
    import iceoryx2 as iox2

    iox2.set_log_level(iox2.LogLevel.Error)
    node = iox2.NodeBuilder.new().create(iox2.ServiceType.Ipc)
    service = (
        node.service_builder(iox2.ServiceName.new(name))
        .publish_subscribe(iox2.Slice[ctypes.c_uint8])
        .subscriber_max_buffer_size(capacity)
        .enable_safe_overflow(False)
        .open_or_create()
    )
    return node, service


class Pipe:
    """multiprocessing.Pipe, which pickles."""

    name = "Pipe"

    def __init__(self, context: Any, capacity: int) -> None:
        self.token, self.end = context.Pipe(duplex=False)

    def send(self, array: Any) -> None:
        self.end.send(array)

    def close(self) -> None:
        self.end.close()
        self.token.close()

    @staticmethod
    def receiver(token: Any) -> Any:
        return token.recv


class SharedMemory:
    """The standard library's segment per array, its name through a pipe; the receiver unlinks."""

    name = "SharedMemory"

    def __init__(self, context: Any, capacity: int) -> None:
        self.token, self.end = context.Pipe(duplex=False)

    def send(self, array: Any) -> None:
        segment = shared_memory.SharedMemory(create=True, size=array.nbytes)
        np.ndarray(array.shape, array.dtype, segment.buf)[...] = array
        self.end.send((segment.name, array.shape, array.dtype.str))
        segment.close()

    def close(self) -> None:
        self.end.close()
        self.token.close()

    @staticmethod
    def receiver(token: Any) -> Any:
        def recv() -> Any:
            name, shape, dtype = token.recv()
            segment = shared_memory.SharedMemory(name)
            segment.unlink()
            return np.ndarray(shape, dtype, segment.buf), segment

        return recv


class UnixSocket:
    """A Unix stream socket with a reused buffer on the receiving side."""

    name = "Unix socket"

    def __init__(self, context: Any, capacity: int) -> None:
        self.end, self.token = socket.socketpair()
        self.end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)

    def send(self, array: Any) -> None:
        raw = memoryview(np.ascontiguousarray(array)).cast("B")
        self.end.sendall(len(raw).to_bytes(8, "little"))
        self.end.sendall(raw)

    def close(self) -> None:
        self.end.close()
        self.token.close()

    @staticmethod
    def receiver(token: Any) -> Any:
        buffer = memoryview(bytearray(1 << 16))

        def exactly(view: memoryview) -> None:
            got = 0
            while got < len(view):
                got += token.recv_into(view[got:])

        def recv() -> Any:
            nonlocal buffer
            exactly(buffer[:8])
            length = int.from_bytes(buffer[:8], "little")
            if length > len(buffer):
                buffer = memoryview(bytearray(length))
            exactly(buffer[:length])
            return np.frombuffer(buffer[:length], np.uint8)

        return recv


class FreshMemfd:
    """A new memfd per array, its descriptor passed through a Unix socket."""

    name = "memfd + fd passing"

    def __init__(self, context: Any, capacity: int) -> None:
        self.end, self.token = socket.socketpair()

    def send(self, source: Any) -> None:
        fd = os.memfd_create("bench")
        os.ftruncate(fd, source.nbytes)
        os.pwrite(fd, memoryview(source).cast("B"), 0)
        self.end.sendmsg([b"x"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [fd]))])
        os.close(fd)

    def close(self) -> None:
        self.end.close()
        self.token.close()

    @staticmethod
    def receiver(token: Any) -> Any:
        def recv() -> Any:
            _, control, _, _ = token.recvmsg(1, 64)
            fd = int.from_bytes(control[0][2][:4], "little")
            memory = mmap.mmap(fd, 0, prot=mmap.PROT_READ)
            os.close(fd)
            return np.frombuffer(memory, np.uint8)

        return recv


class _Torch:
    strategy = ""

    def __init__(self, context: Any, capacity: int) -> None:
        import torch.multiprocessing as tmp

        tmp.set_sharing_strategy(self.strategy)
        self.queue = tmp.get_context("spawn").SimpleQueue()
        self.token = (self.queue, self.strategy)

    def send(self, array: Any) -> None:
        import torch

        self.queue.put(torch.from_numpy(array).clone())

    def close(self) -> None:
        self.queue.close()

    @staticmethod
    def receiver(token: Any) -> Any:
        import torch.multiprocessing as tmp

        tmp.set_sharing_strategy(token[1])
        return lambda: token[0].get().numpy()


class TorchDescriptor(_Torch):
    """torch.multiprocessing passing file descriptors."""

    name = "torch (fd)"
    strategy = "file_descriptor"


class TorchFile(_Torch):
    """torch.multiprocessing with named files."""

    name = "torch (file)"
    strategy = "file_system"


class Arrow:
    """pyarrow's IPC stream written into and read from a memory map of /dev/shm; a pipe says when."""

    name = "pyarrow"

    def __init__(self, context: Any, capacity: int) -> None:
        self.token, self.end = context.Pipe(duplex=False)
        self.number = 0

    def send(self, array: Any) -> None:
        import pyarrow as pa

        path = f"/dev/shm/xfer-bench-{os.getpid()}-{self.number}"
        self.number += 1
        tensor = pa.Tensor.from_numpy(array)
        with open(path, "wb") as file:
            file.truncate(array.nbytes + 4096)
        with pa.memory_map(path, "r+") as target:
            pa.ipc.write_tensor(tensor, target)
        self.end.send(path)

    def close(self) -> None:
        self.end.close()
        self.token.close()

    @staticmethod
    def receiver(token: Any) -> Any:
        import pyarrow as pa

        def recv() -> Any:
            path = token.recv()
            with pa.memory_map(path, "r") as source:
                result = pa.ipc.read_tensor(source).to_numpy()
            os.unlink(path)
            return result

        return recv


PEERS = {peer.name: peer for peer in (
    Xfer, XferPlain, Iceoryx2, Pipe, SharedMemory, UnixSocket, FreshMemfd, TorchDescriptor, TorchFile, Arrow,
)}  # fmt: skip
