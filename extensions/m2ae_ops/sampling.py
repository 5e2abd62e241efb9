"""Farthest point sampling. Shape legend: B batch, N points, S samples."""

from collections.abc import Sequence
from typing import overload

import torch

from .private.checks import check_count, check_points, check_size
from .private.registration import register
from .reference import sampling as reference_sampling

TIE_BREAKS = ("lowest", "pointnet2")


@overload
def fps(
    points: torch.Tensor, num_samples: int, *, skip_near_origin: bool = False, tie_break: str | None = None
) -> torch.Tensor: ...


@overload
def fps(
    points: torch.Tensor, num_samples: Sequence[int], *, skip_near_origin: bool = False, tie_break: str | None = None
) -> list[torch.Tensor]: ...


def fps(points, num_samples, *, skip_near_origin=False, tie_break=None):
    """Choose points greedily, each the farthest from all chosen before it, starting with index 0.

    A longer sample begins with every shorter one (the same seed point, the same rules).

    With a list of counts, sample the points, then the chosen ones, and so on: what one call after the other gives, at the price
    of one. The sample of a sample is its beginning, `0, 1, 2, ...`, where every choice was the only farthest point and no point
    was repeated. The compiled kernel watches for that, and samples anew only the clouds in which it fails (a smaller cloud
    may prefer another of several farthest points).

    Args:
        points: (B, N, 3), float16 and bfloat16 are computed in float32.
        num_samples: S >= 1; S > N is allowed and repeats points once all distinct ones are chosen. Or S_0, S_1, ..., one for
            every scale, finest first.
        skip_near_origin: leave out points with x*x + y*y + z*z <= 1e-3, as the published CUDA kernel does; index 0 is
            chosen all the same. With several scales: among the points of each of them.
        tie_break: which of several farthest points wins: "lowest" index, or "pointnet2", the reduction order of the
            published kernel. None means "pointnet2" with `skip_near_origin`, else "lowest".

    Returns:
        (B, S) int64. Points with a NaN or infinite coordinate are never chosen (index 0 excepted); with no point left
        to choose from, index 0 repeats. With a list of counts, a list of (B, S_i): positions in the scale below, at scale 0
        in `points`.

    Raises:
        ValueError: wrong shape or dtype, no points, no count, S < 1, unknown tie_break.
    """
    check_points("fps", points=points)
    tie_break = _tie_break("fps", tie_break, skip_near_origin)
    if isinstance(num_samples, str) or not isinstance(num_samples, Sequence):
        _check_samples(points, num_samples)
        return torch.ops.m2ae.fps(points, num_samples, skip_near_origin, tie_break)
    if not len(num_samples):
        raise ValueError("fps: num_samples=[] must hold one number of at least 1 for every scale")
    for samples in num_samples:
        _check_samples(points, samples)
    return torch.ops.m2ae.fps_nested(points, list(num_samples), skip_near_origin, tie_break)


def _check_samples(points: torch.Tensor, samples: int) -> None:
    check_count("fps", "num_samples", samples)
    check_size("fps", points.shape[0], samples)


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
