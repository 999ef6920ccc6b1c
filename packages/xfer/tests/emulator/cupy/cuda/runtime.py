"""`cupy.cuda.runtime` over the emulated machine: the functions that xfer and its tests call."""

from __future__ import annotations

from cupy._machine import CUDARuntimeError, machine

__all__ = ["CUDARuntimeError"]

cudaIpcMemLazyEnablePeerAccess = 1
eventBlockingSync, eventDisableTiming, eventInterprocess = 1, 2, 4
streamLegacy, streamPerThread = 1, 2
memcpyHostToDevice, memcpyDeviceToHost, memcpyDefault = 1, 2, 4

getDevice = lambda: machine.device  # noqa: E731 - CUDA's name
setDevice = machine.set_device
streamDestroy = lambda stream: None  # noqa: E731 - its work still completes
eventCreateWithFlags = machine.new_event
eventDestroy = machine.destroy_event
eventRecord = machine.record
eventSynchronize = machine.sync_event
ipcGetMemHandle = machine.export
ipcCloseMemHandle = machine.close
ipcGetEventHandle = machine.export_event
ipcOpenEventHandle = machine.import_event
malloc = machine.malloc
free = machine.free
hostAlloc = lambda size, flags=0: machine.host_alloc(size)  # noqa: E731 - CUDA's name


def getDeviceCount() -> int:
    """Count the visible devices."""
    machine.check()
    if not machine.uuids:
        raise CUDARuntimeError(100)
    return len(machine.uuids)


def getDeviceProperties(index: int) -> dict:
    """Return what a device is; a slow call."""
    machine.check()
    machine.calls["getDeviceProperties"] += 1
    if not 0 <= index < len(machine.uuids):
        raise CUDARuntimeError(101)
    return {"name": b"Emulated", "uuid": machine.uuids[index], "integrated": 0, "major": 9, "minor": 0}


def ipcOpenMemHandle(handle: bytes, flags: int = 1) -> int:
    """Open another process's memory on the current device."""
    return machine.open(handle, flags)


def deviceSynchronize() -> None:
    """Wait for all work of the current device."""
    machine.calls["deviceSynchronize"] += 1
    machine.synchronize()


def streamSynchronize(stream: int) -> None:
    """Wait for the work of a stream."""
    machine.run(machine.stream(stream).tail)


def streamWaitEvent(stream: int, event: int, flags: int = 0) -> None:
    """Make a stream wait for an event."""
    machine.wait_event(stream, event)


def eventQuery(event: int) -> int:
    """Return 0 if an event is done, 600 if not."""
    return 0 if machine.query_event(event) else 600


def memcpy(dst: int, src: int, size: int, kind: int) -> None:
    """Copy on the legacy default stream."""
    machine.copy(dst, src, size)


def memcpyAsync(dst: int, src: int, size: int, kind: int, stream: int) -> None:
    """Copy on a stream."""
    machine.copy(dst, src, size, stream)


def deviceCanAccessPeer(device: int, peer: int) -> int:
    """Return 1: all emulated devices reach each other."""
    return 1
