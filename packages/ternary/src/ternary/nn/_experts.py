"""The experts of a mixture as layers of their own, in place of parameters that hold one matrix for each expert."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn

__all__ = ["SeparateExperts", "are_fused_experts"]

_MARKS = ("num_experts", "has_gate", "has_bias", "has_post_expert_norm", "is_transposed", "_apply_gate")


def are_fused_experts(module: nn.Module) -> bool:
    """Whether a module follows the interface of transformers for experts whose matrices are fused in one parameter."""
    parameters = dict(module.named_parameters(recurse=False))
    fused = [parameters.get("gate_up_proj", parameters.get("up_proj")), parameters.get("down_proj")]
    shaped = all(p is not None and p.dim() == 3 and p.shape[0] == getattr(module, "num_experts", 0) for p in fused)
    return shaped and all(hasattr(module, mark) for mark in _MARKS)


class SeparateExperts(nn.Module):
    """The experts of a mixture (Mixtral, Qwen-MoE, gpt-oss and others of transformers), two Linear layers for each.

    Args:
        fused: A module of transformers whose parameters hold one matrix for each expert. It loses these parameters:
            what is left of it (activation, gate and normalization) becomes the part `rule`.

    Example:
        >>> from transformers import MixtralConfig
        >>> from transformers.models.mixtral.modeling_mixtral import MixtralExperts
        >>> from ternary.nn import SeparateExperts
        >>> config = MixtralConfig(hidden_size=8, intermediate_size=16, num_local_experts=2)
        >>> SeparateExperts(MixtralExperts(config)).down_proj[1]
        Linear(in_features=16, out_features=8, bias=False)
    """

    def __init__(self, fused: nn.Module):
        super().__init__()
        taken: Any = fused
        self.num_experts: int = taken.num_experts
        self.gated: bool = taken.has_gate
        self.normalized: bool = taken.has_post_expert_norm
        self.up_proj: nn.ModuleList = _linear_layers(taken, "gate_up_proj" if self.gated else "up_proj")
        self.down_proj: nn.ModuleList = _linear_layers(taken, "down_proj")
        self.rule = fused
        self.train(fused.training)

    def forward(self, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        """Return the weighted sum of the chosen experts: tokens (T, D), their experts and weights (T, K)."""
        if torch.compiler.is_compiling() or torch.jit.is_tracing():  # type: ignore[attr-defined,no-untyped-call]
            return self._all_experts(hidden_states, top_k_index, top_k_weights)
        out = torch.zeros_like(hidden_states)
        for number in torch.unique(top_k_index).tolist():
            if number >= self.num_experts:
                continue  # the mark of a token whose expert is on another device
            token, place = torch.where(top_k_index == number)
            answer = self._expert(number, hidden_states[token]) * top_k_weights[token, place, None]
            out.index_add_(0, token, answer.to(out.dtype))
        return out

    def _all_experts(self, x: Tensor, index: Tensor, weights: Tensor) -> Tensor:
        """Return the same sum with every expert for every token: a graph must not depend on the tokens' choice."""
        share = torch.zeros(x.shape[0], self.num_experts + 1, dtype=weights.dtype, device=x.device)
        share = share.scatter_add(1, index, weights)
        answers = [self._expert(n, x) * share[:, n : n + 1] for n in range(self.num_experts)]
        return torch.stack(answers).sum(0).to(x.dtype)

    def _expert(self, number: int, x: Tensor) -> Tensor:
        rule: Any = self.rule
        inner = self.up_proj[number](x)
        inner = rule._apply_gate(inner) if self.gated else rule.act_fn(inner)  # noqa: SLF001 - part of the interface
        out = self.down_proj[number](inner)
        return cast("Tensor", rule.post_expert_norm(out) if self.normalized else out)


@torch.no_grad()
def _linear_layers(fused: Any, name: str) -> nn.ModuleList:
    """Take a parameter of experts away from its module; return it as one Linear for each expert."""
    weight = getattr(fused, name)
    bias = getattr(fused, f"{name}_bias") if fused.has_bias else None
    layers = nn.ModuleList()
    for number in range(weight.shape[0]):
        matrix = weight[number].T if fused.is_transposed else weight[number]
        layer = nn.Linear(matrix.shape[1], matrix.shape[0], bias is not None, device="meta")
        layer.weight = nn.Parameter(matrix.clone(memory_format=torch.contiguous_format), weight.requires_grad)
        if bias is not None:
            layer.bias = nn.Parameter(bias[number].clone(), bias.requires_grad)
        layers.append(layer)
    for gone in (name, f"{name}_bias") if bias is not None else (name,):
        delattr(fused, gone)
    return layers
