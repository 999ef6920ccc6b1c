"""Imported ternary weights, and how to put them into a model."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ternary._torch_private import keep_hooks
from ternary.errors import ImportFormatError
from ternary.runtime._modules import PackedConv2d, PackedEmbedding, PackedLinear

__all__ = ["TernaryTensor", "put_into"]


@dataclass(frozen=True, slots=True)
class TernaryTensor:
    """A weight that is exactly ternary.

    Attributes:
        values: Int8 tensor of -1, 0, +1 in the shape of the weight, outputs first.
        scale: Float32 tensor of shape (outputs,), the magnitude of +1 in each output.

    Example:
        >>> import torch
        >>> from ternary.export import TernaryTensor
        >>> TernaryTensor(torch.tensor([[1, -1]]), torch.tensor([0.5])).dense().tolist()
        [[0.5, -0.5]]
    """

    values: Tensor
    scale: Tensor

    def dense(self) -> Tensor:
        """The float32 weight."""
        return self.values.float() * self.scale.reshape([-1] + [1] * (self.values.dim() - 1))


def split_rows(rows: Tensor, name: str) -> TernaryTensor:
    """Take a float matrix apart that holds -s, 0, +s in each row.

    Raises:
        ImportFormatError: A row has more than one magnitude besides zero.
    """
    scale = rows.abs().amax(1) if rows.shape[1] else rows.new_zeros(rows.shape[0])
    values = torch.sign(rows)
    wrong = (values * scale[:, None] != rows).any(1)
    if bool(wrong.any()):
        row = int(wrong.nonzero()[0])
        raise ImportFormatError(
            f"{name}: row {row} holds magnitudes other than 0 and {float(scale[row]):.6g}; a packed layer has "
            "one scale a row, so this weight cannot be taken without loss"
        )
    return TernaryTensor(values.to(torch.int8), scale.float())


def put_into(
    model: nn.Module, tensors: dict[str, TernaryTensor | Tensor], *, kernel: str = "auto", threads: int = 0
) -> nn.Module:
    """Return a copy of a float model in which the given ternary weights are packed layers, the rest as loaded.

    Args:
        model: The same architecture with Linear, Conv2d (zero-padded) and Embedding layers.
        tensors: By the names of the model's state dict (`layers.0.q_proj.weight`).
        kernel: As for `ternary.pack`.
        threads: As for `ternary.pack`.

    Raises:
        ImportFormatError: A name or shape does not fit the model.

    Example:
        >>> import torch
        >>> from ternary.export import TernaryTensor, put_into
        >>> weight = TernaryTensor(torch.ones(2, 4, dtype=torch.int8), torch.ones(2))
        >>> put_into(torch.nn.Linear(4, 2, bias=False), {"weight": weight})(torch.ones(1, 4)).tolist()
        [[4.0, 4.0]]
    """
    made = copy.deepcopy(model).eval()
    state = {k: t.dense() if isinstance(t, TernaryTensor) else t for k, t in tensors.items()}
    try:
        made.load_state_dict(state)
    except RuntimeError as e:
        raise ImportFormatError(f"the tensors do not fit {type(model).__name__}: {e}") from None
    for key, tensor in tensors.items():
        if isinstance(tensor, TernaryTensor):
            name, _, _ = key.rpartition(".")
            parent, _, last = name.rpartition(".")
            old = made.get_submodule(name)
            new = _packed(old, tensor, key, kernel, threads)
            keep_hooks(new, old)
            if not name:
                return new
            setattr(made.get_submodule(parent), last, new)
    return made


def _packed(layer: nn.Module, t: TernaryTensor, key: str, kernel: str, threads: int) -> nn.Module:
    bias = getattr(layer, "bias", None)
    bias = None if bias is None else bias.detach().float()
    if isinstance(layer, nn.Linear):
        return PackedLinear.from_ternary(t.values, t.scale, bias, kernel=kernel, threads=threads)
    if isinstance(layer, nn.Embedding):
        return PackedEmbedding.from_ternary(t.values, t.scale, dtype=layer.weight.dtype)
    if isinstance(layer, nn.Conv2d) and layer.padding_mode == "zeros" and not isinstance(layer.padding, str):
        (sh, sw), (ph, pw), (dh, dw) = layer.stride, layer.padding, layer.dilation
        return PackedConv2d.from_ternary(
            t.values,
            t.scale,
            bias,
            stride=(sh, sw),
            padding=(ph, pw),
            dilation=(dh, dw),
            groups=layer.groups,
            kernel=kernel,
            threads=threads,
        )
    raise ImportFormatError(f"{key} is ternary, but {type(layer).__name__} has no packed form here")
