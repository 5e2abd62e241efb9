"""Grouping: centres by farthest point sampling, neighbourhoods by nearest neighbours, over several scales.

Shapes: `B` batch, `N` points, `G` groups, `K` neighbours per group, scale index 0 = finest.
"""

from collections.abc import Callable, Sequence
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
        """Return the pyramid on a device."""
        return Pyramid(*([tensor.to(device) for tensor in level] for level in self))


def group_pyramid(
    points: Tensor,
    num_groups: Sequence[int],
    group_sizes: Sequence[int],
    *,
    dtype: torch.dtype = torch.float32,
    sample: Callable[[Tensor, Sequence[int]], list[Tensor]] | None = None,
) -> Pyramid:
    """Group points (B, N, 3) into patches, the patches' centres into larger patches, and so on (Zhang et al. 2022, Sec. 3.1).

    Farthest point sampling skips points within 0.0316 of the origin, as the published code does; neighbours come nearest first.
    Which points are chosen is a constant; their coordinates are differentiable in the points.

    Args:
        dtype: float32 or float64, of all coordinates.
        sample: chooses the centres in another way, (points, counts) -> one (B, G) a scale.

    Raises:
        ValueError: points are not floating (B, N, 3) or no cloud is among them, or a scale has fewer members than the groups or
            neighbours asked of it.
    """
    _check_points(points)
    members = points.to(dtype)
    _check_sizes(members.shape[1], num_groups, group_sizes)
    pyramid = Pyramid([], [], [])
    with torch.no_grad():
        samples = fps(members, num_groups, skip_near_origin=True) if sample is None else sample(members, num_groups)
    for chosen, size in zip(samples, group_sizes, strict=True):
        centers = gather(members, chosen)  # (B, G, 3)
        with torch.no_grad():
            _, idx = knn(centers, members, size)  # (B, G, K)
        pyramid.centers.append(centers)
        pyramid.idx.append(idx)
        pyramid.neighborhoods.append(group(members, centers, idx))
        members = centers
    return pyramid


def _check_points(points: Tensor) -> None:
    """Raise a ValueError where points are no clouds of coordinates."""
    if not isinstance(points, Tensor):
        raise ValueError(f"group: points must be a tensor, got {type(points).__name__}; convert it by torch.as_tensor")
    if points.dim() != 3 or points.shape[-1] != 3:
        raise ValueError(f"group: points must be (B, N, 3), got {tuple(points.shape)}")
    if not points.is_floating_point():
        raise ValueError(f"group: points must be floating, got {points.dtype}; call .float()")
    if points.shape[0] == 0:
        raise ValueError(f"group: points holds no clouds, shape {tuple(points.shape)}; leave out empty batches")


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
