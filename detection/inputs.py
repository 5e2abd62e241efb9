"""Samples of scenes as a detector takes them: drawn, augmented, with targets, batched.

Shapes: `B` scenes, `N` points, `T` rows of targets.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from datasets.clouds import CloudSet
from datasets.scenes import ID, Scene, centered_colors, take, targets, whole
from datasets.transforms import draw_seeds
from utils.device import send
from utils.dist import rank, world_size
from utils.seed import generator

CUBOID_SHARE = 0.75  # of the points of a sample, which a random cuboid holds at least: as published 30,000 of 40,000


class Inputs(NamedTuple):
    """A batch of samples on a device."""

    points: Tensor  # (B, N, 3) float32, metres, z up
    targets: dict[str, Tensor]  # as `datasets.scenes.targets` calls them, (B, T, ...)
    colors: Tensor | None  # (B, N, 3) float32

    @property
    def extent(self) -> tuple[Tensor, Tensor]:
        """Lowest and highest coordinates of each scene, (B, 3) each."""
        return self.targets["point_cloud_dims_min"], self.targets["point_cloud_dims_max"]


def boxes_of(clouds: CloudSet, row: int) -> np.ndarray:
    """Return the boxes (k, 8) of a scene."""
    return np.asarray(clouds.boxes[row, : clouds.box_counts[row]])


def draw_scene(clouds: CloudSet, row: int, seed: int, *, augment: bool) -> Scene:
    """Take a sample of a scene; it depends on the scene and the seed alone."""
    count = len(clouds.points[row]) if clouds.counts is None else int(clouds.counts[row])
    scene = whole(np.array(clouds.points[row, :count]), boxes_of(clouds, row))
    least = int(CUBOID_SHARE * clouds.npoints)
    rng = np.random.RandomState(seed % 2**32)
    return take(scene, clouds.npoints, rng, augment=augment, least_points=least)


def draw_batch(
    clouds: CloudSet, rows: list[int], seeds: list[int], *, augment: bool, color: bool, device: torch.device
) -> Inputs:
    """Take samples of scenes, one a seed, and bring them to a device."""
    scenes = [draw_scene(clouds, row, seed, augment=augment) for row, seed in zip(rows, seeds, strict=True)]
    wanted = [targets(scene) for scene in scenes]
    colors = None
    if color:
        shades = [centered_colors(clouds.colors[row][scene.rows]) for row, scene in zip(rows, scenes, strict=True)]
        colors = send(torch.from_numpy(np.stack(shades)), device)
    return Inputs(
        send(torch.from_numpy(np.stack([scene.points for scene in scenes])), device),
        {key: send(torch.from_numpy(np.stack([own[key] for own in wanted])), device) for key in wanted[0]},
        colors,
    )


def own_seeds(count: int, draw: torch.Generator) -> list[int]:
    """Draw the seeds of the global batch, of which each process has `count` scenes, and return those of this process."""
    drawn = draw_seeds(count * world_size(), generator=draw)
    return drawn[count * rank() : count * (rank() + 1)].tolist()


def evaluation_batches(
    clouds: CloudSet, size: int, *, seed: int, turn: int, color: bool, device: torch.device
) -> Iterator[Inputs]:
    """Yield all scenes in stored order, without augmentation; what is drawn of a scene depends on seed, turn and its place in the set."""
    seeds = draw_seeds(len(clouds), generator=generator(seed, 0, turn, "evaluation")).tolist()
    for begin in range(0, len(clouds), size):
        rows = list(range(begin, min(begin + size, len(clouds))))
        own = [seeds[row] for row in rows]
        yield draw_batch(clouds, rows, own, augment=False, color=color, device=device)


def scene_of_points(points: np.ndarray) -> Scene:
    """Return a scene of points (n, 3) without boxes."""
    return whole(points, np.zeros((0, ID + 1)))
