"""Farthest point sampling. Shape legend: B batch, N points, S samples."""

import torch

from .checks import check_count, check_points, check_size
from .reference import sampling as reference_sampling
from .registration import register

TIE_BREAKS = ("lowest", "pointnet2")


def fps(
    points: torch.Tensor, num_samples: int, *, skip_near_origin: bool = False, tie_break: str | None = None
) -> torch.Tensor:
    """Choose points greedily, each the farthest from all chosen before it, starting with index 0.

    A longer sample begins with every shorter one (the same seed point, the same rules).

    Args:
        points: (B, N, 3), float16 and bfloat16 are computed in float32.
        num_samples: S >= 1; S > N is allowed and repeats points once all distinct ones are chosen.
        skip_near_origin: leave out points with x*x + y*y + z*z <= 1e-3, as the published CUDA kernel does; index 0 is
            chosen all the same.
        tie_break: which of several farthest points wins: "lowest" index, or "pointnet2", the reduction order of the
            published kernel. None means "pointnet2" with `skip_near_origin`, else "lowest".

    Returns:
        (B, S) int64. Points with a NaN or infinite coordinate are never chosen (index 0 excepted); with no point left
        to choose from, index 0 repeats.

    Raises:
        ValueError: wrong shape or dtype, no points, S < 1, unknown tie_break.
    """
    check_points("fps", points=points)
    check_count("fps", "num_samples", num_samples)
    check_size("fps", points.shape[0], num_samples)
    if tie_break is None:
        tie_break = "pointnet2" if skip_near_origin else "lowest"
    if tie_break not in TIE_BREAKS:
        raise ValueError(f"fps: tie_break={tie_break!r} is not one of {TIE_BREAKS}")
    return torch.ops.m2ae.fps(points, num_samples, skip_near_origin, tie_break)


def _fake(points, num_samples, skip_near_origin, tie_break):
    return points.new_empty((points.shape[0], num_samples), dtype=torch.int64)


register(
    "fps",
    "(Tensor points, int num_samples, bool skip_near_origin, str tie_break) -> Tensor",
    reference=reference_sampling.fps,
    fake=_fake,
)
