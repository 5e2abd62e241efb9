"""Point-JEPA's transforms of clouds, each drawn once and the same for a whole batch, as published, or once a cloud.

Shapes: `B` batch, `N` points.
"""

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from extensions import fps, gather
from utils.device import send
from utils.dist import rank, world_size

AXES = 3


@dataclass
class TransformKeys:
    """Keys of what is done to clouds, in training and in evaluation; names and defaults as published for pre-training."""

    train_transformations: list[str] = field(
        default_factory=lambda: ["subsample", "scale", "center", "unit_sphere", "rotate"]
    )
    val_transformations: list[str] = field(default_factory=lambda: ["subsample", "center", "unit_sphere"])
    transformation_subsample_points: int = 1024  # by farthest point sampling; clouds that have fewer stay as they are
    transformation_scale_min: float = 0.8
    transformation_scale_max: float = 1.2
    transformation_scale_symmetries: list[int] = field(default_factory=lambda: [0, 0, 0])  # axes that may be mirrored
    transformation_rotate_dims: list[int] = field(default_factory=lambda: [1])  # axes to turn about
    transformation_rotate_degs: int | None = None  # turn by a multiple of these degrees only
    transformation_translate: float = 0.2  # largest shift along each axis
    transformation_height_normalize_dim: int = 1
    transformation_per_cloud: bool = False  # draw for every cloud; published: once, for the whole batch

    def check_transforms(self) -> None:
        """Raise a ValueError that names a key with a bad value, and what is possible."""
        for key in ("train_transformations", "val_transformations"):
            unknown = [name for name in getattr(self, key) if name not in TRANSFORMS]
            if unknown:
                raise ValueError(f"model.{key}: {unknown[0]!r} is unknown; choose from {', '.join(TRANSFORMS)}")
        if not 0 < self.transformation_scale_min <= self.transformation_scale_max:
            raise ValueError(
                f"model.transformation_scale_min: {self.transformation_scale_min} must be above 0 and not above "
                f"transformation_scale_max {self.transformation_scale_max}"
            )
        if self.transformation_subsample_points < 1:
            raise ValueError(
                f"model.transformation_subsample_points: {self.transformation_subsample_points} must be at least 1"
            )
        for key in ("transformation_rotate_dims", "transformation_height_normalize_dim"):
            value = getattr(self, key)
            if any(not 0 <= axis < AXES for axis in (value if isinstance(value, list) else [value])):
                raise ValueError(f"model.{key}: {value} must be of the axes 0, 1 and 2")
        if len(self.transformation_scale_symmetries) != AXES:
            raise ValueError(
                f"model.transformation_scale_symmetries: {self.transformation_scale_symmetries} must be one number an axis"
            )
        degrees = self.transformation_rotate_degs
        if degrees is not None and not 0 < degrees <= 360:
            raise ValueError(f"model.transformation_rotate_degs: {degrees} must lie above 0 and not above 360")


def transform(
    points: Tensor, names: list[str], keys: TransformKeys, *, generator: torch.Generator | None = None
) -> Tensor:
    """Transform points (B, N, 3), one step after the other; without a generator a sample begins with the first point."""
    for name in names:
        points = TRANSFORMS[name](points, keys, generator)
    return points


def sample_from(points: Tensor, count: int, starts: Tensor | None = None) -> Tensor:
    """Choose `count` of points (B, N, 3) by farthest point sampling, (B, count) int64; `starts` (B,), else index 0, come first."""
    if starts is None:
        return fps(points, count)
    first = send(starts, points.device).view(-1, 1)  # (B, 1)
    led = torch.cat([gather(points, first), points], dim=1)  # the others keep their order, which decides ties
    chosen = fps(led, count) - 1
    return torch.where(chosen < 0, first, chosen)


def draw_starts(points: Tensor, generator: torch.Generator | None) -> Tensor | None:
    """Draw where farthest point sampling of points (B, N, 3) begins, (B,) int64, for the global batch; None without a generator."""
    if generator is None:
        return None
    B, N, _ = points.shape
    starts = torch.randint(N, (B * world_size(),), generator=generator, device=generator.device)
    return starts[B * rank() : B * (rank() + 1)]


def _subsample(points: Tensor, keys: TransformKeys, generator: torch.Generator | None) -> Tensor:
    count = keys.transformation_subsample_points
    if count >= points.shape[1]:
        return points
    return gather(points, sample_from(points, count, draw_starts(points, generator)))


def _scale(points: Tensor, keys: TransformKeys, generator: torch.Generator | None) -> Tensor:
    low, high = keys.transformation_scale_min, keys.transformation_scale_max
    scale = _draw(AXES, points, keys, generator) * (high - low) + low
    mirrored = (_draw(AXES, points, keys, generator) < 0.5) & torch.tensor(
        keys.transformation_scale_symmetries, dtype=torch.bool
    ).to(points.device)
    return points * torch.where(mirrored, -scale, scale)


def _center(points: Tensor, keys: TransformKeys, generator: torch.Generator | None) -> Tensor:
    return points - points.mean(1, keepdim=True)


def _unit_sphere(points: Tensor, keys: TransformKeys, generator: torch.Generator | None) -> Tensor:
    largest = points.norm(dim=-1).amax(1)[:, None, None]
    return points / torch.where(largest > 0, largest, torch.ones_like(largest))


def _rotate(points: Tensor, keys: TransformKeys, generator: torch.Generator | None) -> Tensor:
    for axis in keys.transformation_rotate_dims:
        step = keys.transformation_rotate_degs
        drawn = _draw(1, points, keys, generator, below=step and 360 // step)[..., 0]  # (B, 1) or (1, 1)
        angle = drawn * (2 * math.pi if step is None else math.radians(step)) - math.pi
        a, b = points[..., (axis + 1) % AXES], points[..., (axis + 2) % AXES]
        turned = [points[..., axis], a * angle.cos() - b * angle.sin(), a * angle.sin() + b * angle.cos()]
        points = torch.stack([turned[(place - axis) % AXES] for place in range(AXES)], dim=-1)
    return points


def _translate(points: Tensor, keys: TransformKeys, generator: torch.Generator | None) -> Tensor:
    return points + (2 * _draw(AXES, points, keys, generator) - 1) * keys.transformation_translate


def _height_norm(points: Tensor, keys: TransformKeys, generator: torch.Generator | None) -> Tensor:
    axis = keys.transformation_height_normalize_dim
    lowest = points[..., axis].amin(1)[:, None, None]
    return points - lowest * (torch.arange(AXES, device=points.device) == axis)


def _draw(
    count: int, points: Tensor, keys: TransformKeys, generator: torch.Generator | None, *, below: int | None = None
) -> Tensor:
    """Draw numbers from 0 to 1, or whole ones below a limit: (1, 1, count) for all clouds of the global batch, or (B, 1, count)."""
    if generator is None:
        raise ValueError("transforms: a random transform needs a generator; leave it out of val_transformations")
    B = len(points)
    rows = B * world_size() if keys.transformation_per_cloud else 1
    place = {"generator": generator, "device": generator.device}
    drawn = torch.rand(rows, 1, count, **place) if below is None else torch.randint(below, (rows, 1, count), **place)
    own = drawn[B * rank() : B * (rank() + 1)] if keys.transformation_per_cloud else drawn
    return send(own, points.device, points.dtype)


TRANSFORMS = {
    "subsample": _subsample,
    "scale": _scale,
    "center": _center,
    "unit_sphere": _unit_sphere,
    "rotate": _rotate,
    "translate": _translate,
    "height_norm": _height_norm,
}
