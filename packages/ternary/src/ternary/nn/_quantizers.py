"""The published recipes for rounding weights to -1, 0, +1 and a scale, as plain functions.

Every function takes a float tensor of shape (outputs, ...) and returns values in {-1, 0, +1} of the same shape and
dtype, with scales that broadcast against them: shape (outputs, 1, ...) per channel, (1, 1, ...) per tensor. A channel
that is all zero gets values and a scale of zero, never a division by zero. All of it also compiles with TorchScript.

`ternarize` also takes groups of inputs: the same functions on rows that are one group long.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ternary.errors import NonFiniteWeightError


def rows_of(weight: Tensor, per_channel: bool) -> Tensor:
    """View a weight as (channels, elements), or (1, all elements) for one scale per tensor."""
    return weight.flatten(1) if per_channel and weight.dim() > 1 else weight.reshape(1, -1)


def scale_like(scale: Tensor, weight: Tensor) -> Tensor:
    """Shape one value per row so that it broadcasts against the weight."""
    shape = [1] * weight.dim()
    shape[0] = scale.numel()
    return scale.reshape(shape)


def mean_of_kept(rows: Tensor, kept: Tensor) -> Tensor:
    """Return the mean magnitude of the kept elements of each row, 0 where nothing is kept."""
    count = kept.sum(1)
    return (rows.abs() * kept).sum(1) / count.clamp(min=1.0)


def thresholded(weight: Tensor, threshold: Tensor, per_channel: bool) -> tuple[Tensor, Tensor]:
    """Keep what is strictly above a threshold of shape (rows,); the scale is the mean magnitude of the kept."""
    rows = rows_of(weight, per_channel)
    kept = (rows.abs() > threshold.unsqueeze(1)).to(weight.dtype)
    values = torch.sign(rows) * kept
    return values.reshape(weight.shape), scale_like(mean_of_kept(rows, kept), weight)


def twn(weight: Tensor, per_channel: bool = True, threshold: float = 0.7) -> tuple[Tensor, Tensor]:
    """Ternary weight networks: threshold at 0.7 times the mean magnitude (Li and Liu, 2016).

    Args:
        weight: Float tensor of shape (outputs, ...).
        per_channel: One scale per output channel instead of one per tensor.
        threshold: The factor of the mean magnitude.

    Returns:
        Values in {-1, 0, +1} and scales.

    Example:
        >>> import torch
        >>> from ternary.nn import twn
        >>> values, scale = twn(torch.tensor([[0.9, -1.1, 0.1]]))
        >>> values.tolist(), scale.tolist()
        ([[1.0, -1.0, 0.0]], [[1.0]])
    """
    return thresholded(weight, threshold * rows_of(weight, per_channel).abs().mean(1), per_channel)


def fixed(weight: Tensor, per_channel: bool = True, threshold: float = 0.7) -> tuple[Tensor, Tensor]:
    """Keep weights whose magnitude is strictly above a given absolute threshold.

    Example:
        >>> import torch
        >>> from ternary.nn import fixed
        >>> fixed(torch.tensor([[0.9, -0.3]]), threshold=0.5)[0].tolist()
        [[1.0, -0.0]]
    """
    rows = rows_of(weight, per_channel)
    return thresholded(weight, torch.full_like(rows[:, 0], threshold), per_channel)


def ttq_values(weight: Tensor, per_channel: bool = True, threshold: float = 0.05) -> Tensor:
    """Trained ternary quantization: threshold at a fraction of the largest magnitude (Zhu et al., 2017)."""
    rows = rows_of(weight, per_channel)
    values, _ = thresholded(weight, threshold * rows.abs().amax(1), per_channel)
    return values


def absmean(weight: Tensor, per_channel: bool = True) -> tuple[Tensor, Tensor]:
    """BitNet b1.58: divide by the mean magnitude, round half to even, clip to -1 ... 1 (Ma et al., 2024).

    Example:
        >>> import torch
        >>> from ternary.nn import absmean
        >>> absmean(torch.tensor([[2.0, -1.0, 0.0]]))[0].tolist()
        [[1.0, -1.0, 0.0]]
    """
    rows = rows_of(weight, per_channel)
    scale = rows.abs().mean(1)
    safe = torch.where(scale > 0, scale, torch.ones_like(scale)).unsqueeze(1)
    return (rows / safe).round().clamp(-1.0, 1.0).reshape(weight.shape), scale_like(scale, weight)


def stochastic(weight: Tensor, per_channel: bool = True) -> tuple[Tensor, Tensor]:
    """Round to a neighbour with probability by distance: right on average. Uses torch's default generator.

    Example:
        >>> import torch
        >>> from ternary.nn import stochastic
        >>> set(stochastic(torch.randn(8, 8))[0].abs().flatten().tolist()) <= {0.0, 1.0}
        True
    """
    rows = rows_of(weight, per_channel)
    scale = rows.abs().mean(1)
    safe = torch.where(scale > 0, scale, torch.ones_like(scale)).unsqueeze(1)
    scaled = (rows / safe).clamp(-1.0, 1.0)
    kept = (torch.rand_like(scaled) < scaled.abs()).to(weight.dtype)
    return (torch.sign(scaled) * kept).reshape(weight.shape), scale_like(scale, weight)


def sparse(weight: Tensor, per_channel: bool = True, sparsity: float = 0.5) -> tuple[Tensor, Tensor]:
    """Set the given fraction of each row, its smallest magnitudes, to zero (more where magnitudes are equal).

    Example:
        >>> import torch
        >>> from ternary.nn import sparse
        >>> sparse(torch.tensor([[4.0, -3.0, 2.0, 1.0]]), sparsity=0.5)[0].tolist()
        [[1.0, -1.0, 0.0, 0.0]]
    """
    rows = rows_of(weight, per_channel)
    zeros = int(sparsity * rows.shape[1])
    if zeros == 0:
        return thresholded(weight, torch.full_like(rows[:, 0], 0.0), per_channel)
    return thresholded(weight, rows.abs().kthvalue(zeros, dim=1)[0], per_channel)


def exact(weight: Tensor, per_channel: bool = True) -> tuple[Tensor, Tensor]:
    """Take a weight that is ternary already apart: its signs, and per row its largest magnitude as the scale."""
    return torch.sign(weight), scale_like(rows_of(weight, per_channel).abs().amax(1), weight)


def ternarize(
    weight: Tensor,
    quantizer: str = "twn",
    per_channel: bool = True,
    threshold: float = 0.7,
    sparsity: float = 0.5,
    group: int = 0,
) -> tuple[Tensor, Tensor]:
    """Apply a quantizer by name; the values and one symmetric scale.

    Args:
        weight: Float tensor of shape (outputs, ...), not empty.
        quantizer: One of `QUANTIZERS`; 'ttq' returns its starting point, values with symmetric scales.
        per_channel: One scale per output channel instead of one per tensor.
        threshold: For 'twn' the factor of the mean magnitude, for 'fixed' the magnitude itself.
        sparsity: For 'sparse', the fraction of zeros.
        group: One scale per output and `group` inputs of a weight (outputs, inputs), 0 for none; the last group has
            the inputs that are left over. `spread` brings the scales to the shape of the weight.

    Returns:
        Values in {-1, 0, +1} and scales; with groups the scales have the shape (outputs, groups).

    Example:
        >>> import torch
        >>> from ternary.nn import ternarize
        >>> values, scale = ternarize(torch.randn(8, 16), "absmean", per_channel=False)
        >>> scale.shape, ternarize(torch.randn(8, 16), group=6)[1].shape
        (torch.Size([1, 1]), torch.Size([8, 3]))
    """
    if group <= 0 or weight.dim() != 2 or group >= weight.shape[1]:
        return _by_name(weight, quantizer, per_channel or group > 0, threshold, sparsity)
    whole = weight.shape[1] // group
    rows = weight[:, : whole * group].reshape(-1, group)
    values, scale = _by_name(rows, quantizer, True, threshold, sparsity)
    values, scale = values.reshape(weight.shape[0], whole * group), scale.reshape(weight.shape[0], whole)
    if whole * group == weight.shape[1]:
        return values, scale
    last_values, last_scale = _by_name(weight[:, whole * group :], quantizer, True, threshold, sparsity)
    return torch.cat([values, last_values], 1), torch.cat([scale, last_scale], 1)


def spread(scale: Tensor, columns: int, group: int) -> Tensor:
    """Repeat scales of shape (outputs, groups) for each of their inputs: (outputs, columns)."""
    return scale.repeat_interleave(group, dim=1)[:, :columns]


def _by_name(
    weight: Tensor, quantizer: str, per_channel: bool, threshold: float, sparsity: float
) -> tuple[Tensor, Tensor]:
    if quantizer == "twn":
        return twn(weight, per_channel, threshold)
    if quantizer == "fixed":
        return fixed(weight, per_channel, threshold)
    if quantizer == "absmean":
        return absmean(weight, per_channel)
    if quantizer == "stochastic":
        return stochastic(weight, per_channel)
    if quantizer == "exact":
        return exact(weight, per_channel)
    if quantizer == "sparse":
        return sparse(weight, per_channel, sparsity)
    values = ttq_values(weight, per_channel)
    return values, scale_like(mean_of_kept(rows_of(weight, per_channel), rows_of(values.abs(), per_channel)), weight)


def straight_through(weight: Tensor, quantized: Tensor, limit: Tensor) -> Tensor:
    """Return `quantized`, with the gradient of `weight` where its magnitude is at most `limit` (clipped STE).

    Bengio et al., 2013; the clip keeps weights from drifting away where rounding no longer changes.
    """
    inside = torch.minimum(torch.maximum(weight, -limit), limit)
    return quantized.detach() + (inside - inside.detach())


def fake_int8(x: Tensor, per_sample: bool = False) -> Tensor:
    """Round activations to 8 bits with one scale per token (last dimension) or per sample, gradient straight through.

    Args:
        x: Float tensor; the scale is its largest magnitude over 127, and values are clamped to -127 ... 127.
        per_sample: One scale per first dimension, as convolutions need.

    Returns:
        The rounded activations in the dtype of `x`.

    Example:
        >>> import torch
        >>> from ternary.nn import fake_int8
        >>> fake_int8(torch.tensor([127.0, 0.4])).tolist()
        [127.0, 0.0]
    """
    dims = list(range(1, x.dim())) if per_sample else [-1]
    scale = x.detach().abs().amax(dims, keepdim=True).clamp(min=1e-8) / 127.0
    rounded = (x.detach() / scale).round().clamp(-127.0, 127.0) * scale
    return rounded + (x - x.detach())


def require_finite(weight: Tensor, name: str = "weight") -> None:
    """Raise `NonFiniteWeightError` with the first bad place if a weight is NaN or infinite."""
    bad = ~torch.isfinite(weight)
    if bool(bad.any()):
        place = tuple(int(i) for i in bad.nonzero()[0])
        message = f"{name} holds {int(bad.sum())} values that are NaN or infinite, the first at {place}"
        raise NonFiniteWeightError(f"{message}; they have no ternary value")
