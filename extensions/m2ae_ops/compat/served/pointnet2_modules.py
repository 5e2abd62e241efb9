"""pointnet2_ops.pointnet2_modules: set abstraction and feature propagation with the published parameter names.

Shape legend: B batch, N points, S samples, C channels.
"""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import nn
from torch.nn import functional as F

from . import pointnet2_utils

__all__ = ["PointnetFPModule", "PointnetSAModule", "PointnetSAModuleMSG", "build_shared_mlp"]
SMALLEST_DISTANCE = 1e-8


def build_shared_mlp(mlp_spec: Sequence[int], bn: bool = True) -> nn.Sequential:
    """Return 1x1 convolutions between the given widths, each with a batch norm, if wanted, and a ReLU."""
    layers = []
    for width, following in pairwise(mlp_spec):
        layers.append(nn.Conv2d(width, following, kernel_size=1, bias=not bn))
        if bn:
            layers.append(nn.BatchNorm2d(following))
        layers.append(nn.ReLU(True))
    return nn.Sequential(*layers)


class _PointnetSAModuleBase(nn.Module):
    """Set abstraction; a subclass fills in how many centres, how to group, and what to do with a group."""

    def __init__(self):
        super().__init__()
        self.npoint: int | None = None
        self.groupers: nn.ModuleList | None = None
        self.mlps: nn.ModuleList | None = None

    def forward(self, xyz: torch.Tensor, features: torch.Tensor | None = None):
        """Return the centres (B, S, 3), None with one group, and their features (B, C of all scales, S).

        Args:
            xyz: (B, N, 3).
            features: (B, C, N) or None.
        """
        new_xyz = None
        if self.npoint is not None:
            idx = pointnet2_utils.furthest_point_sample(xyz, self.npoint)
            new_xyz = pointnet2_utils.gather_operation(xyz.transpose(1, 2), idx).transpose(1, 2).contiguous()
        scales = []
        for grouper, mlp in zip(self.groupers, self.mlps, strict=True):
            grouped = mlp(grouper(xyz, new_xyz, features))  # (B, C, S, K)
            scales.append(grouped.amax(dim=-1))
        return new_xyz, torch.cat(scales, dim=1)


class PointnetSAModuleMSG(_PointnetSAModuleBase):
    """Set abstraction with several radii; `npoint=None` makes one group of everything.

    Args:
        npoint: S centres, by farthest point sampling.
        radii, nsamples: of each scale.
        mlps: widths of each scale, the first without the coordinates.
    """

    def __init__(self, npoint, radii, nsamples, mlps, bn=True, use_xyz=True):
        super().__init__()
        if not len(radii) == len(nsamples) == len(mlps):
            counts = f"{len(radii)} radii, {len(nsamples)} nsamples and {len(mlps)} mlps"
            raise ValueError(f"PointnetSAModuleMSG: {counts}; each scale needs one of each")
        self.npoint = npoint
        self.groupers, self.mlps = nn.ModuleList(), nn.ModuleList()
        for radius, nsample, (first, *rest) in zip(radii, nsamples, mlps, strict=True):
            grouper = (
                pointnet2_utils.GroupAll(use_xyz)
                if npoint is None
                else pointnet2_utils.QueryAndGroup(radius, nsample, use_xyz=use_xyz)
            )
            self.groupers.append(grouper)
            self.mlps.append(build_shared_mlp([first + 3 if use_xyz else first, *rest], bn))


class PointnetSAModule(PointnetSAModuleMSG):
    """Set abstraction with one radius."""

    def __init__(self, mlp, npoint=None, radius=None, nsample=None, bn=True, use_xyz=True):
        super().__init__(npoint, [radius], [nsample], [mlp], bn=bn, use_xyz=use_xyz)


class PointnetFPModule(nn.Module):
    """Feature propagation: carry features to more points by inverse distance, then a shared MLP."""

    def __init__(self, mlp, bn=True):
        super().__init__()
        self.mlp = build_shared_mlp(mlp, bn=bn)

    def forward(self, unknown, known, unknow_feats, known_feats):
        """Return (B, C, N) at `unknown` (B, N, 3).

        Args:
            known: (B, S, 3), or None to repeat the one feature everywhere.
            unknow_feats: (B, C1, N) to join, or None.
            known_feats: (B, C2, S), S = 1 with known=None.
        """
        if known is None:
            carried = known_feats.expand(*known_feats.shape[:2], unknown.shape[1])
        else:
            dist, idx = pointnet2_utils.three_nn(unknown, known)
            weight = F.normalize(1 / (dist + SMALLEST_DISTANCE), p=1, dim=2)
            carried = pointnet2_utils.three_interpolate(known_feats, idx, weight)
        parts = [carried] if unknow_feats is None else [carried, unknow_feats]
        return self.mlp(torch.cat(parts, dim=1).unsqueeze(-1)).squeeze(-1)
