"""Chamfer distance in plain PyTorch. Shape legend: B batch, n and m points of the two clouds."""

import torch

from .distance import pairwise_chunks
from .neighbors import pair_gradients


def nearest(query: torch.Tensor, support: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return squared distance and int64 index (B, Q) of the nearest support point, lowest index first."""
    parts = [sqdist.min(-1) for _, _, sqdist in pairwise_chunks(query, support)]
    return torch.cat([part.values for part in parts], 1), torch.cat([part.indices for part in parts], 1)


def chamfer(a: torch.Tensor, b: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return (d1 (B, n), d2 (B, m), i1, i2): squared nearest distances from a to b, from b to a, and who they are."""
    d1, i1 = nearest(a, b)
    d2, i2 = nearest(b, a)
    return d1, d2, i1, i2


def chamfer_backward(
    grad1: torch.Tensor, grad2: torch.Tensor, a: torch.Tensor, b: torch.Tensor, i1: torch.Tensor, i2: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the gradients with respect to `a` and `b`, each through its own pair and through being chosen."""
    a_own, b_chosen = pair_gradients(grad1[..., None], a, b, i1[..., None])
    b_own, a_chosen = pair_gradients(grad2[..., None], b, a, i2[..., None])
    return (a_own + a_chosen).to(a.dtype), (b_own + b_chosen).to(b.dtype)
