"""Helpers of this suite, reached through the fixture `utils`, with tests of their own."""

from __future__ import annotations

import gc
import mmap
import statistics
import time
from collections.abc import Callable

import psutil
import torch
from torch import Tensor, nn

from ternary.nn import ternary_layers


def measure_inference_time(model: nn.Module, *inputs: Tensor, repeat: int = 5, warmup: int = 1) -> float:
    """Return the median time of a forward pass in milliseconds, after some calls that do not count."""
    times = []
    with torch.inference_mode():
        for _ in range(warmup):
            model(*inputs)
        for _ in range(repeat):
            begin = time.perf_counter()
            model(*inputs)
            times.append(1e3 * (time.perf_counter() - begin))
    return statistics.median(times)


def measure_memory_usage(make: Callable[[], object]) -> int:
    """Return by how many bytes the process grew while making something and holding on to it."""
    gc.collect()
    before = psutil.Process().memory_info().rss
    held = make()
    grown = psutil.Process().memory_info().rss - before
    del held
    return grown


def fresh_pages(count: int) -> mmap.mmap:
    """Return so many written bytes that no allocator had before; freed memory of earlier tests would hide a growth."""
    pages = mmap.mmap(-1, count)
    pages.write(b"x" * count)
    return pages


def count_bytes(model: nn.Module) -> int:
    """Return the bytes of a model's parameters and buffers, shared ones once."""
    return sum(t.numel() * t.element_size() for t in [*model.parameters(), *model.buffers()])


def count_parameters(model: nn.Module) -> int:
    """Return the number of parameters."""
    return sum(p.numel() for p in model.parameters())


def validate_output_shape(model: nn.Module, x: Tensor, shape: tuple[int, ...]) -> None:
    """Fail unless the model gives this shape, finite."""
    with torch.no_grad():
        y = model(x)
    assert tuple(y.shape) == shape
    assert torch.isfinite(y).all()


def compare_model_outputs(a: nn.Module, b: nn.Module, x: Tensor, tolerance: float = 1e-5) -> None:
    """Fail unless two models agree on an input in evaluation mode."""
    with torch.no_grad():
        first, second = a.eval()(x), b.eval()(x)
    assert (first - second).abs().max() <= tolerance * first.abs().max().clamp(min=1)


def validate_gradients(model: nn.Module) -> None:
    """Fail unless every parameter has a finite gradient that is not all zero."""
    for name, p in model.named_parameters():
        assert p.grad is not None, name
        assert torch.isfinite(p.grad).all(), name
        assert p.grad.any(), name


def validate_ternary_weights(model: nn.Module) -> None:
    """Fail unless each row of each ternary layer's weight takes at most the values -b, 0, +a."""
    layers = ternary_layers(model)
    assert layers
    for name, layer in layers.items():
        values, _, _ = layer.ternary_values()
        assert set(values.unique().tolist()) <= {-1, 0, 1}, name
        for row in layer.ternary_weight().detach().flatten(1):
            assert len(row.unique()) <= 3, name


def test_counting_and_memory() -> None:
    """Parameters are counted, and memory that is held is seen."""
    assert count_parameters(nn.Linear(3, 4)) == 16
    assert count_bytes(nn.BatchNorm1d(3)) == 4 * 4 * 3 + 8
    assert measure_memory_usage(lambda: fresh_pages(100 << 20)) > 60_000_000
    assert measure_inference_time(nn.Identity(), torch.ones(1)) >= 0


def test_calls_before_the_measured_ones_are_counted() -> None:
    """`warmup` calls come before the `repeat` ones that are measured."""
    calls: list[int] = []
    layer = nn.Identity()
    layer.register_forward_hook(lambda *_: calls.append(1))
    measure_inference_time(layer, torch.ones(1), repeat=2, warmup=3)
    assert len(calls) == 5


def test_gradients_are_really_checked() -> None:
    """A parameter without a gradient is found."""
    layer = nn.Linear(2, 2)
    layer(torch.ones(1, 2)).sum().backward()
    validate_gradients(layer)
    layer.bias.grad = None
    try:
        validate_gradients(layer)
    except AssertionError:
        return
    raise RuntimeError("a missing gradient went unseen")
