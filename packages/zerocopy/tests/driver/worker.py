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
from contextlib import nullcontext
from multiprocessing.connection import Connection, Listener
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import stand_in
import torch

import zerocopy
from zerocopy._device import memory

torch.set_num_threads(1)
models: dict[str, Any] = {}


def environ(**variables: str) -> None:
    """Set variables of the environment."""
    os.environ.update(variables)


def load(ref: str, name: str = "model", device: str = "cuda", **options: Any) -> dict[str, Any]:
    """Load a model and return what it is over."""
    model = models[name] = zerocopy.ModelRef.from_json(ref).load(device=device, share=True, **options)
    copies = {name: memory.copy_at(tensor.data_ptr()) for name, tensor in model.state_dict().items() if tensor.numel()}
    own = [name for name, copy in copies.items() if copy is None]
    return {"protected": [copy.read_only for copy in set(copies.values()) if copy], "own": own}


def answer(name: str = "model") -> list[float]:
    """Return what a model answers."""
    model = models[name]
    first = next(model.parameters())
    with torch.no_grad():
        return model(torch.ones(2, model.inputs, device=first.device)).flatten().cpu().tolist()


def look(expression: str) -> Any:
    """Return the value of an expression over the models."""
    return eval(expression, {"torch": torch, "zerocopy": zerocopy, "os": os}, models)


def drop(name: str = "model", launch: bool = False, capture: bool | None = None) -> None:
    """Release a model, after queueing a kernel that reads it, or while a graph is being captured."""
    library = ctypes.CDLL("libcuda.so.1") if launch or capture is not None else None
    if launch:
        first = next(models[name].parameters())
        library.emulated_launch(ctypes.c_ulonglong(first.data_ptr()), ctypes.c_size_t(first.nbytes))
    if capture is not None:
        library.emulated_capture(int(capture))
    models.pop(name, None)
    gc.collect()


def write(name: str = "model", strict: bool = False) -> None:
    """Write to the first weight of a model."""
    with torch.no_grad(), zerocopy.strict(models[name]) if strict else nullcontext():
        next(models[name].parameters()).fill_(9)
    if torch.version.cuda:
        torch.cuda.synchronize()


def in_fork(ref: str) -> str:
    """Load in a forked process, which keeps the models of this one, and return the name of the error there."""
    (read, out), (hold, held) = os.pipe(), os.pipe()
    if not os.fork():
        os.close(held)
        try:
            zerocopy.ModelRef.from_json(ref).load(device="cuda", share=True)
            text = "loaded"
        except Exception as error:
            text = type(error).__name__
        os.write(out, text.encode())
        os.read(hold, 1)  # it stays until its parent ends
        os._exit(0)
    return os.read(read, 100).decode()


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
            if "emulated" in sys.argv:
                stand_in.install()
            connection.send(os.getpid())
            serve(connection)
            os._exit(0)


if __name__ == "__main__":
    main()
