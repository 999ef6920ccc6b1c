"""Gradients through packed layers: those of the float product, to inputs and biases, in every mode of torch."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.func import grad, hessian, jacfwd, jacrev, jvp, vmap
from torch.nn import functional

import ternary
from ternary.nn import Int8Conv2d, Int8Linear, TernaryConv1d, TernaryConv2d, TernaryLinear
from ternary.runtime import PackedConv2d, PackedLinear
from ternary.runtime._chain import Activation, FusedChain, Stage
from ternary.runtime._layout import Geometry, to_byte_tiles, to_tiles


def values(*shape: int) -> Tensor:
    """Random ternary weights."""
    return torch.randint(-1, 2, shape, dtype=torch.int8)


def convolution(groups: int, channels: int, outputs: int) -> PackedConv2d:
    """A packed convolution with uneven geometry."""
    weight, options = values(outputs, channels // groups, 3, 2), {"stride": 2, "padding": 1, "dilation": (1, 2)}
    scale, bias = torch.rand(outputs) + 0.1, torch.randn(outputs)
    return PackedConv2d.from_ternary(weight, scale, bias, groups=groups, **options)


def convolve(layer: PackedConv2d, x: Tensor) -> Tensor:
    """The same in float."""
    moving = (layer.stride, layer.padding, layer.dilation, layer.groups)
    return functional.conv2d(x, layer.weight.clone(), layer.bias, *moving)


def linear() -> PackedLinear:
    """A packed layer of 37 to 5 features."""
    return PackedLinear.from_ternary(values(5, 37), torch.rand(5) + 0.1, torch.randn(5))


def of_input(layer: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """The gradient of the input for the same random gradient of the output."""
    leaf = x.clone().requires_grad_()
    y = layer(leaf)
    y.backward(torch.randn(y.shape, generator=torch.Generator().manual_seed(1)).to(y.dtype))
    assert leaf.grad is not None
    return leaf.grad


def close(a: Tensor, b: Tensor) -> bool:
    """Whether two gradients differ by roundings only."""
    return a.dtype == b.dtype and torch.allclose(a, b, rtol=1e-4, atol=1e-4 * float(b.abs().max()))


class TestOfTheInput:
    """What a layer before a packed one, or an attack on its input, is told."""

    @pytest.mark.parametrize("shape", [(37,), (4, 37), (2, 3, 37), (0, 37)])
    def test_linear(self, shape: tuple[int, ...]) -> None:
        """The gradient of the float product, the output of the kernel."""
        layer, x = linear(), torch.randn(shape)
        if x.numel():
            weight = layer.weight.clone()
            assert close(of_input(layer, x), of_input(lambda v: functional.linear(v, weight, layer.bias), x))
        assert torch.equal(layer(x.clone().requires_grad_()), layer(x))

    @pytest.mark.parametrize(("groups", "channels", "outputs"), [(1, 5, 7), (2, 6, 4), (6, 6, 6)])
    def test_convolutions(self, groups: int, channels: int, outputs: int) -> None:
        """Whole, grouped and depthwise, strided, padded and dilated, channels last too."""
        layer, x = convolution(groups, channels, outputs), torch.randn(2, channels, 9, 8)
        wanted = of_input(lambda v: convolve(layer, v), x)
        assert close(of_input(layer, x), wanted)
        assert close(of_input(layer, x.contiguous(memory_format=torch.channels_last)), wanted)

    @pytest.mark.parametrize(
        ("made", "shape"),
        [
            (lambda: TernaryConv1d(4, 8, 3, padding="same"), (2, 4, 9)),
            (lambda: TernaryConv2d(4, 8, 3, padding=1, padding_mode="reflect"), (2, 4, 6, 6)),
            (lambda: TernaryLinear(12, 8, quantizer="ttq"), (2, 12)),
            (lambda: Int8Linear(nn.Linear(32, 4)), (2, 32)),
            (lambda: Int8Conv2d(nn.Conv2d(16, 4, 3, padding=1)), (2, 16, 5, 5)),
            (lambda: Int8Conv2d(nn.Conv2d(3, 4, 3)), (2, 3, 5, 5)),
        ],
        ids=["one dimension", "reflecting", "two scales", "int8", "int8 convolution", "int8 in float"],
    )
    def test_every_kind(self, made: Callable[[], nn.Module], shape: tuple[int, ...]) -> None:
        """Layers composed of packed ones, and of 8 bits: the gradient of a float layer with their weight."""
        layer = made().eval()
        eights = isinstance(layer, Int8Linear | Int8Conv2d)
        packed = layer if eights else ternary.pack(layer)
        if isinstance(layer, Int8Linear | Int8Conv2d):
            convolving = isinstance(layer, Int8Conv2d)
            plain = nn.Conv2d(shape[1], 4, 3, padding=layer.padding) if convolving else nn.Linear(32, 4)
            plain.weight.data = layer.weight.clone()
            layer = plain
        x = torch.randn(shape)
        assert close(of_input(packed, x), of_input(layer, x))

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
    def test_other_types(self, dtype: torch.dtype) -> None:
        """The gradient has the type of the input."""
        for layer, shape in ((linear(), (3, 37)), (convolution(1, 5, 7), (2, 5, 9, 8))):
            x = torch.randn(shape)
            got = of_input(copy.deepcopy(layer).to(dtype), x.to(dtype))
            assert got.dtype == dtype
            wanted = of_input(layer, x)
            assert torch.allclose(got.float(), wanted, atol=0.02 * float(wanted.abs().max()))

    def test_a_float_layer_before_learns(self) -> None:
        """A training of the float parts of a packed model lowers the loss."""
        torch.manual_seed(0)
        first = nn.Linear(6, 37)
        model = nn.Sequential(first, nn.ReLU(), linear(), Int8Linear(nn.Linear(5, 3)))
        x, y = torch.randn(64, 6), torch.randint(0, 3, (64,))
        losses = []
        for _ in range(30):
            loss = functional.cross_entropy(model(x), y)
            gradients = torch.autograd.grad(loss, list(first.parameters()))
            with torch.no_grad():
                for parameter, gradient in zip(first.parameters(), gradients, strict=True):
                    parameter -= 0.05 * gradient
            losses.append(loss.item())
        assert losses[-1] < 0.9 * losses[0]

    @pytest.mark.parametrize("activation", [Activation(), Activation(0.0, 6.0), Activation(hardswish=True)])
    def test_fused_chains(self, activation: Activation) -> None:
        """The output stays that of the core; the gradient is that of the float convolutions."""
        ternaries, eights = values(12, 6), torch.randint(-127, 128, (5, 12), dtype=torch.int8)
        taps, geometry = torch.randn(9, 12), Geometry((3, 3), (2, 2), (1, 1))
        scales = torch.rand(12) + 0.1, torch.rand(5) / 100
        chain = FusedChain(
            (
                Stage(to_tiles(ternaries), scales[0], torch.randn(12), 6, activation=activation),
                Stage(taps, None, torch.randn(12), 12, geometry, activation),
                Stage(to_byte_tiles(eights), scales[1], torch.randn(5), 12),
            )
        )
        weights = (ternaries * scales[0][:, None], eights * scales[1][:, None])
        for x in (torch.randn(2, 6, 9, 7), torch.randn(1, 6, 3, 3)):
            assert torch.equal(chain(x.clone().requires_grad_()), chain(x))
            got = of_input(chain, x)
            assert close(got, of_input(chain.plain, x))
            if activation == Activation():  # others bend where rounding has moved the values
                middle = functools.partial(functional.conv2d, weight=taps.T.reshape(12, 1, 3, 3), stride=2, padding=1)
                float_form = of_input(
                    lambda v, f=middle: functional.conv2d(
                        f(functional.conv2d(v, weights[0][..., None, None]), groups=12), weights[1][..., None, None]
                    ),
                    x,
                )
                assert close(got, float_form)


class TestTransforms:
    """Functions of torch that take derivatives in other ways."""

    def test_of_functions(self) -> None:
        """Jacobians in both directions and second derivatives are those of the matrix."""
        layer, x = linear(), torch.randn(37)
        weight = layer.weight.clone()
        assert close(jacrev(layer)(x), weight)
        assert close(jacfwd(layer)(x), weight)
        assert close(hessian(lambda v: layer(v).square().sum())(x), 2 * weight.T @ weight)

    def test_forward_mode(self) -> None:
        """A tangent passes as through the float layer; it was zero."""
        product, moving = linear(), convolution(2, 6, 4)
        weight = product.weight.clone()
        cases: tuple[tuple[nn.Module, Callable[[Tensor], Tensor], tuple[int, ...]], ...] = (
            (product, lambda v: functional.linear(v, weight, product.bias), (3, 37)),
            (moving, lambda v: convolve(moving, v), (2, 6, 9, 8)),
        )
        for layer, float_form, shape in cases:
            x, along = torch.randn(shape), torch.randn(shape)
            wanted = jvp(float_form, (x,), (along,))[1]
            assert close(jvp(layer, (x,), (along,))[1], wanted)
            with forward_ad.dual_level():
                dual = layer(forward_ad.make_dual(x, along))
                assert close(forward_ad.unpack_dual(dual).tangent, wanted)

    def test_by_sample(self) -> None:
        """Gradients of each sample at once equal those of one after the other."""
        for layer, shape in ((linear(), (4, 37)), (convolution(1, 5, 7), (3, 1, 5, 9, 8))):
            one = grad(lambda v, at=layer: at(v).square().sum())
            x = torch.randn(shape)
            assert close(vmap(one)(x), torch.stack([one(v) for v in x]))


class TestWithoutGradients:
    """Where none is asked for, nothing is recorded."""

    def test_modes(self) -> None:
        """No gradient mode, inference mode, plain inputs, traces and exported programs."""
        layer, x = linear(), torch.randn(3, 37)
        leaf = x.clone().requires_grad_()
        assert layer(leaf).requires_grad
        assert not layer(x).requires_grad
        for off in (torch.no_grad, torch.inference_mode):
            with off():
                assert not layer(leaf).requires_grad
        model = nn.Sequential(layer, Int8Linear(nn.Linear(5, 3)))
        traced = torch.jit.trace(model, x)  # type: ignore[no-untyped-call]
        scripted = torch.jit.script(model)
        assert torch.equal(traced(x), model(x))
        assert torch.equal(scripted(x), model(x))

    def test_symbolic_traces(self) -> None:
        """torch.fx records the operators of every layer."""
        model = nn.Sequential(
            convolution(1, 5, 7), nn.Flatten(), nn.Linear(140, 37), linear(), Int8Linear(nn.Linear(5, 3))
        )
        x = torch.randn(2, 5, 9, 8)
        graph = torch.fx.symbolic_trace(model)
        assert torch.equal(graph(x), model(x))
        assert sum("ternary" in str(n.target) for n in graph.graph.nodes) == 3

    @pytest.mark.slow
    @pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # of torch's own compiler
    def test_compilers(self) -> None:
        """A compiled model has the same gradient; an exported program holds the operators alone."""
        pictures = convolution(1, 5, 7)
        x = torch.randn(2, 5, 9, 8)
        assert close(of_input(torch.compile(pictures, fullgraph=True, backend="aot_eager"), x), of_input(pictures, x))
        model = nn.Sequential(linear(), Int8Linear(nn.Linear(5, 3)))
        x = torch.randn(3, 37)
        assert close(of_input(torch.compile(model, fullgraph=True, backend="aot_eager"), x), of_input(model, x))
        exported = torch.export.export(model, (x,))
        assert {str(n.target) for n in exported.graph.nodes if "ternary" in str(n.target)} == {"ternary.linear.default"}

    def test_no_float_weight_is_made_before_the_backward_pass(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """An evaluation by someone who forgot `no_grad` does not unpack weights."""
        from ternary.runtime import _gradients as gradients

        asked = []
        real = gradients._matrix
        monkeypatch.setattr(gradients, "_matrix", lambda *a: asked.append(1) or real(*a))
        for layer in (PackedLinear.from_ternary(values(5, 32), 0.5), Int8Linear(nn.Linear(32, 5))):
            asked.clear()
            y = layer(torch.randn(2, 32, requires_grad=True))
            assert not asked
            y.sum().backward()
            assert asked
