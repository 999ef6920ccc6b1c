"""A language model as a frozen base for adapters: torch modules over the mapped, packed weights of a model file."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import CausalLMOutput

from ternary.errors import ContextLengthError, ModelClosedError
from ternary.llm._config import rotary_tables
from ternary.llm._decoder import Attend, Layer, RMSNorm
from ternary.llm._matrices import TernaryMatrix
from ternary.llm._model import Model
from ternary.llm._modelfile import MATRICES, ModelFile
from ternary.llm._transformers import TernaryConfig
from ternary.runtime import _gradients as gradients

__all__ = ["FrozenForCausalLM"]

_ROWS = 4096
"""Tokens of a head whose vectors are float at the same time."""


def _mapped(array: Any) -> Tensor:
    """Return a tensor over an array's memory, which it keeps. Nothing may write to it: the array may be read-only."""
    # By address, because torch warns about arrays that numpy calls read-only.
    raw: Any = (ctypes.c_ubyte * array.nbytes).from_address(array.ctypes.data)
    raw.array = array
    dtype = {"uint8": torch.uint8, "int8": torch.int8, "float32": torch.float32}[array.dtype.name]
    return torch.frombuffer(raw, dtype=dtype).view(array.shape)


def _frozen(array: Any) -> nn.Parameter:
    return nn.Parameter(_mapped(array), requires_grad=False)


class FrozenLinear(nn.Linear):
    """A ternary projection whose `weight` is the packed tiles, for adapters that look for linear layers.

    Gradients reach the input as if nothing was rounded.
    """

    scale: Tensor

    def __init__(self, matrix: TernaryMatrix):
        nn.Module.__init__(self)  # nn.Linear would make a float weight
        self.in_features, self.out_features = matrix.inputs, matrix.outputs
        self.weight = _frozen(matrix.tiles)
        self.register_buffer("scale", _mapped(matrix.scale))
        self.bias = None if matrix.bias is None else _frozen(matrix.bias)  # type: ignore[assignment]

    def forward(self, input: Tensor) -> Tensor:
        """Return the product of (..., inputs), rounded to 8 bits row by row, with the weight."""
        if gradients.wanted(input):
            return gradients.linear(input, self.weight, self.scale, self.bias, "auto", 0)
        return cast(Tensor, torch.ops.ternary.linear(input, self.weight, self.scale, self.bias, "auto", 0))


def _split(*tensors: Tensor) -> list[tuple[Tensor, ...]]:
    """Return the parts of so many rows of each tensor."""
    return [each.split(_ROWS) for each in tensors]  # type: ignore[no-untyped-call]


class _Product(torch.autograd.Function):
    """The product with 8-bit rows, of which only a few are float at the same time, forwards and backwards."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, scale: Tensor) -> Tensor:
        ctx.save_for_backward(weight, scale)
        parts = zip(*_split(weight, scale), strict=True)
        return torch.cat([x @ (rows.to(x.dtype) * each[:, None].to(x.dtype)).T for rows, each in parts], dim=-1)

    @staticmethod
    def backward(ctx: Any, *outputs: Tensor) -> tuple[Tensor, None, None]:
        weight, scale = ctx.saved_tensors
        grad = outputs[0]
        parts = zip(*_split(grad.movedim(-1, 0), weight, scale), strict=True)
        products = (g.movedim(0, -1) @ (rows.to(g.dtype) * each[:, None].to(g.dtype)) for g, rows, each in parts)
        return sum(products, torch.zeros((), dtype=grad.dtype, device=grad.device)), None, None


class _Vectors(nn.Module):
    """The tokens' vectors in 8 bits with a scale each, as the embedding or as the head."""

    scale: Tensor

    def __init__(self, file: ModelFile, name: str):
        super().__init__()
        self.weight: nn.Parameter = _frozen(file.tensors[name])
        self.register_buffer("scale", _mapped(file.tensors[name + ".scale"]))

    def rows(self, ids: Tensor) -> Tensor:
        """Return the float vectors of tokens."""
        return self.weight[ids].float() * self.scale[ids].unsqueeze(-1)


class FrozenEmbedding(_Vectors):
    """The vectors of the tokens that come in."""

    def forward(self, ids: Tensor) -> Tensor:
        """Look up tokens of any shape."""
        return self.rows(ids)


