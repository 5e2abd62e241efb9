"""pointnet2_ops.pointnet2_utils: functions, autograd classes and grouping modules, channel first, int32 indices.

Shape legend: B batch, N points, S samples, K neighbours, C channels.
"""

import torch
from torch import nn
from torch.autograd import Function

from ... import knn
from . import pointnet2_ext as _ext

__all__ = [
    "BallQuery",
    "FurthestPointSampling",
    "GatherOperation",
    "GroupAll",
    "GroupingOperation",
    "KNNQuery",
    "QueryAndGroup",
    "ThreeInterpolate",
    "ThreeNN",
    "ball_query",
    "furthest_point_sample",
    "gather_operation",
    "grouping_operation",
    "knn_query",
    "three_interpolate",
    "three_nn",
]


class FurthestPointSampling(Function):
    """apply(xyz (B, N, 3), npoint) -> (B, S) int32."""

    @staticmethod
    def forward(ctx, xyz, npoint):
        """Return what the replaced function returns."""
        idx = _ext.furthest_point_sampling(xyz, npoint)
        ctx.mark_non_differentiable(idx)
        return idx

    @staticmethod
    def backward(ctx, grad):
        """Return the gradients of its inputs."""
        return None, None


class GatherOperation(Function):
    """apply(features (B, C, N), idx (B, S)) -> (B, C, S)."""

    @staticmethod
    def forward(ctx, features, idx):
        """Return what the replaced function returns."""
        ctx.save_for_backward(idx)
        ctx.count = features.shape[2]
        return _ext.gather_points(features, idx)

    @staticmethod
    def backward(ctx, grad):
        """Return the gradients of its inputs."""
        (idx,) = ctx.saved_tensors
        return _ext.gather_points_grad(grad, idx, ctx.count), None


class ThreeNN(Function):
    """apply(unknown (B, S, 3), known (B, N, 3)) -> distances (B, S, 3), not squared, and int32 indices; no gradient."""

    @staticmethod
    def forward(ctx, unknown, known):
        """Return what the replaced function returns."""
        sqdist, idx = _ext.three_nn(unknown, known)
        dist = sqdist.sqrt()
        ctx.mark_non_differentiable(dist, idx)
        return dist, idx

    @staticmethod
    def backward(ctx, grad_dist, grad_idx):
        """Return the gradients of its inputs."""
        return None, None


class ThreeInterpolate(Function):
    """apply(features (B, C, N), idx (B, S, 3), weight (B, S, 3)) -> (B, C, S); gradient in the features only."""

    @staticmethod
    def forward(ctx, features, idx, weight):
        """Return what the replaced function returns."""
        ctx.save_for_backward(idx, weight)
        ctx.count = features.shape[2]
        return _ext.three_interpolate(features, idx, weight)

    @staticmethod
    def backward(ctx, grad):
        """Return the gradients of its inputs."""
        idx, weight = ctx.saved_tensors
        return _ext.three_interpolate_grad(grad, idx, weight, ctx.count), None, None


class GroupingOperation(GatherOperation):
    """apply(features (B, C, N), idx (B, S, K)) -> (B, C, S, K)."""


class BallQuery(Function):
    """apply(radius, nsample, xyz (B, N, 3), new_xyz (B, S, 3)) -> (B, S, K) int32."""

    @staticmethod
    def forward(ctx, radius, nsample, xyz, new_xyz):
        """Return what the replaced function returns."""
        idx = _ext.ball_query(new_xyz, xyz, radius, nsample)
        ctx.mark_non_differentiable(idx)
        return idx

    @staticmethod
    def backward(ctx, grad):
        """Return the gradients of its inputs."""
        return None, None, None, None


class KNNQuery(Function):
    """apply(nsample, xyz (B, N, 3), new_xyz (B, S, 3) or None) -> (B, S, K) int32, the nearest first; None: xyz itself."""

    @staticmethod
    def forward(ctx, nsample, xyz, new_xyz=None):
        """Return what the replaced function returns."""
        idx = knn(xyz if new_xyz is None else new_xyz, xyz, nsample)[1].int()
        ctx.mark_non_differentiable(idx)
        return idx

    @staticmethod
    def backward(ctx, grad):
        """Return the gradients of its inputs."""
        return None, None, None


furthest_point_sample = FurthestPointSampling.apply
gather_operation = GatherOperation.apply
three_nn = ThreeNN.apply
three_interpolate = ThreeInterpolate.apply
grouping_operation = GroupingOperation.apply
ball_query = BallQuery.apply
knn_query = KNNQuery.apply


class QueryAndGroup(nn.Module):
    """Group the points within a radius of each centre, or the nearest ones.

    Args:
        radius: of the balls; None: the K nearest points instead.
        nsample: K points a group.
        use_xyz: put the centre-relative coordinates before the features.
    """

    def __init__(self, radius=None, nsample=32, use_xyz=True):
        super().__init__()
        self.radius, self.nsample, self.use_xyz = radius, nsample, use_xyz

    def forward(
        self,
        xyz: torch.Tensor,
        new_xyz: torch.Tensor | None = None,
        features: torch.Tensor | None = None,
        idx: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Return (B, 3 + C, S, K); without use_xyz or without features less.

        Args:
            xyz: (B, N, 3).
            new_xyz: centres (B, S, 3); None: xyz.
            features: (B, C, N) or None.
            idx: groups (B, S, K) that are known already, or None.
        """
        if features is None and not self.use_xyz:
            raise ValueError(
                "QueryAndGroup: without features there is nothing to group when use_xyz=False; pass use_xyz=True"
            )
        new_xyz = xyz if new_xyz is None else new_xyz
        if idx is None:
            nearest = self.radius is None
            idx = (
                knn_query(self.nsample, xyz, new_xyz)
                if nearest
                else ball_query(self.radius, self.nsample, xyz, new_xyz)
            )
        parts = []
        if self.use_xyz:
            parts.append(grouping_operation(xyz.transpose(1, 2), idx) - new_xyz.transpose(1, 2).unsqueeze(-1))
        if features is not None:
            parts.append(grouping_operation(features, idx))
        return torch.cat(parts, dim=1)


class GroupAll(nn.Module):
    """Put all points into one group."""

    def __init__(self, use_xyz=True):
        super().__init__()
        self.use_xyz = use_xyz

    def forward(
        self, xyz: torch.Tensor, new_xyz: torch.Tensor | None, features: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Return (B, 3 + C, 1, N) of xyz (B, N, 3) and features (B, C, N); without features the coordinates alone.

        new_xyz is not used.
        """
        parts = [xyz.transpose(1, 2)] if self.use_xyz or features is None else []
        if features is not None:
            parts.append(features)
        return torch.cat(parts, dim=1).unsqueeze(2)
