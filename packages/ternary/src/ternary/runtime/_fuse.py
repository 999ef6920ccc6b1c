"""Find chains of thin convolutions in a packed model and put one fused layer in the place of each."""

from __future__ import annotations

import copy
import inspect
import itertools
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional

from ternary import nn as layers  # imported first, it imports this module before its own names are there
from ternary.errors import NothingToFuseError
from ternary.runtime._chain import Activation, FusedChain, Stage
from ternary.runtime._face import PackedLayer
from ternary.runtime._layout import Geometry, is_depthwise
from ternary.runtime._modules import PackedConv2d
from ternary.runtime._ops import TRITON

__all__ = ["fuse"]

_MOST_TAPS, _MOST_COLUMNS = 64, 66_000  # of the core
_FEW_CHANNELS = 4
_LARGEST_CHANGE = 0.25
_RELU, _RELU6 = Activation(0.0), Activation(0.0, 6.0)
_FUNCTIONS: dict[Any, Activation] = {
    functional.relu: _RELU,
    torch.relu: _RELU,
    torch.relu_: _RELU,
    functional.relu6: _RELU6,
    functional.hardswish: Activation(hardswish=True),
    "relu": _RELU,
    "relu_": _RELU,
}


_NORMS = (nn.BatchNorm2d, nn.SyncBatchNorm)
_NOTHING = (nn.Identity, nn.Dropout, nn.Dropout2d)  # in evaluation
_MOST_AFTER = 3  # layers in a normalization whose order is tried


def fuse(model: nn.Module, example: Tensor) -> nn.Module:
    """Return a copy of a packed model whose chains of thin convolutions run as one layer each, for inference.

    A chain consists of packed or int8 1 x 1 convolutions and depthwise convolutions. Batch normalization and ReLU,
    ReLU6, Hardtanh or Hardswish may follow each, and a float convolution of at most 4 channels may come first. Nothing
    else uses what lies between. Normalization is folded into scales and weights, and depthwise kernels compute in
    float, also packed ones. A part whose control flow depends on values stays as it is, and so does one whose fused
    form returns something else for the example.

    The result computes; save and export the packed model.

    Args:
        model: A model that `ternary.pack` returned, in evaluation mode; it is not changed.
        example: An input as the model takes it, of any batch and size; its shape is not fixed by this.

    Returns:
        The copy. Parts that were fused are `torch.fx.GraphModule`s with the layers of the model.

    Raises:
        NothingToFuseError: There is no such chain in the model.

    Example:
        >>> import torch, ternary
        >>> from ternary.runtime import fuse
        >>> packed = ternary.pack(ternary.zoo.load("mobilenet_v2")(width=0.25).eval())
        >>> fuse(packed, torch.randn(1, 3, 32, 32))(torch.randn(2, 3, 64, 64)).shape
        torch.Size([2, 1000])
    """
    made = copy.deepcopy(model).eval()
    inputs = _inputs_of_parts(made, example)
    with torch.no_grad():
        fused, chains = _fused(made, inputs)
    if not chains:
        raise NothingToFuseError(
            f"{type(model).__name__} has no 1 x 1 or depthwise convolution that can be fused; call ternary.pack first"
        )
    return fused


def _inputs_of_parts(model: nn.Module, example: Tensor) -> dict[nn.Module, Tensor]:
    """Run the example; return the input of each part that takes one tensor and may be rewritten."""
    found: dict[nn.Module, Tensor] = {}

    def note(part: nn.Module, given: tuple[Any, ...], named: dict[str, Any]) -> None:
        if len(given) == 1 and not named and isinstance(given[0], Tensor) and part not in found:
            found[part] = given[0].clone()

    free = [m for m in model.modules() if not _is_leaf(m) and _takes_one(m) and not _hooked(m)]
    handles = [m.register_forward_pre_hook(note, with_kwargs=True) for m in free]
    try:
        with torch.no_grad():
            model(example)
    finally:
        for handle in handles:
            handle.remove()
    return found


def _is_leaf(m: nn.Module) -> bool:
    own = m.__module__.startswith("torch.nn") and not isinstance(m, nn.Sequential)
    return own or isinstance(m, PackedLayer | nn.BatchNorm2d | nn.SyncBatchNorm | FusedChain)


def _takes_one(m: nn.Module) -> bool:
    """Whether `forward` has one parameter: the way through a model may depend on whether others are given."""
    parameters = list(inspect.signature(m.forward).parameters.values())
    return len(parameters) == 1 and parameters[0].kind is inspect.Parameter.POSITIONAL_OR_KEYWORD


def _hooked(m: nn.Module) -> bool:
    kinds = ("_forward_hooks", "_forward_pre_hooks")
    return any(getattr(part, kind) for part in m.modules() for kind in kinds)


