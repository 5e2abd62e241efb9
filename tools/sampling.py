"""How many points of a cloud a model takes, and how they are chosen; shapes: `B` batch, `N` points."""

from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from extensions import fps, gather
from utils.config.schema import RunConfig
from utils.device import send

Points = TypeVar("Points", np.ndarray, Tensor)


def points_taken(config: RunConfig) -> int | None:
    """Return how many points of a cloud the model of a configuration takes; None where the configuration does not say.

    A classifier takes `npoints`; a pre-training model what its training set, else the set of its linear SVM, gives.
    """
    if hasattr(config.model, "cls_dim"):
        return config.npoints
    entries = config.dataset
    probe = entries.svm.train if entries.svm is not None else None
    for entry in (entries.train, probe, entries.val, entries.test):
        count = getattr(entry, "npoints", 0) or getattr(entry, "num_points", 0)
        if count:
            return count
    return config.npoints


def points_needed(model: Any) -> int:
    """Return the fewest points of a cloud that a model's finest groups can be made of, from its configuration."""
    several = hasattr(model, "num_groups")
    groups = model.num_groups[0] if several else getattr(model, "num_group", 1)
    size = model.group_sizes[0] if several else getattr(model, "group_size", 1)
    return max(groups, size)


def repeat_points(points: Points, count: int) -> Points:
    """Bring clouds (..., n, 3) of fewer points to (..., count, 3): all points in turn, again and again."""
    return points[..., np.arange(count) % points.shape[-2], :]


def training_points(points: Tensor, npoints: int, draw: torch.Generator) -> Tensor:
    """Choose the points that a classifier trains on, (B, N, 3) -> (B, npoints, 3).

    Farthest point sampling keeps somewhat more than `npoints`; of these a random subset is taken, the same positions
    in every cloud of the batch, as published.
    """
    return subset(farthest(points, oversampled(npoints, points.shape[1])), npoints, draw)


def oversampled(npoints: int, available: int) -> int:
    """Return how many points farthest point sampling keeps before a random subset of `npoints` is drawn.

    Published: 1,024 -> 1,200, 2,048 -> 2,400, 4,096 -> 4,800, 8,192 -> all 8,192; that is 75/64 of them, at most all.
    """
    return min(npoints * 75 // 64, available)


def subset(points: Tensor, npoints: int, draw: torch.Generator) -> Tensor:
    """Take `npoints` random positions without replacement, the same in every cloud of (B, N, 3)."""
    chosen = torch.randperm(points.shape[1], generator=draw)[:npoints]
    return points[:, send(chosen, points.device)]


def farthest(points: Tensor, count: int) -> Tensor:
    """Thin (B, N, 3) to (B, count, 3) by farthest point sampling.

    Note:
        Also where count is N: points within 0.0316 of the origin are never chosen, so that copies of another point
        take their place, as in the published programs (ScanObjectNN, whose clouds are not normalised).
    """
    return gather(points, fps(points, count, skip_near_origin=True))
