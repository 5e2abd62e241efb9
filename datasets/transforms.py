"""Batched transforms of point clouds, on the device of their input, never in place.

Legend: B batch, N points. Random numbers are drawn on the device of `generator` (the CPU for training, so that CPU and
GPU runs see the same numbers) and moved to the device of `points`.
"""

import math

import torch
from torch import Tensor

from utils.device import send
from utils.dist import rank, world_size

AXES = {"x": 0, "y": 1, "z": 2}
SCALE_RANGE = (2.0 / 3.0, 3.0 / 2.0)
SMALL_SCALE_RANGE = (0.9, 1.1)
OFFSET_RANGE = (-0.2, 0.2)
# Of scenes in metres.
SCENE_SCALE_RANGE = (0.8, 1.2)
SCENE_TURN = math.pi / 36
# Of part segmentation: one factor a cloud, and smaller shifts.
UNIFORM_SCALE_RANGE = (0.8, 1.25)
UNIFORM_OFFSET_RANGE = (-0.1, 0.1)


def draw_seeds(count: int, *, generator: torch.Generator) -> Tensor:
    """Draw one sampling seed a cloud, (count,) int64, so that each rank only expands the seeds of its own slice."""
    return torch.randint(2**62, (count,), generator=generator, device=generator.device)


def sample_indices(seeds: Tensor, total: int, count: int) -> Tensor:
    """Choose `count` of `total` points without replacement, in random order, one choice a seed: (B, count) int64, CPU.

    Note: one `randperm` a cloud beats batched sorting of random keys three- to tenfold (5 ms for 128 x 2048 of 8192).
    """
    if not 0 < count <= total:
        raise ValueError(f"sample_indices: count={count} of {total} points; choose 1 to {total}")
    generator = torch.Generator()
    rows = [torch.randperm(total, generator=generator.manual_seed(seed))[:count] for seed in seeds.tolist()]
    return torch.stack(rows) if rows else torch.empty(0, count, dtype=torch.int64)


def sample_with_replacement(seeds: Tensor, totals: Tensor, count: int) -> Tensor:
    """Choose `count` of the first totals[i] points with replacement, one choice a seed: (B, count) int64, CPU."""
    generator = torch.Generator()
    rows = [
        torch.randint(total, (count,), generator=generator.manual_seed(seed))
        for seed, total in zip(seeds.tolist(), totals.tolist(), strict=True)
    ]
    return torch.stack(rows) if rows else torch.empty(0, count, dtype=torch.int64)


def sample_scenes(seeds: Tensor, totals: Tensor, count: int) -> Tensor:
    """Choose `count` of the first totals[i] points, one choice a seed: (B, count) int64, CPU; none twice where there are as many."""
    rows = []
    for seed, total in zip(seeds.split(1), totals.split(1), strict=True):
        whole = total.item() >= count
        rows.append(sample_indices(seed, total.item(), count) if whole else sample_with_replacement(seed, total, count))
    return torch.cat(rows) if rows else torch.empty(0, count, dtype=torch.int64)


def sample_points(points: Tensor, count: int, *, generator: torch.Generator) -> Tensor:
    """Take `count` points of each cloud without replacement, in random order: (B, N, 3) -> (B, count, 3)."""
    B, N, C = points.shape
    idx = send(sample_indices(draw_seeds(B, generator=generator), N, count), points.device)
    return points.gather(1, idx[:, :, None].expand(-1, -1, C))


def normalize_unit_sphere(points: Tensor) -> Tensor:
    """Move the mean of each cloud to the origin and divide by the largest norm; equal points become zeros."""
    centred = points - points.mean(dim=1, keepdim=True)
    largest = centred.square().sum(dim=2).amax(dim=1).sqrt()[:, None, None]  # (B, 1, 1)
    # The mean of equal numbers may be off by rounding: what is left then is noise and must not be blown up.
    extent = points.abs().amax(dim=(1, 2))[:, None, None]
    flat = largest <= extent * 8 * torch.finfo(points.dtype).eps
    return torch.where(flat, torch.zeros_like(centred), centred / torch.where(flat, torch.ones_like(largest), largest))


def scale_translate(
    points: Tensor,
    *,
    generator: torch.Generator | None = None,
    scale: Tensor | None = None,
    offset: Tensor | None = None,
) -> Tensor:
    """Scale each cloud along each axis by U[2/3, 3/2], then shift it by U[-0.2, 0.2] along each axis.

    Given `scale` and `offset`, both (B, 3), nothing is drawn. Published order of the draws: the three factors, then the
    three offsets, cloud by cloud; a (B, 2, 3) draw has that order.
    """
    B = points.shape[0]
    if (scale is None) != (offset is None):
        raise ValueError("scale_translate: give both scale and offset, or neither")
    if scale is None:
        scale, offset = draw_scale_offset(B, generator=generator)
    scale, offset = (send(values, points.device, points.dtype) for values in (scale, offset))
    return points * scale[:, None] + offset[:, None]