def _fused(part: nn.Module, inputs: dict[nn.Module, Tensor]) -> tuple[nn.Module, int]:
    """Return a part with its chains fused, and their number: as a whole if it can be traced, else child by child."""
    if _is_leaf(part):
        return part, 0
    if part in inputs:
        made, chains = _rewritten(part)
        if made is not None and (not chains or _agree(part, made, inputs[part])):
            return (made, chains) if chains else (part, 0)
    count = 0
    for name, child in list(part.named_children()):
        new, chains = _fused(child, inputs)
        if chains:
            setattr(part, name, new)
        count += chains
    return part, count


def _agree(part: nn.Module, made: nn.Module, x: Tensor) -> bool:
    """Whether the fused form returns the same up to the rounding of activations."""
    try:
        wanted, got = part(x.clone()), made(x.clone())
    except Exception:  # whatever a wrongly traced part raises, the part itself stays
        return False
    if not isinstance(wanted, Tensor) or not isinstance(got, Tensor) or got.shape != wanted.shape:
        return False
    return float((got - wanted).norm()) <= _LARGEST_CHANGE * float(wanted.norm()) + 1e-6


class _Tracer(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        del module_qualified_name
        return _is_leaf(m)


def _rewritten(part: nn.Module) -> tuple[nn.Module | None, int]:
    """Trace a part and fuse the chains in its graph; None if its way depends on values."""
    try:
        graph = _Tracer().trace(part)
    except Exception:  # tracing fails in whatever way the model's code does
        return None, 0
    made = fx.GraphModule(part, graph, type(part).__name__)
    _separate_norms(made)
    chains = 0
    gone: set[fx.Node] = set()
    for node in list(graph.nodes):
        found = None if node in gone else _chain_from(made, node)
        if found is not None:
            gone.update(found.nodes)
            _replace(made, found, f"chain_{chains}")
            chains += 1
    if chains:
        made.delete_all_unused_submodules()
        made.recompile()
    return made, chains


def _separate_norms(made: fx.GraphModule) -> None:
    """Put a normalization of torch and the layers after it in the place of each class that computes them at once."""
    for number, node in enumerate(list(made.graph.nodes)):
        module = _module(made, node)
        steps = _steps_of_norm(module) if isinstance(module, _NORMS) and type(module) not in _NORMS else []
        before = node.args[0] if steps else node
        for place, step in enumerate(steps):
            made.add_submodule(f"norm_{number}_{place}", step)
            with made.graph.inserting_before(node):
                before = made.graph.call_module(f"norm_{number}_{place}", (before,))
        if steps:
            node.replace_all_uses_with(before)
            made.graph.erase_node(node)


def _steps_of_norm(norm: nn.BatchNorm2d | nn.SyncBatchNorm) -> list[nn.Module]:
    """Return the layers that a subclass of a normalization runs one after the other; none if that is not what it does.

    Such classes, as BatchNormAct2d of timm, hold the layers after the normalization as children, in any order.
    """
    plain = nn.BatchNorm2d(norm.num_features, norm.eps, norm.momentum, norm.affine, norm.track_running_stats)
    plain.load_state_dict(norm.state_dict(), strict=False)
    plain.to(next(itertools.chain(norm.parameters(), norm.buffers()), torch.empty(0)).device).eval()
    after = [child for child in norm.children() if not isinstance(child, _NOTHING)]
    x = torch.randn(2, plain.num_features, 4, 4, generator=torch.Generator().manual_seed(0)) * 4.0
    if plain.running_mean is not None and plain.running_var is not None:
        x = x.to(plain.running_mean) * plain.running_var.sqrt()[:, None, None] + plain.running_mean[:, None, None]
    for order in itertools.permutations(after) if len(after) <= _MOST_AFTER else []:
        steps = [plain, *order]
        if _same(nn.Sequential(*steps), norm, x):
            return steps
    return []


def _same(made: nn.Module, wanted: nn.Module, x: Tensor) -> bool:
    try:
        return torch.allclose(made(x.clone()), wanted(x.clone()), rtol=1e-4, atol=1e-5)
    except Exception:  # a class of others fails in its own way; it stays as it is
        return False


@dataclass(slots=True)
class _Found:
    """A chain in a graph: its nodes in order, and the layer to put in their place."""

    nodes: list[fx.Node]
    layer: nn.Module


def _replace(made: fx.GraphModule, found: _Found, name: str) -> None:
    first, last = found.nodes[0], found.nodes[-1]
    made.add_submodule(name, found.layer)
    with made.graph.inserting_after(last):
        new = made.graph.call_module(name, (first.args[0],))
    last.replace_all_uses_with(new)
    for node in reversed(found.nodes):
        made.graph.erase_node(node)


def _chain_from(made: fx.GraphModule, node: fx.Node) -> _Found | None:
    """Return the longest chain that begins at a node."""
    first = _stage_of(_module(made, node))
    if first is None:
        return None
    nodes, (stage, kernel, threads) = [node], first
    stages = [stage]
    while (following := _only_user(nodes[-1])) is not None:
        module = _module(made, following)
        activation = _activation_of(module, following)
        also = _stage_of(module)
        if isinstance(module, _NORMS) and type(module) in _NORMS and stages[-1].activation == Activation():
            normalized = _normalized(stages[-1], module)
            if normalized is None:
                break
            stages[-1] = normalized
        elif activation is not None and stages[-1].activation == Activation():
            stages[-1] = replace(stages[-1], activation=activation)
        elif also is not None and (also[1], also[2]) == (kernel, threads):
            stages.append(also[0])
        elif not isinstance(module, _NOTHING):
            break
        nodes.append(following)
    return _Found(nodes, FusedChain(tuple(stages), kernel=kernel, threads=threads).eval())


def _module(made: fx.GraphModule, node: fx.Node) -> nn.Module | None:
    return made.get_submodule(str(node.target)) if node.op == "call_module" and len(node.args) == 1 else None


def _only_user(node: fx.Node) -> fx.Node | None:
    """Return the node that alone uses a node's result, as its first argument."""
    users = list(node.users)
    if len(users) != 1 or users[0].op == "output":
        return None
    (user,) = users
    return user if user.args and user.args[0] is node and user.all_input_nodes == [node] else None


def _activation_of(module: nn.Module | None, node: fx.Node) -> Activation | None:
    kind = type(module)
    if kind is nn.ReLU:
        return _RELU
    if kind is nn.Hardswish:
        return Activation(hardswish=True)
    if kind in (nn.ReLU6, nn.Hardtanh):
        return Activation(float(module.min_val), float(module.max_val))  # type: ignore[union-attr,arg-type]
    if node.op in ("call_function", "call_method") and len(node.args) == 1 and set(node.kwargs) <= {"inplace"}:
        return _FUNCTIONS.get(node.target)
    return None


def _normalized(stage: Stage, norm: nn.BatchNorm2d | nn.SyncBatchNorm) -> Stage | None:
    """Return a stage with the normalization after it folded in; None if it has no statistics of its own."""
    if norm.training or norm.running_mean is None or norm.running_var is None:
        return None
    factor = (norm.running_var.double() + norm.eps).rsqrt()
    if norm.weight is not None:
        factor = factor * norm.weight.double()
    shift = -norm.running_mean.double() * factor
    if norm.bias is not None:
        shift = shift + norm.bias.double()
    bias = (stage.bias.double() * factor + shift).float()
    if stage.scale is None:
        return replace(stage, weight=(stage.weight.double() * factor).float(), bias=bias)
    return replace(stage, scale=(stage.scale.double() * factor).float(), bias=bias)


def _stage_of(module: nn.Module | None) -> tuple[Stage, str, int] | None:
    """Return a convolution as a stage with its kernel and threads; None if chains cannot hold it."""
    if not isinstance(module, nn.Conv2d | PackedConv2d | layers.Int8Conv2d) or module.in_channels > _MOST_COLUMNS:
        return None
    packed = isinstance(module, PackedConv2d)
    kernel, threads = (module.kernel, module.threads) if isinstance(module, PackedConv2d) else ("auto", 0)
    if kernel in ("torch", *TRITON) or isinstance(module.padding, str) or module.padding_mode != "zeros":
        return None
    geometry = Geometry.of(module.kernel_size, module.stride, module.padding, module.dilation, module.groups)
    n = module.out_channels
    held = module.bias
    bias = torch.zeros(n) if held is None else held.detach().float().clone()
    if getattr(module, "edges", [0]) != [0]:
        return None
    depthwise = is_depthwise(module.in_channels, n, module.groups)
    in_float = isinstance(module, nn.Conv2d) or (isinstance(module, layers.Int8Conv2d) and not module.in_integers)
    few = module.in_channels <= _FEW_CHANNELS and module.in_channels * geometry.taps <= _MOST_TAPS
    dense = module.groups == 1 and in_float and few
    if dense or (depthwise and geometry.taps <= _MOST_TAPS):
        weight = (module.weight if isinstance(module, nn.Conv2d) else module.dense()).detach().float()
        taps = weight.permute(2, 3, 1, 0).reshape(-1, n).contiguous()
        return Stage(taps, None, bias, module.in_channels, geometry, dense=dense), kernel, threads
    point = geometry == Geometry((1, 1))
    in_integers = packed or (isinstance(module, layers.Int8Conv2d) and module.in_integers)
    if not point or not in_integers or isinstance(module, nn.Conv2d):
        return None
    return Stage(module.packed, module.scale, bias, module.in_channels), kernel, threads
