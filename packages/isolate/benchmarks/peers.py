"""The peers that isolate is measured against: each a no-op call to another process, on its own terms."""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import logging
import multiprocessing
import os
import socket
import struct
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import AsyncIterator, Awaitable, Callable
from importlib import metadata
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from isolate import EnvironmentStore, Manifest
from isolate._environments import default_store

Call = Callable[..., Awaitable[Any]]

FLOOR = """
import asyncio, socket, struct, sys, msgspec
async def main():
    reader, writer = await asyncio.open_unix_connection(sock=socket.socket(fileno=int(sys.argv[1])))
    encode, decode = msgspec.msgpack.Encoder().encode, msgspec.msgpack.Decoder().decode
    async def answer(number, name, args):
        data = encode((number, None))
        writer.write(struct.pack("<I", len(data)) + data)
    while True:
        size, = struct.unpack("<I", await reader.readexactly(4))
        asyncio.get_running_loop().create_task(answer(*decode(await reader.readexactly(size))))
try:
    asyncio.run(main())
except asyncio.IncompleteReadError:
    pass
"""


@contextlib.asynccontextmanager
async def msgspec_loop() -> AsyncIterator[Call]:
    """The floor: asyncio streams and msgspec over a socketpair, nothing else."""
    import msgspec

    ours, theirs = socket.socketpair()
    process = subprocess.Popen([sys.executable, "-c", FLOOR, str(theirs.fileno())], pass_fds=(theirs.fileno(),))
    theirs.close()
    reader, writer = await asyncio.open_unix_connection(sock=ours)
    encode, decode = msgspec.msgpack.Encoder().encode, msgspec.msgpack.Decoder().decode
    waiting: dict[int, asyncio.Future[Any]] = {}

    async def read() -> None:
        while True:
            (size,) = struct.unpack("<I", await reader.readexactly(4))
            number, value = decode(await reader.readexactly(size))
            waiting.pop(number).set_result(value)

    task = asyncio.get_running_loop().create_task(read())
    counter = iter(range(1 << 60))

    async def call() -> Any:
        number = next(counter)
        future = waiting[number] = asyncio.get_running_loop().create_future()
        data = encode((number, "noop", ()))
        writer.write(struct.pack("<I", len(data)) + data)
        return await future

    try:
        yield call
    finally:
        task.cancel()
        writer.close()
        await writer.wait_closed()  # closed by the loop, so the loop must turn before the wait
        process.wait()


def _echo(connection: Connection) -> None:
    with contextlib.suppress(EOFError):
        while True:
            value = connection.recv()
            if isinstance(value, str):
                return
            connection.send(None if value is None else float(value.ravel()[0]))


@contextlib.asynccontextmanager
async def pipe() -> AsyncIterator[Call]:
    """multiprocessing.Pipe, which pickles."""
    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(target=_echo, args=(theirs,))
    process.start()
    theirs.close()

    async def call(value: Any = None) -> Any:
        ours.send(value)
        return ours.recv()

    try:
        yield call
    finally:
        ours.send("stop")
        process.join()
        ours.close()


@contextlib.asynccontextmanager
async def execnet_peer() -> AsyncIterator[Call]:
    """execnet: a gateway and one channel."""
    import execnet

    group = execnet.Group()
    gateway = group.makegateway()
    channel = gateway.remote_exec("for value in channel:\n    channel.send(None)")

    async def call() -> Any:
        channel.send(None)
        return channel.receive()

    try:
        yield call
    finally:
        channel.close()
        group.terminate(1)


RPYC = """
import sys, rpyc
from rpyc.utils.server import OneShotServer
class Service(rpyc.Service):
    def exposed_noop(self): return None
OneShotServer(Service(), socket_path=sys.argv[1]).start()
"""


@contextlib.asynccontextmanager
async def rpyc_peer() -> AsyncIterator[Call]:
    """Rpyc over a Unix socket."""
    import rpyc

    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "socket")
        process = subprocess.Popen([sys.executable, "-c", RPYC, path])
        while not os.path.exists(path):
            await asyncio.sleep(0.05)
        await asyncio.sleep(0.2)
        connection = rpyc.utils.factory.unix_connect(path)

        async def call() -> Any:
            return connection.root.noop()

        kept = connection.root.noop

        async def call_kept() -> Any:
            return kept()

        call.kept = call_kept  # type: ignore[attr-defined]

        try:
            yield call
        finally:
            connection.close()
            process.wait(10)


