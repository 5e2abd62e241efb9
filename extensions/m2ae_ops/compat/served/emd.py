"""The module emd: the auction's raw calls, which fill tensors of the caller, and the soft matching's function."""

import torch

from ... import emd as match
from .earth_mover import earth_mover_distance

__all__ = ["backward", "earth_mover_distance", "forward"]


@torch.no_grad()
def forward(xyz1: torch.Tensor, xyz2: torch.Tensor, dist: torch.Tensor, assignment: torch.Tensor, *rest) -> int:
    """Fill `dist` (B, N) with squared distances of matched pairs and `assignment` (B, N) with indices into xyz2.

    Args:
        xyz1, xyz2: (B, N, 3), any N.
        rest: the published call's ten work tensors, which are left as they are, then eps and iters.
    """
    *_, eps, iters = rest
    cost, idx = match(xyz1, xyz2, eps=float(eps), iters=int(iters))
    dist.copy_(cost)
    assignment.copy_(idx)
    return 1


@torch.no_grad()
def backward(
    xyz1: torch.Tensor, xyz2: torch.Tensor, gradxyz: torch.Tensor, graddist: torch.Tensor, assignment: torch.Tensor
) -> int:
    """Fill `gradxyz` (B, N, 3) with the gradient of the squared distances in xyz1."""
    matched = torch.ops.m2ae.gather(xyz2, assignment.long())
    gradxyz.copy_(2 * graddist.unsqueeze(-1) * (xyz1 - matched))
    return 1
