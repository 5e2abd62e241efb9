"""extensions.chamfer_dist: the Chamfer losses of published code. Shape legend: B batch, n and m points."""

import torch
from torch import nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from . import chamfer

__all__ = [
    "ChamferDistanceL1",
    "ChamferDistanceL1_PM",
    "ChamferDistanceL2",
    "ChamferDistanceL2_split",
    "ChamferFunction",
]


class ChamferFunction(Function):
    """apply(xyz1 (B, n, 3), xyz2 (B, m, 3)) -> squared distances (B, n) and (B, m)."""

    @staticmethod
    def forward(ctx, xyz1, xyz2):
        """Return what the replaced function returns."""
        dist1, dist2, idx1, idx2 = chamfer.forward(xyz1, xyz2)
        ctx.save_for_backward(xyz1, xyz2, idx1, idx2)
        return dist1, dist2

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_dist1, grad_dist2):
        """Return the gradients of its inputs."""
        return chamfer.backward(*ctx.saved_tensors, grad_dist1, grad_dist2)


class _Chamfer(nn.Module):
    """What the losses share.

    Note: `ignore_zeros`, for batches of one cloud, leaves out points at the origin, which published code uses for padding.
    Published code leaves out every point whose coordinates sum up to zero; pinned by
    `test_ignore_zeros_leaves_out_the_origin_only`.
    """

    def __init__(self, ignore_zeros=False):
        super().__init__()
        self.ignore_zeros = ignore_zeros

    def distances(self, xyz1: torch.Tensor, xyz2: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return squared distances (B, n) and (B, m)."""
        if self.ignore_zeros and xyz1.shape[0] == 1:
            xyz1, xyz2 = (xyz[:, xyz[0].any(dim=-1)] for xyz in (xyz1, xyz2))
        return ChamferFunction.apply(xyz1, xyz2)


class ChamferDistanceL2(_Chamfer):
    """Sum of the mean squared distances both ways."""

    def forward(self, xyz1: torch.Tensor, xyz2: torch.Tensor) -> torch.Tensor:
        """Return what the replaced function returns."""
        dist1, dist2 = self.distances(xyz1, xyz2)
        return dist1.mean() + dist2.mean()


class ChamferDistanceL2_split(_Chamfer):
    """Mean squared distances, one value each way."""

    def forward(self, xyz1: torch.Tensor, xyz2: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return what the replaced function returns."""
        dist1, dist2 = self.distances(xyz1, xyz2)
        return dist1.mean(), dist2.mean()


class ChamferDistanceL1(_Chamfer):
    """Half the sum of the mean distances, not squared, both ways."""

    def forward(self, xyz1: torch.Tensor, xyz2: torch.Tensor) -> torch.Tensor:
        """Return what the replaced function returns."""
        dist1, dist2 = self.distances(xyz1, xyz2)
        return (_root(dist1).mean() + _root(dist2).mean()) / 2


class ChamferDistanceL1_PM(_Chamfer):
    """Mean distance, not squared, from the first cloud to the second: partial matching."""

    def forward(self, xyz1: torch.Tensor, xyz2: torch.Tensor) -> torch.Tensor:
        """Return what the replaced function returns."""
        dist1, _ = self.distances(xyz1, xyz2)
        return _root(dist1).mean()


def _root(sqdist: torch.Tensor) -> torch.Tensor:
    """Return the square root, with gradient 0 at 0.

    Note: Published code has the gradient NaN there, as soon as one point lies on another;
    pinned by `test_coinciding_points_have_a_gradient`.
    """
    positive = sqdist > 0
    return torch.where(positive, torch.where(positive, sqdist, 1).sqrt(), 0)
