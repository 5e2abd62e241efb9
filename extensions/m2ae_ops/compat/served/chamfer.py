"""The extension module chamfer: squared distances both ways, and their gradient. Indices are int32."""

import torch

from ... import chamfer_distance

__all__ = ["backward", "forward"]


@torch.no_grad()
def forward(xyz1: torch.Tensor, xyz2: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return dist1 (B, n), dist2 (B, m), idx1 (B, n), idx2 (B, m) of xyz1 (B, n, 3) and xyz2 (B, m, 3)."""
    dist1, dist2, idx1, idx2 = chamfer_distance(xyz1, xyz2)
    return dist1, dist2, idx1.int(), idx2.int()


@torch.no_grad()
def backward(
    xyz1: torch.Tensor,
    xyz2: torch.Tensor,
    idx1: torch.Tensor,
    idx2: torch.Tensor,
    grad_dist1: torch.Tensor,
    grad_dist2: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the gradients (B, n, 3) and (B, m, 3) in both clouds."""
    return torch.ops.m2ae.chamfer_backward(grad_dist1, grad_dist2, xyz1, xyz2, idx1.long(), idx2.long())
