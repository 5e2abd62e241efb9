"""chamfer3D.dist_chamfer_3D: the Chamfer distance as a module. Shape legend: B batch, n and m points."""

import torch
from torch import nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from . import chamfer

__all__ = ["chamfer_3DDist", "chamfer_3DFunction"]


class chamfer_3DFunction(Function):
    """apply(xyz1 (B, n, 3), xyz2 (B, m, 3)) -> squared distances (B, n), (B, m), int32 indices (B, n), (B, m)."""

    @staticmethod
    def forward(ctx, xyz1, xyz2):
        """Return what the replaced function returns."""
        dist1, dist2, idx1, idx2 = chamfer.forward(xyz1, xyz2)
        ctx.save_for_backward(xyz1, xyz2, idx1, idx2)
        ctx.mark_non_differentiable(idx1, idx2)
        return dist1, dist2, idx1, idx2

    @staticmethod
    @once_differentiable
    def backward(ctx, graddist1, graddist2, gradidx1, gradidx2):
        """Return the gradients of its inputs."""
        return chamfer.backward(*ctx.saved_tensors, graddist1, graddist2)


class chamfer_3DDist(nn.Module):
    """Nearest neighbours both ways."""

    def forward(
        self, input1: torch.Tensor, input2: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return squared distances (B, n), (B, m) and int32 indices (B, n), (B, m) of clouds (B, n, 3), (B, m, 3)."""
        return chamfer_3DFunction.apply(input1.contiguous(), input2.contiguous())
