"""How a GPU records a step, without a GPU: streams whose work is done as late as CUDA allows."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import pytest
import torch

from ttt.backends import _learner
from ttt.backends._learner import WARMING, recording, recording_stream, repeatable_attention

Work = Callable[[], None]


class Stream:
    """A stream: a queue, whose work is done when something waits for it."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.queue: list[Work] = []

    def wait_stream(self, other: Stream) -> None:
        """What is queued here from now on follows what is queued there now."""
        before = list(other.queue)
        self.queue.append(lambda: other.finish(before))

    def finish(self, only: list[Work] | None = None) -> None:
        """Do what is queued, in order; of some work only that which is not done yet, and what is before it."""
        last = len(self.queue) if only is None else sum(1 for work in self.queue if work in only)
        for _ in range(last):
            self.queue.pop(0)()


class Gpu:
    """The part of `torch.cuda` that a recording uses."""

    def __init__(self) -> None:
        self.default = self.now = Stream(torch.device("cuda"))
        self.made: list[Stream] = []
        self.captured: list[Work] | None = None

    def make(self, device: torch.device) -> Stream:
        """A new stream."""
        self.made.append(Stream(device))
        return self.made[-1]

    def queue(self, work: Work) -> None:
        """Launch a kernel: on the current stream, or into the graph that is captured."""
        (self.now.queue if self.captured is None else self.captured).append(work)

    @contextmanager
    def stream(self, stream: Stream) -> Iterator[None]:
        """Make a stream the current one."""
        before, self.now = self.now, stream
        yield
        self.now = before

    @contextmanager
    def graph(self, graph: Any, stream: Stream, capture_error_mode: str) -> Iterator[None]:
        """Capture what is launched; other threads may use the device meanwhile."""
        assert capture_error_mode == "thread_local"
        with self.stream(stream):
            self.captured = graph.kernels
            yield
            self.captured = None


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[Gpu]:
    """The stand-in, in place of torch's."""
    gpu = Gpu()

    class Graph:
        def __init__(self) -> None:
            self.kernels: list[Work] = []

        def replay(self) -> None:
            for kernel in self.kernels:
                gpu.queue(kernel)

    recording_stream.cache_clear()
    for name, value in (("Stream", gpu.make), ("current_stream", lambda _: gpu.now), ("stream", gpu.stream)):
        monkeypatch.setattr(torch.cuda, name, value)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "graph", gpu.graph)
    yield gpu
    recording_stream.cache_clear()


# cuda: ttt.backends._learner:recording by stand-in
# cuda: ttt.backends._learner:recording_stream by stand-in
@pytest.mark.parametrize("own_first", [False, True])
def test_a_recording_follows_what_was_launched_and_what_follows_sees_it(gpu: Gpu, own_first: bool) -> None:
    """Whichever of the two streams the device serves first; and a replay does the work once, on the current stream."""
    numbers, seen = itertools.count(1), []
    done = given = 0

    def put() -> None:
        nonlocal given
        given = next(numbers)

    def kernel() -> None:
        nonlocal done
        seen.append(given)
        done += 1

    gpu.queue(put)
    replay = recording(lambda: gpu.queue(kernel), torch.device("cuda"))
    after: list[int] = []
    gpu.queue(lambda: after.append(done))
    streams = [*gpu.made, gpu.default]
    for stream in streams if own_first else reversed(streams):
        stream.finish()
    assert seen == [1] * WARMING
    assert after == [WARMING]

    gpu.queue(put)
    replay()
    gpu.default.finish()
    assert seen[WARMING:] == [2]


def test_one_stream_records_for_all_on_a_device(gpu: Gpu) -> None:
    """Each that cuBLAS has seen costs 32 MB."""
    devices = [torch.device("cuda", number) for number in (0, 0, 1)]
    for device in devices:
        recording(lambda: None, device)
    assert [stream.device.index for stream in gpu.made] == [0, 1]


# cuda: ttt.backends._learner:repeatable_attention by stand-in
def test_attention_repeats_on_a_gpu_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """A processor keeps its own choice of kernels."""
    chosen: list[list[str]] = []
    monkeypatch.setattr(
        _learner, "sdpa_kernel", lambda kinds: chosen.append([kind.name for kind in kinds]) or nullcontext()
    )
    for name in ("cpu", "cuda"):
        with repeatable_attention(torch.device(name)):
            pass
    assert chosen == [["EFFICIENT_ATTENTION", "MATH"]]
