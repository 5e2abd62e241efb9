"""Gathering, grouping and interpolation in plain PyTorch. Shape legend: B batch, N points, G groups, K neighbours."""

import math

import torch

from .distance import to_compute


def gather(values: torch.Tensor, idx: torch.Tensor) -> torch.Tensor:
    """Return rows of `values` (B, N, C) at `idx` (B, ...) as (B, ..., C)."""
    B, _, C = values.shape
    rows = idx.reshape(B, math.prod(idx.shape[1:]), 1).expand(-1, -1, C)  # -1 would be ambiguous with no samples
    return values.gather(1, rows).view(*idx.shape, C)


def gather_backward(grad: torch.Tensor, idx: torch.Tensor, count: int) -> torch.Tensor:
    """Return the sum of `grad` (B, ..., C) per row: (B, count, C), summed in the compute precision."""
    B, C = grad.shape[0], grad.shape[-1]
    rows = idx.reshape(B, math.prod(idx.shape[1:]), 1).expand(-1, -1, C)  # -1 would be ambiguous with no samples
    flat = to_compute(grad).reshape(B, rows.shape[1], C)
    return flat.new_zeros((B, count, C)).scatter_add(1, rows, flat).to(grad.dtype)


def group(points: torch.Tensor, centers: torch.Tensor, idx: torch.Tensor) -> torch.Tensor:
    """Return neighbourhoods (B, G, K, 3) relative to their centre."""
    return gather(points, idx) - centers[:, :, None]


def three_interpolate(values: torch.Tensor, idx: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Return `(w0*v0 + w1*v1) + w2*v2` (B, N, C) of three rows of `values` (B, M, C) a point."""
    v0, v1, v2 = gather(to_compute(values), idx).unbind(2)
    w0, w1, w2 = weight.to(v0.dtype).unsqueeze(-1).unbind(2)
    return ((w0 * v0 + w1 * v1) + w2 * v2).to(values.dtype)


def three_interpolate_backward(
    grad: torch.Tensor, values: torch.Tensor, idx: torch.Tensor, weight: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the gradients of `three_interpolate` with respect to `values` and `weight`."""
    flow, v = to_compute(grad)[:, :, None], to_compute(values)  # (B, N, 1, C)
    spread = flow * weight.to(v.dtype)[..., None]  # (B, N, 3, C)
    to_weight = (flow * gather(v, idx)).sum(-1)  # (B, N, 3)
    return gather_backward(spread, idx, v.shape[1]).to(values.dtype), to_weight.to(weight.dtype)
