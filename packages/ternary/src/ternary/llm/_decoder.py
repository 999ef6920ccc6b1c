"""The architecture as a torch module: the float reference of what the core computes, and what training starts from."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ternary.llm._config import ModelConfig, rotary_tables
from ternary.llm._modelfile import MATRICES, ModelFile
from ternary.nn import TernaryLinear

__all__ = ["Attend", "Decoder", "Layer", "RMSNorm"]

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Mixes values by rotated queries and keys, each (batch, heads, positions, size); like the queries in shape."""


def _causal(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Let each position attend to itself and those before it."""
    return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)


class RMSNorm(nn.Module):
    """Root mean square norm with a learned weight."""

    def __init__(self, size: int, epsilon: float):
        super().__init__()
        self.weight: nn.Parameter = nn.Parameter(torch.ones(size))
        self.epsilon = epsilon

    def forward(self, x: Tensor) -> Tensor:
        """Norm the last dimension."""
        wide = x.float()
        normed: Tensor = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.epsilon)
        scaled: Tensor = self.weight * normed.to(x.dtype)
        return scaled


class Layer(nn.Module):
    """Attention and the gated feed-forward layer, each behind a norm, with residual sums."""

    def __init__(self, config: ModelConfig, linear: Callable[[int, int, bool], nn.Module]):
        super().__init__()
        self.config = config
        queries, pairs = config.heads * config.head_size, config.kv_heads * config.head_size
        self.attention_norm = RMSNorm(config.hidden, config.epsilon)
        self.feed_norm = RMSNorm(config.hidden, config.epsilon)
        self.attention_sub_norm = RMSNorm(queries, config.epsilon) if config.sub_norms else nn.Identity()
        self.feed_sub_norm = RMSNorm(config.inner, config.epsilon) if config.sub_norms else nn.Identity()
        self.q = linear(config.hidden, queries, config.bias)
        self.k = linear(config.hidden, pairs, config.bias)
        self.v = linear(config.hidden, pairs, config.bias)
        self.o = linear(queries, config.hidden, config.bias)
        self.gate = linear(config.hidden, config.inner, False)
        self.up = linear(config.hidden, config.inner, False)
        self.down = linear(config.inner, config.hidden, False)

    def forward(self, x: Tensor, cosine: Tensor, sine: Tensor, attend: Attend = _causal) -> Tensor:
        """Return the hidden states (batch, positions, hidden) after this layer."""
        x = x + self.o(self.attention_sub_norm(self._attention(self.attention_norm(x), cosine, sine, attend)))
        normed = self.feed_norm(x)
        gate = self.gate(normed)
        active = F.relu(gate).square() if self.config.activation == "relu2" else F.silu(gate)
        fed: Tensor = self.down(self.feed_sub_norm(active * self.up(normed)))
        return x + fed

    def _attention(self, x: Tensor, cosine: Tensor, sine: Tensor, attend: Attend) -> Tensor:
        batch, length, _ = x.shape
        shape = (batch, length, -1, self.config.head_size)
        q, k, v = (projection(x).reshape(shape).transpose(1, 2) for projection in (self.q, self.k, self.v))

        def rotate(t: Tensor) -> Tensor:
            a, b = t.chunk(2, dim=-1)
            return torch.cat([a * cosine - b * sine, b * cosine + a * sine], dim=-1)

        mixed = attend(rotate(q), rotate(k), v)
        return mixed.transpose(1, 2).reshape(batch, length, -1)


class Decoder(nn.Module):
    """A BitNet b1.58 or Llama-like language model in plain torch.

    Args:
        config: The model's shape.
        ternary: Projections as `TernaryLinear` with absmean and 8-bit activations, for training; else float ones.

    Example:
        >>> import torch
        >>> from ternary.llm import Decoder, ModelConfig
        >>> config = ModelConfig(64, hidden=32, inner=64, layers=1, heads=2, kv_heads=1, head_size=16, context=32)
        >>> Decoder(config)(torch.tensor([[1, 2, 3]])).shape
        torch.Size([1, 3, 64])
    """

    cosine: Tensor
    sine: Tensor

    def __init__(self, config: ModelConfig, *, ternary: bool = False):
        super().__init__()
        self.config = config

        def linear(inputs: int, outputs: int, bias: bool) -> nn.Module:
            if ternary:
                return TernaryLinear(inputs, outputs, bias, quantizer="absmean", per="tensor", activations="int8")
            return nn.Linear(inputs, outputs, bias)

        self.embedding: nn.Embedding = nn.Embedding(config.vocabulary, config.hidden)
        self.layers: nn.ModuleList = nn.ModuleList([Layer(config, linear) for _ in range(config.layers)])
        self.norm: RMSNorm = RMSNorm(config.hidden, config.epsilon)
        self.head: nn.Linear = nn.Linear(config.hidden, config.vocabulary, bias=False)
        if config.tied:
            self.head.weight = self.embedding.weight
        cosine, sine = rotary_tables(config, config.context)
        self.register_buffer("cosine", torch.from_numpy(cosine), persistent=False)
        self.register_buffer("sine", torch.from_numpy(sine), persistent=False)

    def forward(self, ids: Tensor) -> Tensor:
        """Return logits (batch, positions, vocabulary) of tokens (batch, positions)."""
        x = self.embedding(ids)
        for layer in self.layers:
            x = layer(x, self.cosine[: ids.shape[1]], self.sine[: ids.shape[1]])
        logits: Tensor = self.head(self.norm(x))
        return logits

    @classmethod
    def from_file(cls, file: ModelFile) -> Decoder:
        """Return the float module with the weights of an open model file; each takes 32 bits here."""
        made = cls(file.config)
        state: dict[str, Tensor] = {}
        for name in made.state_dict():
            own = name.removesuffix(".weight")
            if own.rpartition(".")[2] in MATRICES:
                matrix = file.matrix(own)
                state[name] = torch.from_numpy(matrix.values() * matrix.scale[:, None])
            elif own in ("embedding", "head"):
                stored = "embedding" if file.config.tied else own
                rows = file.tensors[stored].astype(np.float32) * file.tensors[stored + ".scale"][:, None]
                state[name] = torch.from_numpy(rows)
            else:
                state[name] = torch.from_numpy(np.array(file.tensors[own]))
        made.load_state_dict(state)
        return made.eval()
