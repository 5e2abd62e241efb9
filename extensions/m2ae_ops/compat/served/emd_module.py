"""emd_module: the auction of published code as a module. Shape legend: B batch, N points of either cloud."""

import torch
from torch import nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from . import emd

__all__ = ["emdFunction", "emdModule"]


class emdFunction(Function):
    """apply(xyz1, xyz2, eps, iters) -> dist (B, N), assignment (B, N) int32; gradient in xyz1 only, as published."""

    @staticmethod
    def forward(ctx, xyz1, xyz2, eps, iters):
        """Return what the replaced function returns."""
        dist = torch.empty(xyz1.shape[:2], device=xyz1.device)
        assignment = torch.empty(xyz1.shape[:2], dtype=torch.int32, device=xyz1.device)
        emd.forward(xyz1, xyz2, dist, assignment, eps, iters)
        ctx.save_for_backward(xyz1, xyz2, assignment)
        ctx.mark_non_differentiable(assignment)
        return dist, assignment

    @staticmethod
    @once_differentiable
    def backward(ctx, graddist, gradidx):
        """Return the gradients of its inputs."""
        xyz1, xyz2, assignment = ctx.saved_tensors
        gradxyz = torch.empty_like(xyz1)
        emd.backward(xyz1, xyz2, gradxyz, graddist, assignment)
        return gradxyz, None, None, None


class emdModule(nn.Module):
    """Match two clouds of equal size by an auction.

    Any number of points is accepted. The squared distances are those of the matching that was found; see the op `emd`.
    """

    def forward(
        self, input1: torch.Tensor, input2: torch.Tensor, eps: float, iters: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return squared distances (B, N) of the pairs and the index (B, N) int32 into input2 of each point of input1."""
        return emdFunction.apply(input1, input2, eps, iters)
