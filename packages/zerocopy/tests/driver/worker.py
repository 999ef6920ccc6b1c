"""Forks workers that load onto a device, each for one connection to the socket in the first argument.

With `emulated` as the second argument they use the emulated driver. A request is the name of a function below and its
arguments. Workers are forked from a process that has imported torch, because that takes most of a worker's time.
"""

from __future__ import annotations

import ctypes
import gc
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from contextlib import nullcontext
from multiprocessing.connection import Connection, Listener
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import stand_in
import torch

import zerocopy
from zerocopy._device import memory, upload
from zerocopy._device.driver import Driver, DriverError

torch.set_num_threads(1)
ON_GPU = "emulated" not in sys.argv
models: dict[str, Any] = {}


def environ(**variables: str) -> None:
    """Set variables of the environment."""
    os.environ.update(variables)


def around(method: str, change: Callable[..., Any], **matching: Any) -> None:
    """Have a method of the driver call `change(real, self, …)`, where its keyword arguments match."""
    real = getattr(Driver, method)

    def changed(self: Driver, *args: Any, **kwargs: Any) -> Any:
        if matching.items() <= kwargs.items():
            return change(real, self, *args, **kwargs)
        return real(self, *args, **kwargs)

    setattr(Driver, method, changed)


def refuse(method: str, status: int, **matching: Any) -> None:
    """Have the driver refuse a call."""

    def change(*_: Any, **__: Any) -> None:
        raise DriverError(status, f"{method}: refused ({status})")

    around(method, change, **matching)


def answer_with(method: str, value: Any) -> None:
    """Have the driver answer a call with a value."""
    around(method, lambda *_, **__: value)


def small_pieces() -> None:
    """Pin less at a time, so that pieces are unpinned while others are copied."""
    upload._PIECE = 1 << 18


def slow(seconds: float, begun: str | None = None) -> None:
    """Make a copy to the device take long, and make a file when it begins."""

    def change(real: Callable[..., None], *args: Any) -> None:
        if begun is not None:
            Path(begun).touch()
        time.sleep(seconds)
        real(*args)

    around("to_device", change)


def damage() -> None:
    """Let a wrong byte arrive on the device."""

    def change(real: Callable[..., None], self: Driver, address: int, host: int, nbytes: int, stream: int) -> None:
        wrong = (ctypes.c_ubyte * nbytes).from_buffer_copy((ctypes.c_ubyte * nbytes).from_address(host))
        wrong[nbytes // 2] ^= 1
        real(self, address, ctypes.addressof(wrong), nbytes, stream)
        self.finish(stream)

    around("to_device", change)


def load(ref: str, name: str = "model", device: str = "cuda", **options: Any) -> dict[str, Any]:
    """Load a model and return what it is over."""
    model = models[name] = zerocopy.ModelRef.from_json(ref).load(device=device, **{"share": True} | options)
    copies = {name: memory.copy_at(tensor.data_ptr()) for name, tensor in model.state_dict().items() if tensor.numel()}
    own = [name for name, copy in copies.items() if copy is None]
    return {"protected": [copy.read_only for copy in set(copies.values()) if copy], "own": own}


def load_and_leave(ref: str) -> int:
    """Load a copy of a model; return how much the device had left to do, while nothing after the load waits for it."""
    counted, end = threading.Event(), upload.Upload.end

    def late(self: upload.Upload) -> None:
        counted.wait(60)
        end(self)

    upload.Upload.end = late
    try:
        load(ref, share=False)
        if ON_GPU:
            return int(not torch.cuda.current_stream().query())
        return ctypes.CDLL("libcuda.so.1").emulated_queued()
    finally:
        counted.set()
        upload.Upload.end = end


def answer(name: str = "model") -> list[float]:
    """Return what a model answers."""
    model = models[name]
    first = next(model.parameters())
    with torch.no_grad():
        return model(torch.ones(2, model.inputs, device=first.device)).flatten().cpu().tolist()


def look(expression: str) -> Any:
    """Return the value of an expression over the models."""
    return eval(expression, {"torch": torch, "zerocopy": zerocopy, "os": os}, models)


def drop(name: str = "model") -> None:
    """Release a model."""
    models.pop(name, None)
    gc.collect()


def drop_in_use(name: str = "model") -> Any:
    """Release a model while the device has work that reads it. Return what the work gives, where there is a device."""
    first, result = next(models[name].parameters()).detach(), None
    if ON_GPU:
        torch.cuda._sleep(10**9)
        result = first.sum()
    else:
        library = ctypes.CDLL("libcuda.so.1")
        library.emulated_launch(ctypes.c_ulonglong(first.data_ptr()), ctypes.c_size_t(first.nbytes))
    del first
    drop(name)
    return None if result is None else result.item()


def drop_in_capture(name: str = "model") -> tuple[bool, Any]:
    """Release a model while a graph is captured. Return whether it stayed mapped, and what the graph gives."""
    copy = memory.copy_at(next(models[name].parameters()).data_ptr())
    address = copy.address
    del copy
    unmapped = []
    around("unmap", lambda real, *args: (real(*args), unmapped.append(args[1])))
    if not ON_GPU:
        library = ctypes.CDLL("libcuda.so.1")
        library.emulated_capture(1)
        drop(name)
        time.sleep(0.5)
        stayed = address not in unmapped
        library.emulated_capture(0)
        return stayed, 2
    graph, number = torch.cuda.CUDAGraph(), torch.ones(1, device="cuda")
    with torch.cuda.graph(graph):
        number += 1
        drop(name)
        time.sleep(0.5)
        stayed = address not in unmapped
    graph.replay()
    return stayed, number.item()


def write(name: str = "model", strict: bool = False) -> None:
    """Write to the first weight of a model."""
    with torch.no_grad(), zerocopy.strict(models[name]) if strict else nullcontext():
        next(models[name].parameters()).fill_(9)
    if ON_GPU:
        torch.cuda.synchronize()


def in_fork(ref: str) -> list[str]:
    """Load in a forked process, which keeps the models of this one, and return the names of the errors there."""
    (read, out), (hold, held) = os.pipe(), os.pipe()
    if not os.fork():
        os.close(held)
        names = []
        for options in ({"share": True}, {}, {"cached": False}, {"share": True, "cached": False}):
            for device in ("cuda", "cuda:0"):
                try:
                    zerocopy.ModelRef.from_json(ref).load(device=device, **options)
                    names.append("loaded")
                except Exception as error:
                    names.append(type(error).__name__)
        if ON_GPU:
            try:
                zerocopy.publish(models["model"])
            except Exception as error:
                names.append(type(error).__name__)
        os.write(out, " ".join(names).encode())
        os.read(hold, 1)  # it stays until its parent ends
        os._exit(0)
    os.close(out)
    return os.read(read, 1000).decode().split()


def serve(connection: Connection) -> None:
    """Answer requests until the connection ends."""
    while True:
        try:
            function, args, kwargs = connection.recv()
        except (EOFError, ConnectionError):
            return
        try:
            connection.send((True, globals()[function](*args, **kwargs)))
        except Exception as error:
            connection.send((False, error))


def main() -> None:
    """Fork a worker for each connection."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    with Listener(sys.argv[1], "AF_UNIX", backlog=16) as listener:
        print("ready", flush=True)
        while True:
            connection = listener.accept()
            if os.fork():
                connection.close()
                continue
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            if not ON_GPU:
                stand_in.install()
            connection.send(os.getpid())
            serve(connection)
            os._exit(0)


if __name__ == "__main__":
    main()
