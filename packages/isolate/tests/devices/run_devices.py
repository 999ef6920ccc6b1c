"""Lets device arrays travel between a host and its extensions, on a GPU or on xfer's emulator; prints what failed.

Run as `run_devices.py FOLDER LIBRARY[/SCENARIO]...` and prints a map from scenario to an empty text or a traceback, as
JSON.
"""

from __future__ import annotations

import asyncio
import gc
import glob
import json
import os
import shutil
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import cuda_needs

import xfer
from isolate import Host, Manifest, Policy, ProxiedSingleton, errors
from isolate._manifest import Restart, Sandbox, Timeouts
from isolate._sandbox import available

HERE = Path(__file__).parent
SCENARIOS: dict[str, Callable[[Place], None]] = {}
BY_HANDLE = "by a handle of pentad-xfer, without a copy"


class DeskSingleton(ProxiedSingleton):
    """What the host exports."""

    def take(self, array: Any) -> Any:
        """Look at an array within a call, and return it."""
        self.seen = facts(array)
        return array


class Place:
    """Where extensions live, and the library whose arrays travel."""

    def __init__(self, folder: Path, library: str) -> None:
        self.folder, self.library = folder, library

    @contextmanager
    def extension(self, level: str = "none", lacks: str = "", gpus: bool = True, **keys: Any) -> Iterator[Any]:
        """A loaded extension."""
        name = f"e{time.monotonic_ns()}"
        place = self.folder / name
        place.mkdir()
        shutil.copy(HERE / "extension.py", place / "main.py")
        shutil.copy(HERE / "cuda_needs.py", place)
        paths = [path for path in sys.path if path and path != str(HERE)]
        variables = {"ADDED_PATHS": os.pathsep.join(paths), "LACKS": lacks}
        variables |= {key: value for key, value in os.environ.items() if key.startswith("EMULAT")}
        variables |= keys.pop("variables", {})
        policy = Policy(
            variables={"*": variables},
            allow_in_process=True,
            allow_gpus=True,
            allow_read=("/",),
            allow_write=("/",),
            sandbox=level,
        )
        with Host(self.folder / "store", policy=policy) as host:
            host.export(DeskSingleton)
            sandbox = Sandbox(level=level, gpus=gpus, read=tuple(filter(os.path.isdir, paths)))  # type: ignore[arg-type]
            yield host.load(
                Manifest(
                    name=name,
                    directory=place,
                    sandbox=sandbox,
                    restart=Restart(backoff=0.01),
                    timeouts=Timeouts(start=60),
                    **keys,
                )
            )

    def array(self, values: Any, dtype: str = "float32", device: int = 0) -> Any:
        """A device array of the library."""
        if self.library == "torch":
            import torch

            return torch.tensor(values, dtype=getattr(torch, dtype), device=f"cuda:{device}")
        import cupy

        with cupy.cuda.Device(device):
            return cupy.asarray(values, dtype=dtype)

    def reader(self) -> str:
        """Return the name of the type of a device array."""
        return "Tensor" if self.library == "torch" else "ndarray"


def facts(array: Any) -> list[Any]:
    """Return what the extension's method of this name returns."""
    return [
        type(array).__name__,
        str(getattr(array.device, "id", array.device)),
        str(array.dtype),
        list(array.shape),
        array.tolist(),
    ]


def scenario(function: Callable[[Place], None]) -> Callable[[Place], None]:
    """Have a function run for each library."""
    SCENARIOS[function.__name__] = function
    return function


def refusal(function: Callable[..., Any], *args: Any) -> str:
    """Return the text of the error that a call raises."""
    try:
        function(*args)
    except Exception as failure:
        return str(failure)
    raise AssertionError("nothing was raised")


def settled(count: Callable[[], int]) -> int:
    """Wait until a count is 0, and return it."""
    end = time.monotonic() + 60
    while count() and time.monotonic() < end:
        gc.collect()
        time.sleep(0.02)
    return count()


@scenario
def by_handle(place: Place) -> None:
    """Arguments and results arrive equal and of the same type, on the same device, by handle; nothing is left."""
    made = place.array([[1, 2, 3], [4, 5, 6]])
    with place.extension() as extension:
        assert extension.explain(made) == BY_HANDLE, extension.explain(made)
        assert extension.call.facts(made) == facts(made)
        back = extension.call.double(made)
        assert facts(back) == facts(made * 2)
        stats = extension.stats()
        assert (stats["handles_sent"], stats["handles_received"], stats["device_copies"]) == (1 + 1, 1, 0), stats
        nested = extension.call.same({"a": [made, (made,)], "b": 1})
        assert facts(nested["a"][1][0]) == facts(made)
        del back, nested
        assert settled(extension.call.live) == 0
        assert settled(lambda: xfer.default_pool().stats().live) == 0


