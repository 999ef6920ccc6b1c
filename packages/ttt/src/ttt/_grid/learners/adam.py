"""AdamW and a moving average over a net's parameters as one vector.

PyTorch's own optimizers load its compiler at their first step, which takes 150 MB.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

BETAS = (0.9, 0.98)
EPSILON = 1e-8
DECAY = 0.02
"""Weight decay per step and unit of learning rate."""
CLIP = 1.0
"""Largest norm of the gradient."""


class FlatAdam:
    """AdamW (Loshchilov & Hutter 2019) with clipped gradients, and an exponential average of the parameters.

    The net's parameters and gradients become views of two vectors, so a step is a dozen operations however many
    parameters there are. Matrices decay, vectors do not.

    Args:
        net: The net to train.
    """

    def __init__(self, net: nn.Module) -> None:
        self.steps = 0
        self.values = flatten(net)
        self.average = self.values.clone()
        self.gradient = torch.zeros_like(self.values)
        self.mean, self.square = torch.zeros_like(self.values), torch.zeros_like(self.values)
        self.shrinks = torch.cat([torch.full((p.numel(),), float(p.ndim > 1)) for p in net.parameters()])
        at = 0
        for p in net.parameters():
            p.grad = self.gradient[at : at + p.numel()].view_as(p)
            at += p.numel()

    @torch.no_grad()
    def step(self, rate: float, keep: float) -> None:
        """Take a step with the accumulated gradient, clear it, and update the average.

        Args:
            rate: Learning rate.
            keep: Share of the old average that stays.
        """
        self.steps += 1
        g = self.gradient
        g.mul_((CLIP / (g.norm() + 1e-6)).clamp_max(1.0))
        self.mean.lerp_(g, 1 - BETAS[0])
        self.square.mul_(BETAS[1]).addcmul_(g, g, value=1 - BETAS[1])
        self.values.addcmul_(self.values, self.shrinks, value=-rate * DECAY)
        scale = (self.square / (1 - BETAS[1] ** self.steps)).sqrt_().add_(EPSILON)
        self.values.addcdiv_(self.mean, scale, value=-rate / (1 - BETAS[0] ** self.steps))
        g.zero_()
        self.average.lerp_(self.values, 1 - keep)


@torch.no_grad()
def flatten(net: nn.Module) -> Tensor:
    """Move all parameters of a net into one vector, of which they become views; returns the vector."""
    values = torch.cat([p.detach().reshape(-1) for p in net.parameters()])
    at = 0
    for p in net.parameters():
        p.data = values[at : at + p.numel()].view_as(p)
        at += p.numel()
    return values
