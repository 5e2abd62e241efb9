"""Farthest point sampling in plain PyTorch. Shape legend: B batch, N points, S samples."""

from collections.abc import Sequence

import torch

from .distance import squared_distance, to_compute
from .indexing import gather

NEAR_ORIGIN = 1e-3
"""Squared norm up to which `skip_near_origin` leaves a point out."""
START_DISTANCE = 1e10
"""Running squared distance of every point before the first sample."""


def pointnet2_order(count: int, device: torch.device | None = None) -> torch.Tensor:
    """Return the order (count,) in which the published CUDA kernel prefers points of equal distance.

    The kernel strides the points over T = min(512, 2^floor(log2 count)) threads and reduces pairwise, keeping the lower
    slot: the smallest bit-reversed (index mod T) wins, then the smallest index.
    """
    bits = min(9, count.bit_length() - 1)
    threads = 1 << bits
    index = torch.arange(count, device=device)
    slot, reversed_slot = index % threads, torch.zeros_like(index)
    for _ in range(bits):
        reversed_slot = (reversed_slot << 1) | (slot & 1)
        slot = slot >> 1
    return torch.argsort(reversed_slot * count + index)


def start(
    points: torch.Tensor, skip_near_origin: bool, tie_break: str
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return what a sample of points (B, N, 3) begins with.

    Order (N,) of preference among equally far points; the candidates (B, N, 3) in this order, so that ties go to the lowest
    position; their running distances (B, N), -1 = may not be chosen, below every distance; and whether any may be, (B,) bool.
    """
    count = points.shape[1]
    order = torch.arange(count, device=points.device)
    if tie_break == "pointnet2":
        order = pointnet2_order(count, points.device)
    candidates = points[:, order]
    x, y, z = candidates.unbind(-1)
    live = candidates.isfinite().all(-1)  # (B, N)
    if skip_near_origin:
        live = live & ((x * x + y * y) + z * z > NEAR_ORIGIN)
    running = torch.where(live, torch.full_like(x, START_DISTANCE), torch.full_like(x, -1.0))
    return order, candidates, running, live.any(-1)


def fps(points: torch.Tensor, num_samples: int, skip_near_origin: bool, tie_break: str) -> torch.Tensor:
    """Return the indices (B, S) int64 of a greedy farthest point sample that starts at point 0."""
    points = to_compute(points)
    order, candidates, running, some = start(points, skip_near_origin, tie_break)
    rows = torch.arange(points.shape[0], device=points.device)
    chosen = points.new_zeros((points.shape[0], num_samples), dtype=torch.int64)
    last = points[:, 0]  # (B, 3)
    for step in range(1, num_samples):
        sqdist = squared_distance(candidates, last[:, None])
        running = torch.where(sqdist < running, sqdist, running)
        index = torch.where(some, order[running.argmax(-1)], 0)
        chosen[:, step] = index
        last = points[rows, index]
    return chosen


def fps_nested(
    points: torch.Tensor, num_samples: Sequence[int], skip_near_origin: bool, tie_break: str
) -> list[torch.Tensor]:
    """Return the samples of every scale, each (B, S_i) int64 into the scale below.

    Calls the op of a single scale, so that a device with a kernel for that one uses it.
    """
    chosen, members = [], points
    for samples in num_samples:
        idx = torch.ops.m2ae.fps(members, samples, skip_near_origin, tie_break)
        chosen.append(idx)
        members = gather(members, idx)
    return chosen
