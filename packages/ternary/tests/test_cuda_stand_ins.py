"""What only CUDA takes, on a processor: stand-ins for the current device, its stream, its dispatch and a capture."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch

from ternary import _torch_private as private
from ternary.errors import KernelUnavailableError
from ternary.runtime import _gpu as gpu
from ternary.runtime import _ops as ops
from ternary.runtime._layout import Geometry, to_tiles


@pytest.fixture
def current(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of the current device, last; tensors on the processor have the number -1."""
    stack = [5]

    @contextmanager
    def device(number: int) -> Iterator[None]:
        stack.append(number)
        yield
        stack.pop()

    monkeypatch.setattr(torch.cuda, "current_device", lambda: stack[-1])
    monkeypatch.setattr(torch.cuda, "device", device)
    monkeypatch.setattr(gpu, "_prepared", {})
    return stack


# cuda: ternary.runtime._gpu:multiply by stand-in
# cuda: ternary.runtime._gpu:conv2d by stand-in
@pytest.mark.parametrize("number", [-1, 5])
def test_a_prepared_launch_goes_to_the_device_of_its_tensors(number: int, current: list[int]) -> None:
    """Whichever device is current; it gets the addresses of what it reads and writes."""
    current[0] = number
    launched: list[tuple[int, tuple[int, ...]]] = []

    def launch(near: torch.Tensor, *addresses: int) -> None:
        launched.append((current[-1], addresses))

    x, tiles, scale = torch.ones(3, 32), to_tiles(torch.ones(16, 32)), torch.ones(16)
    gpu._keep((-1, x.dtype, 3, 16, 32, True, False), launch)
    y = gpu.linear(x, tiles, scale, None)
    assert launched == [(-1, (x.data_ptr(), tiles.data_ptr(), scale.data_ptr(), 0, y.data_ptr()))]

    geometry = Geometry((3, 3))
    image = torch.ones(1, 4, 8, 8).contiguous(memory_format=torch.channels_last)
    weight = torch.full(geometry.weight_shape(4, 16), 0xAA, dtype=torch.uint8)
    gpu._keep((-1, image.dtype, image.shape, 16, geometry, True), launch)
    z = gpu.conv2d(image, weight, scale, None, geometry)
    assert launched[1:] == [(-1, (image.data_ptr(), weight.data_ptr(), scale.data_ptr(), 0, z.data_ptr()))]
    assert current == [number]


def test_as_many_launches_are_kept_as_there_is_room_for(current: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """The oldest goes first."""
    monkeypatch.setattr(gpu, "_MOST_PREPARED", 2)
    for number in range(4):
        gpu._keep((number,), lambda *_: None)
    assert list(gpu._prepared) == [(2,), (3,)]


# cuda: ternary._torch_private:current_stream by stand-in
def test_the_current_stream_is_that_of_the_current_device(current: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """By torch's private call, and where torch lacks it by the public one."""
    monkeypatch.setattr(private, "_raw_stream", lambda number: 100 + number)
    assert private.current_stream() == 105
    monkeypatch.setattr(private, "_raw_stream", None)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: SimpleNamespace(cuda_stream=7))
    assert private.current_stream() == 7


# cuda: ternary._torch_private:plain_dispatch by stand-in
@pytest.mark.skipif(not private.DISPATCH_KNOWN, reason="this torch does not say how it dispatches")
def test_plain_dispatch_on_a_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tensors without values stand for CUDA's: plain ones need no dispatcher, wrapped and negated ones do."""
    situation, situations = private._situation, private._plain_situations
    asked = []

    def of_device(device: str) -> frozenset[tuple[int, int]]:
        asked.append(device)
        return situations("meta")

    monkeypatch.setattr(private, "_PLAIN", dict(private._PLAIN))
    monkeypatch.setattr(private, "_plain_situations", of_device)
    monkeypatch.setattr(private, "_situation", lambda x: situation(getattr(x, "tensor", x)))

    def plain(tensor: torch.Tensor) -> bool:
        return private.plain_dispatch(SimpleNamespace(is_cuda=True, tensor=tensor))  # type: ignore[arg-type]

    usual = torch.empty(3, device="meta")
    assert plain(usual)
    assert not plain(torch._neg_view(usual))
    found = []
    torch.vmap(lambda x: found.append(plain(x)) or x)(torch.zeros(2, device="meta"))
    assert found == [False]
    with torch.inference_mode():
        assert plain(torch.empty(3, device="meta"))
    assert asked == ["cuda"]


class There(torch.Tensor):
    """A tensor that says that it is on CUDA."""

    is_cuda = True  # type: ignore[assignment]


# cuda: ternary.runtime._ops:check_once by stand-in
def test_codes_are_not_checked_inside_a_capture(monkeypatch: pytest.MonkeyPatch) -> None:
    """The check waits for the device. It is made once before, and again after a change in place."""
    capturing = [False]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: capturing[0])
    monkeypatch.setattr(ops, "_checked", {})
    checked: list[int] = []
    monkeypatch.setattr(ops, "check_codes", lambda weight: checked.append(weight.numel()))
    weight = torch.zeros(64, dtype=torch.uint8).as_subclass(There)
    capturing[0] = True
    with pytest.raises(KernelUnavailableError, match="before the capture"):
        ops.check_once(weight)
    capturing[0] = False
    ops.check_once(weight)
    capturing[0] = True
    ops.check_once(weight)
    assert checked == [64]
    weight.add_(1)
    with pytest.raises(KernelUnavailableError, match="before the capture"):
        ops.check_once(weight)