@scenario
def forms(place: Place) -> None:
    """All dtypes, no dimensions, no elements, other memory orders, and views."""
    numbers = place.array(list(range(24))).reshape(2, 3, 4)
    kinds = ["float16", "float64", "int8", "int64", "uint8", "bool", "complex64"]
    kinds += ["bfloat16", "float8_e4m3fn"] if place.library == "torch" else []
    views = [
        numbers,
        numbers[:, 1],
        numbers[..., ::2],
        numbers.T if place.library == "cupy" else numbers.permute(2, 1, 0),
    ]
    views += [place.array(7.0), place.array([]), numbers[:, :0]]
    if place.library == "torch":
        views += [numbers.to(getattr(__import__("torch"), kind)) for kind in kinds]
    else:
        views += [numbers.astype(kind) for kind in kinds]
    with place.extension() as extension:
        for view in views:
            assert facts(extension.call.same(view)) == facts(view), facts(view)
        assert extension.stats()["device_copies"] == 0


@scenario
def every_device(place: Place) -> None:
    """An array of each device arrives on that device."""
    import cupy

    with place.extension() as extension:
        for device in range(cupy.cuda.runtime.getDeviceCount()):
            made = place.array([1, 2, 3], device=device)
            assert extension.call.facts(made) == facts(made)
            assert facts(extension.call.same(made)) == facts(made)


@scenario
def both_see_writes(place: Place) -> None:
    """Both sides use the same memory, as the documents say."""
    made = place.array([1, 2, 3, 4])
    with place.extension() as extension:
        extension.call.write(made, 9)
        assert made.tolist() == [9, 9, 9, 9]
        extension.call.keep(made)
        made[:] = 5
        made.tolist()  # waits for the write
        assert extension.call.kept_values() == [5, 5, 5, 5]


@scenario
def streams_and_callbacks(place: Place) -> None:
    """Items of a stream, and arrays within a call back to the host."""
    made = place.array([1, 2, 3])
    with place.extension() as extension:
        assert [len(item) for item in extension.call.several(place.library, 3)] == [4, 5, 6]
        assert facts(extension.call.back(made)) == facts(made)
        assert extension.stats()["handles_received"] >= 5


@scenario
def awaited(place: Place) -> None:
    """On an event loop, beside calls whose answers are decoded elsewhere; the loop goes on meanwhile."""
    made = place.array([1, 2, 3])

    async def together(extension: Any) -> float:
        late = 0.0

        async def tick() -> None:
            nonlocal late
            while True:
                before = time.monotonic()
                await asyncio.sleep(0.01)
                late = max(late, time.monotonic() - before - 0.01)

        ticking = asyncio.create_task(tick())
        calls = [extension.aio.asame(made), extension.aio.same(made)]
        calls += [extension.aio.bytes_of(100_000) for _ in range(8)]
        done = await asyncio.gather(*calls)
        ticking.cancel()
        assert facts(done[0]) == facts(done[1]) == facts(made)
        assert [len(each) for each in done[2:]] == [100_000] * 8
        return late

    with place.extension() as extension:
        assert asyncio.run(together(extension)) < 20


@scenario
def late(place: Place) -> None:
    """A deadline holds for the first array too, whose libraries are imported there; later ones go by handle."""
    made = place.array([1, 2, 3])
    with place.extension() as extension:
        assert "deadline" in refusal(extension.call(timeout=0.001).facts, made)
        assert extension.call.facts(made) == facts(made)
        assert extension.explain(made) == BY_HANDLE
        assert settled(lambda: xfer.default_pool().stats().live) == 0


@scenario
def refused_beside_it(place: Place) -> None:
    """Another argument does not travel: the handle is given back."""
    made = place.array([1, 2, 3])
    with place.extension() as extension:
        assert "args[0][1]" in refusal(extension.call.same, [made, object()])
        assert settled(lambda: xfer.default_pool().stats().live) == 0


