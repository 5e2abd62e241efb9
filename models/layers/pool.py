"""Pooling over the points of a cloud. Shapes: `B` batch, `N` points, `C` channels."""

import torch
from torch import Tensor

from extensions import group_max
from models.layers.norm import can_fuse

LARGEST_BLOCK = 255  # points that the kernel compares at a time
SMALLEST_BLOCK = 8  # from which on that pays


def peak_and_mean(x: Tensor) -> Tensor:
    """Return the maximum of (B, N, C) over the points plus their mean, (B, C).

    Note:
        Of several points that hold a maximum, the first gets its gradient while training on the CPU, as with `torch.max` in the published
        programs; elsewhere they share it (`tests/models/test_layers.py`).
    """
    block = next((size for size in range(LARGEST_BLOCK, 0, -1) if x.shape[1] % size == 0), 1)
    if block < SMALLEST_BLOCK or not x.requires_grad or not can_fuse(x):
        return x.amax(1) + x.mean(1)
    return _PeakAndMean.apply(x, block)


class _PeakAndMean(torch.autograd.Function):
    """Both at once, so that the way back writes the gradient of all points once."""

    @staticmethod
    def forward(ctx, x: Tensor, block: int) -> Tensor:
        B, N, C = x.shape
        values, winners = (part.view(B, N // block, C) for part in group_max(x.reshape(B * N, C), block))
        peak, best = values.max(1, keepdim=True)  # (B, 1, C)
        ctx.save_for_backward(best * block + winners.gather(1, best))
        ctx.shape = x.shape
        return peak.squeeze(1) + x.mean(1)

    @staticmethod
    def backward(ctx, grad: Tensor):
        (winner,) = ctx.saved_tensors
        grad = grad.unsqueeze(1)  # (B, 1, C)
        return (grad / ctx.shape[1]).expand(ctx.shape).contiguous().scatter_add_(1, winner, grad), None
