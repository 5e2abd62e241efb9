"""Transforms that bring own clouds to what the models expect: `m2ae.transforms`. None changes its input.

Legend: B batch, N points.

    >>> points = transforms.sample(transforms.scale(transforms.turn_up(points, "z")), 2048)
"""

import torch
from torch import Tensor

from datasets.formats.points import upright
from datasets.transforms import normalize_unit_sphere, sample_points
from tools.sampling import farthest

__all__ = ["centre", "sample", "scale", "turn_up"]


def centre(points: Tensor) -> Tensor:
    """Move the mean of each cloud (B, N, 3) to the origin."""
    points = _checked("centre", points)
    # In double precision: coordinates of maps are large, and single precision would round their differences.
    return (points.double() - points.double().mean(dim=1, keepdim=True)).to(points.dtype)


def scale(points: Tensor) -> Tensor:
    """Centre each cloud (B, N, 3) and scale it to the unit sphere, as all sets but ScanObjectNN are; equal points become zeros."""
    return normalize_unit_sphere(centre(points))


def sample(points: Tensor, count: int, *, generator: torch.Generator | None = None) -> Tensor:
    """Take `count` points of each cloud (B, N, 3): drawn with a generator, else by farthest point sampling.

    Raises:
        ValueError: fewer than `count` points.
    """
    points = _checked("sample", points)
    if not 0 < count <= points.shape[1]:
        raise ValueError(f"sample: count {count} of {points.shape[1]} points; choose 1 to {points.shape[1]}")
    return farthest(points, count) if generator is None else sample_points(points, count, generator=generator)


def turn_up(points: Tensor, axis: str) -> Tensor:
    """Turn clouds (B, N, 3) so that their axis `axis` ("x" | "y" | "z") becomes y, which is up in all sets here.

    Raises:
        ValueError: no such axis.
    """
    points = _checked("turn_up", points)
    if axis not in ("x", "y", "z"):
        raise ValueError(f"turn_up: axis {axis!r} is unknown; choose x, y or z")
    turned = upright(points.detach().cpu().reshape(-1, 3).numpy(), axis)
    return torch.from_numpy(turned).to(points).view_as(points)


def _checked(who: str, points: Tensor) -> Tensor:
    if points.dim() != 3 or points.shape[2] != 3 or not points.is_floating_point() or not points.shape[1]:
        raise ValueError(
            f"{who}: points must be (B, N, 3) of floating point with N > 0, got {tuple(points.shape)} {points.dtype}"
        )
    return points
