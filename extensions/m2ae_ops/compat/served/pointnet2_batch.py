"""The extension module pointnet2_batch_cuda: channel-first functions that fill tensors of the caller.

The leading counts of every call say again what the shapes say. FPS has no near-origin rule here, unlike pointnet2_ops.
Shape legend: B batch, N points, S samples or centres, K neighbours, C channels.
"""

import torch

from ... import fps
from . import pointnet2_ext as _ext

__all__ = [
    "ball_query_wrapper",
    "farthest_point_sampling_wrapper",
    "furthest_point_sampling_wrapper",
    "gather_points_grad_wrapper",
    "gather_points_wrapper",
    "group_points_grad_wrapper",
    "group_points_wrapper",
    "three_interpolate_grad_wrapper",
    "three_interpolate_wrapper",
    "three_nn_wrapper",
]


@torch.no_grad()
def ball_query_wrapper(b, n, m, radius, nsample, new_xyz, xyz, idx) -> int:
    """Fill idx (B, S, K): the first K points of xyz (B, N, 3) within the radius of new_xyz (B, S, 3)."""
    return _fill(idx, _ext.ball_query(new_xyz, xyz, radius, nsample))


@torch.no_grad()
def furthest_point_sampling_wrapper(b, n, m, points, temp, idx) -> int:
    """Fill idx (B, S) from points (B, N, 3); `temp` (B, N) is left as it is."""
    return _fill(idx, fps(points, m, tie_break="pointnet2"))


farthest_point_sampling_wrapper = furthest_point_sampling_wrapper


@torch.no_grad()
def group_points_wrapper(b, c, n, npoints, nsample, points, idx, out) -> int:
    """Fill out (B, C, S, K) with points (B, C, N) at idx (B, S, K)."""
    return _fill(out, _ext.group_points(points, idx))


@torch.no_grad()
def group_points_grad_wrapper(b, c, n, npoints, nsample, grad_out, idx, grad_points) -> int:
    """Fill grad_points (B, C, N) with the sums of grad_out (B, C, S, K)."""
    return _fill(grad_points, _ext.group_points_grad(grad_out, idx, n))


@torch.no_grad()
def gather_points_wrapper(b, c, n, npoints, points, idx, out) -> int:
    """Fill out (B, C, S) with points (B, C, N) at idx (B, S)."""
    return _fill(out, _ext.gather_points(points, idx))


@torch.no_grad()
def gather_points_grad_wrapper(b, c, n, npoints, grad_out, idx, grad_points) -> int:
    """Fill grad_points (B, C, N) with the sums of grad_out (B, C, S)."""
    return _fill(grad_points, _ext.gather_points_grad(grad_out, idx, n))


@torch.no_grad()
def three_nn_wrapper(b, n, m, unknown, known, dist2, idx) -> int:
    """Fill squared distances dist2 (B, S, 3) and idx (B, S, 3) of the nearest known points (B, N, 3)."""
    sqdist, nearest = _ext.three_nn(unknown, known)
    return _fill(dist2, sqdist) and _fill(idx, nearest)


@torch.no_grad()
def three_interpolate_wrapper(b, c, m, n, points, idx, weight, out) -> int:
    """Fill out (B, C, S) with points (B, C, N) at idx (B, S, 3), summed with weight (B, S, 3)."""
    return _fill(out, _ext.three_interpolate(points, idx, weight))


@torch.no_grad()
def three_interpolate_grad_wrapper(b, c, n, m, grad_out, idx, weight, grad_points) -> int:
    """Fill grad_points (B, C, m) with the gradient of `three_interpolate` in its points."""
    return _fill(grad_points, _ext.three_interpolate_grad(grad_out, idx, weight, m))


def _fill(target: torch.Tensor, values: torch.Tensor) -> int:
    target.copy_(values)
    return 1
