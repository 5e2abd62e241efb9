"""How many points of a cloud a model takes, and what becomes of clouds that have more or fewer."""

from typing import Any, TypeVar

import numpy as np
from torch import Tensor

from utils.config.schema import RunConfig

Points = TypeVar("Points", np.ndarray, Tensor)


def points_seen(config: RunConfig) -> int | None:
    """Return how many points of a cloud the model of a configuration is shown; None where the configuration does not say.

    A classifier is shown `npoints`; a pre-training model what its training set, else the set of its linear SVM, gives.
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
