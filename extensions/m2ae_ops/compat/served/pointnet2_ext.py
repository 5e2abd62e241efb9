"""The raw functions of pointnet2_ops._ext: channel-first layouts, int32 indices, no autograd.

Shape legend: B batch, N points, S samples, K neighbours, C channels.
"""

import torch

from ... import ball_query as find_in_ball
from ... import fps, gather
from ... import three_interpolate as interpolate
from ... import three_nn as find_three

__all__ = [
    "ball_query",
    "furthest_point_sampling",
    "gather_points",
    "gather_points_grad",
    "group_points",
    "group_points_grad",
    "three_interpolate",
    "three_interpolate_grad",
    "three_nn",
]


def furthest_point_sampling(points: torch.Tensor, nsamples: int) -> torch.Tensor:
    """Return (B, S) int32 of points (B, N, 3), with the published near-origin rule and tie order."""
    return fps(points, nsamples, skip_near_origin=True).int()


def ball_query(new_xyz: torch.Tensor, xyz: torch.Tensor, radius: float, nsample: int) -> torch.Tensor:
    """Return (B, S, K) int32: the first K points of xyz (B, N, 3) within the radius of new_xyz (B, S, 3)."""
    return find_in_ball(new_xyz, xyz, radius, nsample).int()


def gather_points(points: torch.Tensor, idx: torch.Tensor) -> torch.Tensor:
    """Return points (B, C, N) at idx: (B, C, S) for idx (B, S), (B, C, S, K) for idx (B, S, K)."""
    return _channels_first(gather(points.transpose(1, 2), idx.long()))


def gather_points_grad(grad_out: torch.Tensor, idx: torch.Tensor, n: int) -> torch.Tensor:
    """Return the sum of grad_out, (B, C, S) or (B, C, S, K), at every one of the n points, (B, C, N)."""
    sums = torch.ops.m2ae.gather_backward(grad_out.movedim(1, -1), idx.long(), n)  # (B, N, C)
    return sums.transpose(1, 2).contiguous()


# The published extension has a kernel for each; here one serves indices of any shape.
group_points, group_points_grad = gather_points, gather_points_grad


def three_nn(unknown: torch.Tensor, known: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return squared distances (B, S, 3) to the nearest known points (B, N, 3), and int32 indices."""
    sqdist, idx = find_three(unknown, known)
    return sqdist, idx.int()


def three_interpolate(points: torch.Tensor, idx: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Return (B, C, S): points (B, C, N) at idx (B, S, 3), summed with weight (B, S, 3)."""
    return _channels_first(interpolate(points.transpose(1, 2), idx.long(), weight))


def three_interpolate_grad(grad_out: torch.Tensor, idx: torch.Tensor, weight: torch.Tensor, m: int) -> torch.Tensor:
    """Return the gradient (B, C, N) of `three_interpolate` in its points, from grad_out (B, C, S)."""
    grad = grad_out.transpose(1, 2)
    values = grad.new_zeros(()).expand(
        grad.shape[0], m, grad.shape[2]
    )  # only the gradient of the weights would read it
    to_values, _ = torch.ops.m2ae.three_interpolate_backward(grad, values, idx.long(), weight)
    return to_values.transpose(1, 2).contiguous()


def _channels_first(values: torch.Tensor) -> torch.Tensor:
    return values.movedim(-1, 1).contiguous()
