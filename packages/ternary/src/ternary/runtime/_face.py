"""What every packed layer shares: the public attributes of the layer that it replaces, its dtypes, its state dict."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import Tensor, nn

from ternary._torch_private import wrapper_tensor
from ternary.errors import PackedDataError

__all__ = ["PackedLayer", "TernaryView", "check_codes", "keep_attributes"]


class TernaryView(Tensor):
    """The weight of a packed layer as a float tensor that is unpacked only where an operation needs its values.

    Reading `weight.dtype`, `shape` or `device`, as many models do, costs nothing.
    """

    if TYPE_CHECKING:
        dense: Callable[[], Tensor]

    @staticmethod
    def of(
        shape: tuple[int, ...], dtype: torch.dtype, device: torch.device, dense: Callable[[], Tensor]
    ) -> TernaryView:
        """Return a view whose values `dense` computes."""
        made: TernaryView = wrapper_tensor(TernaryView, shape, dtype, device)
        made.dense = dense
        return made

    @classmethod
    def __torch_dispatch__(  # type: ignore[override] # torch's own is a class method, its stub is not
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """Unpack every view among the arguments and compute with the values."""
        del types
        return func(*_dense(args), **_dense(kwargs or {}))


def _dense(value: Any) -> Any:
    if isinstance(value, TernaryView):
        return value.dense()
    if isinstance(value, tuple | list):
        return type(value)(_dense(v) for v in value)
    return {k: _dense(v) for k, v in value.items()} if isinstance(value, dict) else value


class PackedLayer(nn.Module):
    """Base of the packed layers.

    `weight` is the float weight, in `dtype`, computed from the packed one where it is needed. Moving a layer to another
    dtype changes `dtype`; packed weights stay bytes, scales and bias stay float32.
    """

    __jit_unused_properties__: tuple[str, ...] = ("weight", "bias")
    _exact: tuple[str, ...] = ("scale", "bias")

    if TYPE_CHECKING:
        dtype: torch.dtype

        @property
        def bias(self) -> Tensor | None:
            """The bias, if there is one."""

    @torch.jit.unused
    def values(self) -> Tensor:
        """Return the int8 weights, in the shape of `weight`."""
        raise NotImplementedError

    @torch.jit.unused
    def dense(self) -> Tensor:
        """Return the float weight."""
        raise NotImplementedError

    @torch.jit.unused
    def weight_shape(self) -> tuple[int, ...]:
        """Return the shape of the float weight."""
        raise NotImplementedError

    @property
    def weight(self) -> Tensor:
        """The float weight: values times scales."""
        if torch.compiler.is_compiling() or torch.jit.is_tracing():  # type: ignore[attr-defined,no-untyped-call]
            return self.dense()
        device = next(self.buffers()).device
        return TernaryView.of(self.weight_shape(), self.dtype, device, self.dense)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Move the layer; integers, scales and bias keep their dtypes."""
        before = {name: self._buffers.get(name) for name in self._exact}
        made = super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name, old in before.items():
            new = self._buffers.get(name)
            if old is not None and new is not None and new.dtype != old.dtype:
                setattr(self, name, old.to(new.device))
        self.dtype = fn(torch.empty(0, dtype=self.dtype, device="cpu")).dtype
        return made  # type: ignore[no-any-return]

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        """Check the codes of packed weights; also take the key that earlier releases wrote."""
        old, new = prefix + "weight", prefix + "packed"
        if new not in state_dict and old in state_dict:
            state_dict[new] = state_dict.pop(old)
        if isinstance(state_dict.get(new), Tensor):
            check_codes(state_dict[new], new)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


def check_codes(packed: Tensor, name: str = "weight") -> None:
    """Raise `PackedDataError` if a byte holds the 2-bit code 3, which no value has."""
    if packed.dtype == torch.uint8 and bool((packed & packed >> 1 & 0x55).any()):
        raise PackedDataError(f"{name} holds the 2-bit code 3; the codes are 0, 1 and 2. The bytes are damaged")


def keep_attributes(new: nn.Module, old: nn.Module) -> nn.Module:
    """Give a layer the public attributes of the one that it replaces, where it has none of that name."""
    for name, value in vars(old).items():
        if not name.startswith("_") and name != "training" and not hasattr(new, name):
            setattr(new, name, value)
    return new