def draw_scale_offset(count: int, *, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
    """Draw the factors and offsets of `scale_translate` for `count` clouds, each (count, 3)."""
    drawn = _uniform((count, 2, 3), generator)
    scale = SCALE_RANGE[0] + (SCALE_RANGE[1] - SCALE_RANGE[0]) * drawn[:, 0]
    return scale, OFFSET_RANGE[0] + (OFFSET_RANGE[1] - OFFSET_RANGE[0]) * drawn[:, 1]


def draw_uniform_scale_offset(count: int, *, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
    """Draw what part segmentation gives to `scale_translate`, each (count, 3): one factor for all axes, and an offset.

    Published order of the draws: the factors of all clouds, then the offsets of all clouds.
    """
    drawn = _uniform((count * 4,), generator)
    scale = UNIFORM_SCALE_RANGE[0] + (UNIFORM_SCALE_RANGE[1] - UNIFORM_SCALE_RANGE[0]) * drawn[:count]
    offset = UNIFORM_OFFSET_RANGE[0] + (UNIFORM_OFFSET_RANGE[1] - UNIFORM_OFFSET_RANGE[0]) * drawn[count:]
    return scale[:, None].expand(-1, 3), offset.view(count, 3)


def draw_scale(count: int, bounds: tuple[float, float], *, generator: torch.Generator | None) -> Tensor:
    """Draw factors for `scale_translate` within `bounds`, one an axis: (count, 3)."""
    return bounds[0] + (bounds[1] - bounds[0]) * _uniform((count, 3), generator)


def draw_angle(count: int, *, generator: torch.Generator | None) -> Tensor:
    """Draw the angles of `rotate` for `count` clouds: (count,) radians in [0, 2 pi)."""
    return 2 * torch.pi * _uniform((count,), generator)


def rotate(
    points: Tensor, *, axis: str, generator: torch.Generator | None = None, angle: Tensor | None = None
) -> Tensor:
    """Rotate each cloud about `axis` ("x" | "y" | "z") by `angle` (B,) in radians, drawn from U[0, 2 pi) if not given.

    Right-handed: a quarter turn about z takes x to y, about y takes z to x, about x takes y to z.
    """
    if axis not in AXES:
        raise ValueError(f"rotate: axis {axis!r} is unknown; choose one of {', '.join(AXES)}")
    if angle is None:
        angle = draw_angle(points.shape[0], generator=generator)
    angle = send(angle, points.device, points.dtype)[:, None]
    first, second = (AXES[axis] + 1) % 3, (AXES[axis] + 2) % 3
    a, b = points[..., first], points[..., second]
    turned = points.clone()
    turned[..., first] = a * angle.cos() - b * angle.sin()
    turned[..., second] = a * angle.sin() + b * angle.cos()
    return turned


def _uniform(shape: tuple[int, ...], generator: torch.Generator | None) -> Tensor:
    if generator is None:
        raise ValueError("transforms: a random transform needs a generator, or its values given")
    return torch.rand(shape, generator=generator, device=generator.device)


def flip_turn_scale(points: Tensor, drawn: Tensor, up_axis: str) -> Tensor:
    """Mirror each cloud along either horizontal axis, turn it by up to 5 degrees about the up axis, scale it by 0.8 to 1.2.

    Args:
        drawn: (B, 4) of [0, 1): two mirrors, the turn, the scale.
    """
    signs = torch.ones(len(points), 1, 3, dtype=points.dtype)
    for number, axis in enumerate(axis for name, axis in AXES.items() if name != up_axis):
        signs[:, 0, axis] = torch.where(drawn[:, number] > 0.5, -1.0, 1.0)
    low, high = SCENE_SCALE_RANGE
    signs = signs * (low + (high - low) * drawn[:, 3])[:, None, None]
    return rotate(points * send(signs, points.device), axis=up_axis, angle=SCENE_TURN * (2 * drawn[:, 2] - 1))


DRAWS = {
    "scale_translate": draw_scale_offset,
    "scale_translate_rotate": draw_scale_offset,
    "uniform_scale_translate": draw_uniform_scale_offset,
}


def augment(points: Tensor, kind: str, up_axis: str, generator: torch.Generator, *, shared: bool = True) -> Tensor:
    """Augment this process's part (B, N, 3) of a batch.

    Args:
        kind: "scale_translate"; "scale_translate_rotate": the same, then "rotate", as published for PCP-MAE;
            "uniform_scale_translate" (of part segmentation); "rotate" each cloud about the up axis; "batch_rotate": scale each cloud a
            little, then rotate the whole batch by one angle, as published for I2P-MAE on ScanObjectNN; "scale_rotate": the same with an
            angle a cloud; "scene": mirrors, a small turn and one factor for all axes, which keeps distances in a scene comparable; "none".

    Every process draws the same numbers for the global batch, of which each holds B, and keeps its own rows. Not
    `shared` is a batch that this process has to itself.
    """
    B = len(points)
    processes, place = (world_size(), rank()) if shared else (1, 0)
    own = slice(B * place, B * (place + 1))
    if kind in DRAWS:
        scale, offset = DRAWS[kind](B * processes, generator=generator)
        points = scale_translate(points, scale=scale[own], offset=offset[own])
        kind = "rotate" if kind == "scale_translate_rotate" else "none"
    if kind == "rotate":
        return rotate(points, axis=up_axis, angle=draw_angle(B * processes, generator=generator)[own])
    if kind in ("batch_rotate", "scale_rotate"):
        scale = draw_scale(B * processes, SMALL_SCALE_RANGE, generator=generator)[own]
        angle = draw_angle(1 if kind == "batch_rotate" else B * processes, generator=generator)
        angle = angle.expand(B) if kind == "batch_rotate" else angle[own]
        return rotate(scale_translate(points, scale=scale, offset=torch.zeros_like(scale)), axis=up_axis, angle=angle)
    if kind == "scene":
        return flip_turn_scale(points, _uniform((B * processes, 4), generator)[own], up_axis)
    return points
