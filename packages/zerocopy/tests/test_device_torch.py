"""What of torch's CUDA is asked for, by stand-ins: streams, and bytes of a device."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from zerocopy import _torch_private as private
from zerocopy._device import loading
from zerocopy._flatten import Block
from zerocopy.errors import DeviceUnavailableError

PLACE = torch.device("cuda", 1)


# cuda: zerocopy._device.loading:current_stream by stand-in
def test_copies_go_behind_the_work_of_this_threads_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the device that the weights go to."""
    asked = []
    stream = SimpleNamespace(cuda_stream=7)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda place: asked.append(place) or stream)
    assert loading.current_stream(PLACE) == 7
    assert asked == [PLACE]


# cuda: zerocopy._torch_private:streams_of by stand-in
def test_every_stream_of_the_pool_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Torch gives the 32 streams of each priority in turns, wherever it is: one that is missed may be capturing."""
    turns = {0: 5, -1: 31, -2: 0, -3: 17}

    def stream(place: torch.device, priority: int) -> SimpleNamespace:
        assert place == PLACE
        turns[priority] += 1
        return SimpleNamespace(cuda_stream=1000 * -priority + turns[priority] % 32)

    monkeypatch.setattr(torch.cuda, "Stream", stream)
    assert sorted(private.streams_of(PLACE)) == [1000 * level + number for level in range(4) for number in range(32)]


# cuda: zerocopy._flatten:Block.bytes_view by stand-in
def test_bytes_of_a_device_are_a_host_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    """And a forked child, which cannot use CUDA, is refused before the device is asked."""
    host = torch.arange(20, dtype=torch.uint8).untyped_storage()
    copied = []
    there = SimpleNamespace(device=PLACE, cpu=lambda: copied.append(1) or host)
    block = Block(there, 4, 8, ("a",))  # type: ignore[arg-type]
    monkeypatch.setattr(private, "cuda_was_forked", lambda: True)
    with pytest.raises(DeviceUnavailableError):
        block.bytes_view()
    assert not copied
    monkeypatch.setattr(private, "cuda_was_forked", lambda: False)
    assert bytes(block.bytes_view()) == bytes(range(4, 12))
