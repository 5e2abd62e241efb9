"""Grouping: centres by farthest point sampling, neighbourhoods by nearest neighbours, over several scales.

Shapes: `B` batch, `N` points, `G` groups, `K` neighbours per group, scale index 0 = finest.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from extensions import fps, gather, group, knn


class Pyramid(NamedTuple):
    """Groups of one batch at every scale; lists are indexed by scale, 0 = finest."""

    centers: list[Tensor]  # (B, G_s, 3) absolute coordinates
    idx: list[Tensor]  # (B, G_s, K_s) int64, members in the scale below; scale 0: in the points
    neighborhoods: list[Tensor]  # (B, G_s, K_s, 3) relative to the centre, not rescaled

    def to(self, device: torch.device | str) -> "Pyramid":
        return Pyramid(*([tensor.to(device) for tensor in level] for level in self))


@torch.no_grad()
def group_pyramid(points: Tensor, num_groups: Sequence[int], group_sizes: Sequence[int]) -> Pyramid:
    """Group points (B, N, 3) into patches, the patches' centres into larger patches, and so on (Zhang et al. 2022, Sec. 3.1).

    Farthest point sampling skips points within 0.0316 of the origin, as the published code does; neighbours come nearest first.

    Raises:
        ValueError: points are not (B, N, 3), or a scale has fewer members than the groups or neighbours asked of it.
    """
    if points.dim() != 3 or points.shape[-1] != 3:
        raise ValueError(f"group: points must be (B, N, 3), got {tuple(points.shape)}")
    members = points.float()
    _check_sizes(members.shape[1], num_groups, group_sizes)
    pyramid = Pyramid([], [], [])
    for chosen, size in zip(fps(members, num_groups, skip_near_origin=True), group_sizes, strict=True):
        centers = gather(members, chosen)  # (B, G, 3)
        _, idx = knn(centers, members, size)  # (B, G, K)
        pyramid.centers.append(centers)
        pyramid.idx.append(idx)
        pyramid.neighborhoods.append(group(members, centers, idx))
        members = centers
    return pyramid


def _check_sizes(members: int, num_groups: Sequence[int], group_sizes: Sequence[int]) -> None:
    """Raise a ValueError where a scale has fewer members than the groups or neighbours asked of it."""
    for scale, (groups, size) in enumerate(zip(num_groups, group_sizes, strict=True)):
        if members < max(groups, size):
            source = "points a cloud" if scale == 0 else f"centres of scale {scale - 1}"
            raise ValueError(
                f"group: scale {scale} wants {groups} groups of {size} from {members} {source}; "
                "sample more points or lower num_groups and group_sizes"
            )
        members = groups