def by_host_memory(place: Place, extension: Any, reason: str) -> None:
    """A tensor arrives on the CPU, a CuPy array is refused with a remedy; both name the reason."""
    made = place.array([1, 2, 3])
    said = extension.explain(made)
    assert reason in said, said
    if place.library == "torch":
        got = extension.call.facts(made)
        assert got == ["Tensor", "cpu", *facts(made)[2:]], got
        assert extension.stats()["device_copies"] == 1
        return
    said = refusal(extension.call.facts, made)
    assert reason in said, said
    assert "send cupy.asnumpy(value)" in said, said


@scenario
def other_side_lacks_xfer(place: Place) -> None:
    """The extension has no pentad-xfer."""
    with place.extension(lacks="xfer") as extension:
        by_host_memory(place, extension, "xfer is not installed here")


@scenario
def other_side_sees_no_device(place: Place) -> None:
    """The extension has everything but the device."""
    lacks = "cupy" if os.environ.get("EMULATED_CUDA") else ""
    with place.extension(lacks=lacks, variables={"CUDA_VISIBLE_DEVICES": ""}) as extension:
        by_host_memory(place, extension, "cannot open one")


@scenario
def confined(place: Place) -> None:
    """At landlock and bwrap neither side opens handles of the other."""
    for level in ("landlock", "bwrap"):
        if not available()[level]:
            with place.extension(level) as extension:
                by_host_memory(place, extension, "confinement keeps")


@scenario
def confined_on_the_gpu(place: Place) -> None:
    """Confined, an extension computes on the GPU where manifest and policy allow it, and only there."""
    if os.environ.get("EMULATED_CUDA"):
        return  # the emulated devices have no nodes
    nodes = [*glob.glob("/dev/nvidia[0-9]*"), "/dev/nvidiactl", "/dev/nvidia-uvm"]
    for level in ("landlock", "bwrap"):
        if not available()[level]:
            with place.extension(level) as extension:
                assert extension.report.sandbox.missing == (), extension.report.sandbox
                assert extension.call.open_ones(nodes) == nodes
                try:
                    total = extension.call.total(place.library, 5)
                except Exception as failure:
                    here, there = cuda_needs.tried(), extension.call.tried()
                    refused = {name: why for name, why in there.items() if why and not here[name]}
                    raise AssertionError(
                        f"at {level} {failure}; of what CUDA asks for, refused: {refused}"
                    ) from failure
                assert total == 10.0
            with place.extension(level, gpus=False) as extension:
                assert extension.call.open_ones(nodes) == []
                assert "cuda" in refusal(extension.call.total, place.library, 5).lower()


@scenario
def killed(place: Place) -> None:
    """An extension ends while both sides hold arrays of the other; the next one opens them anew."""
    made = place.array([1, 2, 3])
    with place.extension() as extension:
        extension.call.keep(made)
        theirs = extension.call.make(place.library, 5)
        assert theirs.tolist() == [0, 1, 2, 3, 4]
        with suppress(errors.WorkerDiedError):
            extension.call.stop()
        extension.when(timeout=60)
        del theirs
        assert extension.call.facts(made) == facts(made)
        assert settled(lambda: xfer.default_pool().stats().live) == 0


@scenario
def in_process(place: Place) -> None:
    """An extension that is not isolated gets the array itself, by the same way."""
    made = place.array([1, 2, 3])
    os.environ["ADDED_PATHS"] = ""
    with place.extension(isolated=False) as extension:
        assert extension.explain(made) == BY_HANDLE
        assert facts(extension.call.double(made)) == facts(made * 2)


@scenario
def one_at_a_time(place: Place) -> None:
    """An extension that runs one call at a time opens the first array within its queue's first call."""
    made = place.array([1, 2, 3])
    with place.extension(serial=True) as extension:
        assert facts(extension.call.back(made)) == facts(made)


def main() -> None:
    """Run the scenarios."""
    folder, results = Path(sys.argv[1]), {}
    for wanted in sys.argv[2:]:
        library, _, only = wanted.partition("/")
        for name, function in SCENARIOS.items():
            if only in ("", name):
                began = time.monotonic()
                try:
                    function(Place(folder, library))
                    results[f"{library}/{name}"] = ""
                except Exception:
                    results[f"{library}/{name}"] = traceback.format_exc()
                print(f"{library}/{name}: {time.monotonic() - began:.1f} s", file=sys.stderr)
                gc.collect()
    print(json.dumps(results))


if __name__ == "__main__":
    main()
