"""Farthest point sampling. Shape legend: B batch, N points, S samples."""

from collections.abc import Sequence

import torch

from .private.checks import check_count, check_points, check_size
from .private.registration import register
from .reference import sampling as reference_sampling

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
    tie_break = _tie_break("fps", tie_break, skip_near_origin)
    return torch.ops.m2ae.fps(points, num_samples, skip_near_origin, tie_break)


def fps_nested(
    points: torch.Tensor, num_samples: Sequence[int], *, skip_near_origin: bool = False, tie_break: str | None = None
) -> list[torch.Tensor]:
    """Sample the points, then the chosen ones, and so on: what `fps` gives scale by scale, at the price of one.

    The sample of a sample is its beginning, `0, 1, 2, ...`, where every choice was the only farthest point and no point was
    repeated. The compiled kernel watches for that, and samples anew only the clouds in which it fails (a smaller
    cloud may prefer another of several farthest points).

    Args:
        points: (B, N, 3).
        num_samples: S_0, S_1, ... each at least 1, one for every scale, finest first.
        skip_near_origin, tie_break: as in `fps`, applied at every scale to the points of that scale.

    Returns:
        One (B, S_i) int64 for every scale: positions in the scale below, at scale 0 in `points`.

    Raises:
        ValueError: wrong shape or dtype, no points, no scale, S < 1, unknown tie_break.
    """
    check_points("fps_nested", points=points)
    num_samples = list(num_samples)
    if not num_samples:
        raise ValueError("fps_nested: num_samples=[] must hold one number of at least 1 for every scale")
    for samples in num_samples:
        check_count("fps_nested", "num_samples", samples)
        check_size("fps_nested", points.shape[0], samples)
    tie_break = _tie_break("fps_nested", tie_break, skip_near_origin)
    return torch.ops.m2ae.fps_nested(points, num_samples, skip_near_origin, tie_break)


def _tie_break(op: str, tie_break: str | None, skip_near_origin: bool) -> str:
    if tie_break is None:
        return "pointnet2" if skip_near_origin else "lowest"
    if tie_break not in TIE_BREAKS:
        raise ValueError(f"{op}: tie_break={tie_break!r} is not one of {TIE_BREAKS}")
    return tie_break


def _fake(points, num_samples, skip_near_origin, tie_break):
    return points.new_empty((points.shape[0], num_samples), dtype=torch.int64)


def _fake_nested(points, num_samples, skip_near_origin, tie_break):
    return [_fake(points, samples, skip_near_origin, tie_break) for samples in num_samples]


register(
    "fps",
    "(Tensor points, int num_samples, bool skip_near_origin, str tie_break) -> Tensor",
    reference=reference_sampling.fps,
    fake=_fake,
)
register(
    "fps_nested",
    "(Tensor points, int[] num_samples, bool skip_near_origin, str tie_break) -> Tensor[]",
    reference=reference_sampling.fps_nested,
    fake=_fake_nested,
)
