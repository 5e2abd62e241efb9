"""The extension module emd_cuda: soft matching of two clouds, its cost, and the gradient, in plain PyTorch.

The matching is the approximation of Fan, Su and Guibas (A Point Set Generation Network, 2017): from near to far, every point
spreads what is left of its mass over the points of the other cloud by exp(-4^j d), d the squared distance, j from 7 down to -1
and at last evenly. Shape legend: B batch, n and m points.
"""

import torch

__all__ = ["approxmatch_forward", "matchcost_backward", "matchcost_forward"]
SHARPNESS = (*(-(4.0**j) for j in range(7, -2, -1)), 0.0)
SMALLEST_SUM = 1e-9


@torch.no_grad()
def approxmatch_forward(xyz1: torch.Tensor, xyz2: torch.Tensor) -> torch.Tensor:
    """Return the mass (B, m, n) that each point of xyz2 (B, m, 3) shares with each of xyz1 (B, n, 3).

    A point of the larger cloud has mass 1; those of the smaller one share the same total evenly.
    """
    sqdist = _squared_distances(xyz1, xyz2)  # (B, m, n)
    m, n = sqdist.shape[1:]
    left1 = sqdist.new_full((sqdist.shape[0], 1, n), max(m, n) / n)
    left2 = sqdist.new_full((sqdist.shape[0], m, 1), max(m, n) / m)
    match = torch.zeros_like(sqdist)
    for sharpness in SHARPNESS:
        near = (sharpness * sqdist).exp()
        offered = near * left2
        offered *= left1 / (offered.sum(1, keepdim=True) + SMALLEST_SUM)
        taken = offered.sum(2, keepdim=True)
        offered *= (left2 / (taken + SMALLEST_SUM)).clamp(max=1)
        match += offered
        left1 = (left1 - offered.sum(1, keepdim=True)).clamp(min=0)
        left2 = (left2 - taken).clamp(min=0)
    return match


@torch.no_grad()
def matchcost_forward(xyz1: torch.Tensor, xyz2: torch.Tensor, match: torch.Tensor) -> torch.Tensor:
    """Return the sum (B,) of squared distances, weighted with the shared mass."""
    return (_squared_distances(xyz1, xyz2) * match).sum((1, 2))


@torch.no_grad()
def matchcost_backward(
    grad_cost: torch.Tensor, xyz1: torch.Tensor, xyz2: torch.Tensor, match: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the gradients (B, n, 3) and (B, m, 3) of the cost, with the matching held fixed, from grad_cost (B,)."""
    scale = 2 * grad_cost[:, None, None]
    to_first = xyz1 * match.sum(1).unsqueeze(-1) - match.transpose(1, 2) @ xyz2
    to_second = xyz2 * match.sum(2).unsqueeze(-1) - match @ xyz1
    return scale * to_first, scale * to_second


def _squared_distances(xyz1: torch.Tensor, xyz2: torch.Tensor) -> torch.Tensor:
    """Return (B, m, n)."""
    if xyz1.dim() != 3 or xyz2.dim() != 3 or xyz1.shape[2] != 3 or xyz2.shape[2] != 3 or len(xyz1) != len(xyz2):
        shapes = f"{tuple(xyz1.shape)} and {tuple(xyz2.shape)}"
        raise ValueError(f"emd_cuda: clouds {shapes} must be (B, n, 3) and (B, m, 3)")
    return torch.cdist(xyz2, xyz1, compute_mode="donot_use_mm_for_euclid_dist").square()
