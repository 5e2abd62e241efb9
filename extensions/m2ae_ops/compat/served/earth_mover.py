"""extensions.emd.emd: the earth mover's distance of published code that stands on emd_cuda. Shape legend: B batch, n, m points."""

import torch
from torch import nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from . import emd_cuda

__all__ = ["EarthMoverDistanceFunction", "earth_mover_distance"]


class EarthMoverDistanceFunction(Function):
    """apply(xyz1 (B, n, 3), xyz2 (B, m, 3)) -> cost (B,): squared distances summed over the soft matching."""

    @staticmethod
    def forward(ctx, xyz1, xyz2):
        """Return what the replaced function returns."""
        match = emd_cuda.approxmatch_forward(xyz1, xyz2)
        ctx.save_for_backward(xyz1, xyz2, match)
        return emd_cuda.matchcost_forward(xyz1, xyz2, match)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_cost):
        """Return the gradients of its inputs."""
        return emd_cuda.matchcost_backward(grad_cost, *ctx.saved_tensors)


class _FunctionOrModule(type):
    """Let the class be called with two clouds, as the function of the same name is in some repositories."""

    def __call__(cls, *args, **kwargs):
        module = super().__call__()
        return module(*args, **kwargs) if args or kwargs else module


class earth_mover_distance(nn.Module, metaclass=_FunctionOrModule):
    """The cost (B,) of two clouds: `earth_mover_distance()(xyz1, xyz2)` and `earth_mover_distance(xyz1, xyz2)` are the same."""

    def forward(self, xyz1: torch.Tensor, xyz2: torch.Tensor, transpose: bool | None = None) -> torch.Tensor:
        """Return the cost (B,) of clouds (B, n, 3) and (B, m, 3), or (B, 3, n) and (B, 3, m); a single cloud has no B.

        Args:
            transpose: coordinates come before points; None: where the last axis is not of length 3.
        """
        clouds = [xyz.unsqueeze(0) if xyz.dim() == 2 else xyz for xyz in (xyz1, xyz2)]
        if transpose is None:
            transpose = any(xyz.shape[-1] != 3 for xyz in clouds)
        if transpose:
            clouds = [xyz.transpose(1, 2).contiguous() for xyz in clouds]
        return EarthMoverDistanceFunction.apply(*clouds)
