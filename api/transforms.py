"""Transforms that bring own clouds to what the models expect: `m2ae.transforms`. None changes its input.

Legend: B batch, N points.

    >>> points = transforms.for_checkpoint("mini", model="point_m2ae.pretrain")(scans, up="z")
    >>> points = transforms.sample(transforms.scale(transforms.turn_up(scans, "z")), 2048)
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from datasets.formats.points import upright
from datasets.transforms import normalize_unit_sphere, sample_points
from tools.sampling import farthest, points_needed, points_taken, repeat_points

__all__ = ["Expected", "centre", "for_checkpoint", "sample", "scale", "turn_up"]
AXES = ("x", "y", "z")


@dataclass(frozen=True)
class Expected:
    """What a checkpoint expects of clouds, as a transform: turn, place, sample.

    Args:
        up: the axis that points up in the clouds that it was trained on.
        placing: where they are: "sphere" = centred, in the unit sphere; "centre" = centred; "stored" = not moved.
        points: how many points each has; None = any number.
        least: fewest points of a cloud that the groups of the model can be made of.
    """

    up: str = "y"
    placing: Literal["sphere", "centre", "stored"] = "sphere"
    points: int | None = 1024
    least: int = 1

    def __call__(self, points: Tensor, up: str = "y") -> Tensor:
        """Bring clouds (B, N, 3) of any extent and number of points, whose axis `up` points up, to what the checkpoint expects.

        More points than `points` are thinned by farthest point sampling. Fewer are taken as they are, and repeated where they are
        fewer than `least`.

        Raises:
            ValueError: no such clouds, or no such axis.
        """
        points = turn_up(points, up, to=self.up)
        if self.placing != "stored":
            points = scale(points) if self.placing == "sphere" else centre(points)
        if self.points is not None and points.shape[1] > self.points:
            points = sample(points, self.points)
        return points if points.shape[1] >= self.least else repeat_points(points, self.least)


def for_checkpoint(weights: str | Path, *, model: str | None = None) -> Expected:
    """Return what a checkpoint expects of clouds: as its own configuration says, else the published recipe.

    Args:
        weights: path or name, as in `create_model`.
        model: name of the model that takes them, as in `create_model`; "published" and "mini" depend on it.

    Raises:
        ValueError: there are no such weights, or nothing says what they were trained on: then build an `Expected`.
    """
    from api.published import locate
    from tools.embedder import configuration_of, placing_of
    from utils.files import read_checkpoint

    found = locate(weights, model)
    config, _ = configuration_of(found.path, read_checkpoint(found.path), found.recipe)
    up = getattr(config.dataset.train, "UP_AXIS", "y")
    return Expected(up, placing_of(config), points_taken(config), points_needed(config.model))


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


def turn_up(points: Tensor, axis: str, to: str = "y") -> Tensor:
    """Turn clouds (B, N, 3) so that their axis `axis` ("x" | "y" | "z") becomes `to`; y is up in all sets here but ModelNet10.

    Raises:
        ValueError: no such axis.
    """
    points = _checked("turn_up", points)
    for given in (axis, to):
        if given not in AXES:
            raise ValueError(f"turn_up: axis {given!r} is unknown; choose x, y or z")
    units = np.eye(3)
    turn = upright(units, axis) @ upright(units, to).T  # a row is where an axis goes
    order = np.abs(turn).argmax(0)
    signs = torch.tensor(turn[order, range(3)], dtype=points.dtype, device=points.device)
    return points[..., order.tolist()] * signs


def _checked(who: str, points: Tensor) -> Tensor:
    if not isinstance(points, Tensor):
        raise ValueError(f"{who}: points must be a tensor, got {type(points).__name__}; convert it by torch.as_tensor")
    if points.dim() != 3 or points.shape[2] != 3 or not points.is_floating_point() or not points.shape[1]:
        raise ValueError(
            f"{who}: points must be (B, N, 3) of floating point with N > 0, got {tuple(points.shape)} {points.dtype}"
        )
    broken = (~points.isfinite()).any(dim=2).sum(dim=1)  # (B,)
    if broken.any():
        first = int(broken.argmax())
        raise ValueError(
            f"{who}: cloud {first} holds {int(broken[first])} points that are not finite, as depth cameras write; leave them out: "
            "cloud[cloud.isfinite().all(dim=-1)]"
        )
    return points
