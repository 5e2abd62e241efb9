"""Clouds of the built-in set to draw: what a model is given, and more points of the same surface for the picture."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from datasets import build_dataset

DRAWN, GIVEN = 2048, 1024  # points of the picture, and those of them that a model is given


class Shape(NamedTuple):
    """A built-in object that stands upright; all face the same way unless they are turned."""

    category: str
    points: np.ndarray  # (2048, 3) float32, in the unit sphere, y up
    parts: np.ndarray  # (2048,) global part ids

    @property
    def given(self) -> Tensor:
        """The points (1024, 3) that a model is given."""
        return torch.from_numpy(self.points[:GIVEN])


def shapes(categories: Sequence[str], each: int, *, turned: bool = False, subset: str = "test") -> list[list[Shape]]:
    """Draw `each` clouds of every category, in the order of the categories; the same ones in each call."""
    entry = {
        "NAME": "Synthetic", "subset": subset, "N_POINTS": DRAWN, "clouds": each * len(categories), "seed": 1,
        "categories": list(categories), "rotate": turned, "tilt": 0.0, "jitter": 0.003,
    }  # fmt: skip
    clouds = build_dataset(entry)
    found: dict[str, list[Shape]] = {category: [] for category in categories}
    for row, label in enumerate(clouds.labels):
        category = clouds.class_names[label]
        found[category].append(Shape(category, np.array(clouds.points[row]), np.array(clouds.part_labels[row])))
    return [found[category] for category in categories]
