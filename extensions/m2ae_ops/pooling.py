"""Pooling over the points of a cloud. Shape legend: B batch, N points, C channels."""

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .private import choice
from .private.patches import LARGEST_GROUP, group_max
from .reference import layers as reference

SMALLEST_BLOCK = 8  # points that the kernel compares at a time, from which on it pays


def peak_and_mean(x: Tensor) -> Tensor:
    """Return the maximum of (B, N, C) over the points plus their mean, (B, C).

    Of several points that hold a maximum, the first gets its gradient while training on the CPU, as with `torch.max` in the published
    programs; elsewhere they share it.

    Raises:
        ValueError: x is not (B, N, C) with at least one point.
    """
    if x.dim() != 3 or not x.shape[1]:
        raise ValueError(f"peak_and_mean: x must be (B, N, C) with N > 0, got {tuple(x.shape)}")
    if not x.requires_grad or not choice.eager_cpu(x):
        return reference.peak_and_mean(x)
    block = next(size for size in range(LARGEST_GROUP, 0, -1) if x.shape[1] % size == 0)
    return reference.peak_and_mean(x) if block < SMALLEST_BLOCK else _PeakAndMean.apply(x, block)


class _PeakAndMean(torch.autograd.Function):
    """Both at once, so that the backward pass writes the gradient of all points once."""

    @staticmethod
    def forward(ctx, x: Tensor, block: int) -> Tensor:
        B, N, C = x.shape
        values, winners = (part.view(B, N // block, C) for part in group_max(x.reshape(B * N, C), block))
        peak, best = values.max(1, keepdim=True)  # (B, 1, C)
        ctx.save_for_backward(best * block + winners.gather(1, best))
        ctx.shape = x.shape
        return peak.squeeze(1) + x.mean(1)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor):
        (winner,) = ctx.saved_tensors
        grad = grad.unsqueeze(1)  # (B, 1, C)
        return (grad / ctx.shape[1]).expand(ctx.shape).contiguous().scatter_add_(1, winner, grad), None