PYISOLATE = """
import pyisolate  # the base itself must not be in the module: the child takes the first class that it finds
class Noop(pyisolate.ExtensionBase):
    async def noop(self): return None
"""


@contextlib.asynccontextmanager
async def pyisolate_peer() -> AsyncIterator[Call]:
    """pyisolate: a venv of its own, no sandbox; the host's torch, since it would else install a torch of 5 GB."""
    import pyisolate

    logging.getLogger("pyisolate").setLevel(logging.ERROR)
    # Kept from run to run: building it is not what is measured.
    version = f"{metadata.version('pyisolate')}-python{sys.version_info[0]}.{sys.version_info[1]}"
    folder = default_store().with_name("pentad-isolate-bench") / f"pyisolate-{version}"
    module = folder / "noop_extension"
    module.mkdir(parents=True, exist_ok=True)
    (module / "__init__.py").write_text(textwrap.dedent(PYISOLATE))
    sys.path.insert(0, str(folder))  # the host's class says what may be called, and the child imports it by name
    noop = importlib.import_module("noop_extension").Noop
    manager = pyisolate.ExtensionManager(noop, pyisolate.ExtensionManagerConfig(venv_root_path=str(folder / "venvs")))
    config = pyisolate.ExtensionConfig(
        name="noop",
        module_path=str(module),
        isolated=True,
        dependencies=[],
        apis=[],
        share_torch=True,
        share_cuda_ipc=False,
        sandbox_mode=pyisolate.SandboxMode.DISABLED,
    )
    extension: Any = manager.load_extension(config)
    try:
        await extension.noop()
        yield extension.noop
    finally:
        stopped = manager.stop_all_extensions()  # type: ignore[func-returns-value]
        if stopped is not None:
            await stopped


FAL = """
import logging, sys
logging.disable()
import isolate  # fal's package of that name
environment = isolate.prepare_environment("virtualenv", requirements=[])
answers, sys.stdout = sys.stdout, sys.stderr
with environment.open_connection(environment.create()) as connection:
    for line in sys.stdin:
        connection.run(bool)
        print("done", file=answers, flush=True)
"""


@contextlib.asynccontextmanager
async def fal_peer() -> AsyncIterator[Call]:
    """Fal's isolate, in an environment of its own, since its import name is ours; it starts a process for each call."""
    folder = default_store().with_name("pentad-isolate-bench")
    manifest = Manifest(name="fal", dependencies=("isolate[build]",), directory=folder)
    environment = EnvironmentStore(folder / "fal").ensure(manifest)
    process = subprocess.Popen(
        [str(environment.python), "-c", FAL], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    assert process.stdin is not None
    assert process.stdout is not None

    async def call() -> Any:
        process.stdin.write(b"\n")  # type: ignore[union-attr]
        process.stdin.flush()  # type: ignore[union-attr]
        if process.stdout.readline() != b"done\n":  # type: ignore[union-attr]
            raise RuntimeError("fal's isolate has ended")

    call.block = 2  # type: ignore[attr-defined]
    try:
        await call()
        yield call
    finally:
        process.stdin.close()
        process.wait(30)
        process.stdout.close()


@contextlib.asynccontextmanager
async def appose_peer() -> AsyncIterator[Call]:
    """Appose: a task for each call, as its users write it."""
    import appose

    before = os.environ["PATH"]
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{before}"  # where it looks for `python`
    try:
        service = appose.system().python()

        async def call() -> Any:
            service.task("None").wait_for()

        await call()
    finally:
        os.environ["PATH"] = before
    try:
        yield call
    finally:
        service.close()


PEERS = {
    "pyisolate": pyisolate_peer,
    "fal's isolate": fal_peer,
    "Appose": appose_peer,
    "rpyc": rpyc_peer,
    "execnet": execnet_peer,
    "multiprocessing.Pipe": pipe,
    "msgspec loop": msgspec_loop,
}
