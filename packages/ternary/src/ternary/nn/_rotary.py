"""Positions of a sequence as rotations."""

from __future__ import annotations

import torch
from torch import Tensor


def rotary(x: Tensor, base: float = 10000.0) -> Tensor:
    """Rotate the features of each position by angles that grow with it (RoFormer; halves paired, as in Llama).

    Args:
        x: Float tensor of shape (..., T, D), D even; position t is rotated by t * base ** (-2 i / D).
        base: The base of the angles.

    Returns:
        The rotated tensor; products of two rotated ones depend on the distance of their positions.

    Example:
        >>> import torch
        >>> from ternary.nn import rotary
        >>> x = torch.randn(1, 2, 5, 8)
        >>> torch.equal(rotary(x)[:, :, 0], x[:, :, 0])
        True
    """
    half = x.shape[-1] // 2
    steps = torch.arange(half, device=x.device, dtype=torch.float32) / half
    at = torch.arange(x.shape[-2], device=x.device, dtype=torch.float32)
    angles = at.unsqueeze(1) * torch.pow(base, -steps)
    cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
    first, second = x[..., :half], x[..., half:]
    return torch.cat([first * cos - second * sin, second * cos + first * sin], -1)