class FrozenHead(_Vectors):
    """The vectors that hidden states are compared with."""

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits of every token."""
        return cast(Tensor, _Product.apply(x, self.weight, self.scale))  # type: ignore[no-untyped-call]


class FrozenForCausalLM(PreTrainedModel):  # type: ignore[misc] # transformers is untyped here
    """An open language model as a frozen base for adapters such as LoRA, behind the interface of transformers.

    Its weights are those of the model file, packed and where they are mapped: processes that open one published model
    share them, and each has only its adapters to itself. The projections compute with the integers of the kernels, and
    gradients pass through them as if nothing was rounded. They are `nn.Linear` with a `weight` of packed bytes, so that
    peft finds them. Use `TernaryForCausalLM` to generate without adapters, which is faster.

    Args:
        model: A model that `ternary.llm.load` opened. It may be closed afterwards: this object keeps the weights.

    Raises:
        ModelClosedError: The model is closed.

    Example:
        >>> import tempfile
        >>> import torch
        >>> from ternary import llm
        >>> config = llm.ModelConfig(64, hidden=32, inner=64, layers=1, heads=2, kv_heads=1, head_size=16, context=32)
        >>> llm.save(llm.Decoder(config, ternary=True), path := tempfile.mkdtemp() + "/m.ternary")
        >>> base = llm.FrozenForCausalLM(llm.load(path))
        >>> base(torch.tensor([[1, 2, 3]])).logits.shape
        torch.Size([1, 3, 64])
    """

    config_class: Any = TernaryConfig
    main_input_name = "input_ids"
    cosine: Tensor
    sine: Tensor

    def __init__(self, model: Model):
        own, file = model.config, model.file
        if not file.tensors:
            raise ModelClosedError("the model is closed; open it again with ternary.llm.load")
        super().__init__(
            TernaryConfig(
                vocab_size=own.vocabulary,
                hidden_size=own.hidden,
                num_hidden_layers=own.layers,
                num_attention_heads=own.heads,
                max_position_embeddings=own.context,
                tie_word_embeddings=False,
            )
        )
        self._own, self._open = own, model
        self.embedding: nn.Module = FrozenEmbedding(file, "embedding")
        self.layers: nn.ModuleList = nn.ModuleList([_layer(file, number) for number in range(own.layers)])
        self.norm: RMSNorm = _norm(file, "norm", RMSNorm(own.hidden, own.epsilon))
        self.head: nn.Module = FrozenHead(file, "embedding" if own.tied else "head")
        cosine, sine = rotary_tables(own, own.context)
        self.register_buffer("cosine", torch.from_numpy(cosine), persistent=False)
        self.register_buffer("sine", torch.from_numpy(sine), persistent=False)
        self.eval()

    def get_input_embeddings(self) -> nn.Module:
        """Return what looks up the tokens' vectors."""
        return self.embedding

    def get_output_embeddings(self) -> nn.Module:
        """Return the head."""
        return self.head

    def encode(self, text: str) -> list[int]:
        """Return the tokens of a text, without those that the tokenizer puts around it.

        Raises:
            ChatTemplateError: The model file has no tokenizer.
        """
        return self._open.tokenizer.encode(text, special=False)

    @torch.no_grad()
    def keep_tokens(self, ids: Sequence[int]) -> None:
        """Know only some tokens from now on, in this order; their vectors become float, which adapters may change.

        Args:
            ids: Tokens of the model. Token n is then the n-th of them.
        """
        if not isinstance(self.embedding, FrozenEmbedding) or not isinstance(self.head, FrozenHead):
            raise ValueError("the tokens to keep were chosen before; open the model again to choose others")
        chosen = torch.tensor(list(ids), device=self.cosine.device)
        embedding, head = self.embedding.rows(chosen), self.head.rows(chosen)
        self.embedding = nn.Embedding.from_pretrained(embedding)  # type: ignore[no-untyped-call]
        self.head = nn.Linear(head.shape[1], head.shape[0], bias=False, device="meta")
        self.head.weight = nn.Parameter(head, requires_grad=False)
        self.config.vocab_size = len(chosen)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        past_key_values: Any = None,
        labels: Tensor | None = None,
        **_: Any,
    ) -> CausalLMOutput:
        """Return logits (batch, positions, vocabulary), and with labels the mean loss of each next token.

        Args:
            input_ids: Tokens, padded on either side.
            attention_mask: 1 for tokens, 0 for padding, those of the cache included.
            past_key_values: A cache of transformers, such as `DynamicCache`, with the positions before.
            labels: The tokens again; those that are -100 do not count.

        Raises:
            ContextLengthError: The sequence is longer than the model's context.
        """
        past = 0 if past_key_values is None else int(past_key_values.get_seq_length())
        length = input_ids.shape[1]
        if past + length > self._own.context:
            raise ContextLengthError(f"got {past + length} tokens for a context of {self._own.context}")
        if attention_mask is not None and bool((attention_mask != 0).all()):
            attention_mask = None
        positions = torch.arange(past, past + length, device=input_ids.device)
        mask = None
        if attention_mask is not None or (past and length > 1):
            mask = _mask(attention_mask, positions)
        if attention_mask is not None:
            positions = ((attention_mask != 0).cumsum(1) - 1).clamp(min=0)[:, past:].unsqueeze(1)
        cosine, sine = self.cosine[positions], self.sine[positions]
        x = self.embedding(input_ids)
        for number, layer in enumerate(self.layers):
            x = layer(x, cosine, sine, _attend(number, past_key_values, mask))
        logits = self.head(self.norm(x))
        loss = None if labels is None else F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
        return CausalLMOutput(loss=loss, logits=logits)


def _mask(tokens: Tensor | None, positions: Tensor) -> Tensor:
    """Return which positions each of the last ones attends to: the tokens up to it, and always itself."""
    every = torch.arange(int(positions[-1]) + 1, device=positions.device)
    allowed = every <= positions[:, None]
    if tokens is None:
        return allowed
    return (allowed & (tokens[:, None, None, :] != 0)) | (every == positions[:, None])


def _attend(layer: int, cache: Any, mask: Tensor | None) -> Attend:
    """Return the attention of a layer, over what the cache holds too."""

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        if cache is not None:
            k, v = cache.update(k, v, layer)
        causal = mask is None and k.shape[2] == q.shape[2]
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal, enable_gqa=True)

    return attend


def _layer(file: ModelFile, number: int) -> Layer:
    at, config = f"layers.{number}.", file.config
    layer = Layer(config, lambda *_: nn.Identity())
    for name in MATRICES:
        setattr(layer, name, FrozenLinear(file.matrix(at + name)))
    for name in ("attention_norm", "feed_norm", *(("attention_sub_norm", "feed_sub_norm") if config.sub_norms else ())):
        _norm(file, at + name, getattr(layer, name))
    return layer


def _norm(file: ModelFile, name: str, norm: RMSNorm) -> RMSNorm:
    norm.weight = _frozen(file.tensors[name])
    return norm
