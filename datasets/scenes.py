"""Scenes with boxes of objects: what training does to them, and the targets of a detector; one scene at a time, in NumPy.

Everything random is drawn from a `numpy.random.RandomState`, in the published order, so that a seed of NumPy's gives the published numbers.

Legend: n points of a scene, k boxes, N points of a sample. Boxes are rows of centre (3), full size (3), class, published id of the class;
lengths are metres, z is up.
"""

from typing import NamedTuple

import numpy as np
from numpy.random import RandomState

MOST_BOXES = 64  # of a scene, as published
TRIES, LEAST_SHARE = 100, 0.5  # of random cuboids, and the smallest share of an axis
LEAST_RATIO = 0.8  # that two axes of a cuboid must have
TURN = np.pi / 36  # largest turn about the vertical axis
MEAN_COLOR = np.array([109.8, 97.2, 83.8])
CENTER, SIZE, CLASS, ID = slice(0, 3), slice(3, 6), 6, 7


class Scene(NamedTuple):
    """A scene as it is taken apart: points (n, 3) float32, boxes (k, 8) float64, and which of its points these are, (n,) int64."""

    points: np.ndarray
    boxes: np.ndarray
    rows: np.ndarray


def whole(points: np.ndarray, boxes: np.ndarray) -> Scene:
    """Return a scene with all its points (n, 3)."""
    return Scene(points, boxes, np.arange(len(points)))


def random_cuboid(scene: Scene, rng: RandomState, least_points: int) -> Scene:
    """Keep what lies in a cuboid around a random point, with half to all of the extent along each axis.

    A cuboid with fewer than `least_points` points, or none of the boxes' centres, is drawn anew, up to 100 times; after that the scene
    stays as it is. Boxes are not cut.

    Note:
        As published, the boxes take no part where the sum of all their numbers, the ids of their classes included, is not above 0.
    """
    points = scene.points
    extent = points.max(axis=0) - points.min(axis=0)
    published = np.concatenate([scene.boxes[:, :6], scene.boxes[:, ID:]], axis=1)
    for _ in range(TRIES):
        share = LEAST_SHARE + rng.rand(3) * (1 - LEAST_SHARE)
        low, middle, high = np.sort(share)
        if max(low / middle, middle / high) < LEAST_RATIO:
            continue
        center = points[rng.choice(len(points))]
        half = extent * share / 2.0
        inside = ((points <= center + half) & (points >= center - half)).all(axis=1)
        if inside.sum() < least_points:
            continue
        kept = points[inside]
        if not published.sum() > 0:
            return Scene(kept, scene.boxes, scene.rows[inside])
        centers = scene.boxes[:, CENTER]
        own = ((centers >= kept.min(axis=0)) & (centers <= kept.max(axis=0))).all(axis=1)
        if own.any():
            return Scene(kept, scene.boxes[own], scene.rows[inside])
    return scene


def sample(scene: Scene, count: int, rng: RandomState) -> Scene:
    """Draw N points, with replacement where the scene has fewer."""
    chosen = rng.choice(len(scene.points), count, replace=len(scene.points) < count)
    return Scene(scene.points[chosen], scene.boxes, scene.rows[chosen])


def flip_and_turn(scene: Scene, rng: RandomState) -> Scene:
    """Mirror along x and along y, each half of the time, and turn by up to 5 degrees about z; boxes grow to hold what they held."""
    points, boxes = scene.points.copy(), scene.boxes.copy()
    for axis in (0, 1):
        if rng.random_sample() > 0.5:
            points[:, axis] *= -1
            boxes[:, axis] *= -1
    angle = rng.random_sample() * (2 * TURN) - TURN
    cos, sin = np.cos(angle), np.sin(angle)
    turn = np.array([[cos, -sin, 0], [sin, cos, 0], [0, 0, 1]])
    points = (points @ turn.T).astype(np.float32)
    boxes[:, CENTER] = boxes[:, CENTER] @ turn.T
    dx, dy = boxes[:, 3].copy(), boxes[:, 4].copy()
    boxes[:, 3] = dx * abs(cos) + dy * abs(sin)
    boxes[:, 4] = dx * abs(sin) + dy * abs(cos)
    return Scene(points, boxes, scene.rows)


def take(scene: Scene, count: int, rng: RandomState, *, augment: bool, least_points: int) -> Scene:
    """Take a sample of a scene as training does, or without augmentation as evaluation does, in the published order of the draws.

    Args:
        least_points: of a random cuboid; 0 = no cuboid is cut out.
    """
    if augment and least_points:
        scene = random_cuboid(scene, rng, least_points)
    scene = sample(scene, count, rng)
    return flip_and_turn(scene, rng) if augment else scene


def centered_colors(colors: np.ndarray) -> np.ndarray:
    """Return colours (n, 3), 0 to 255, as a detector takes them, float32."""
    return ((colors - MEAN_COLOR) / 256.0).astype(np.float32)


def targets(scene: Scene) -> dict[str, np.ndarray]:
    """Return the targets of a detector for a sample: 64 rows, zeros after the last box, under their published names; float32 and int64."""
    low, high = scene.points.min(axis=0), scene.points.max(axis=0)
    count, extent = len(scene.boxes), np.maximum(high - low, np.finfo(np.float32).tiny)
    centers, sizes = (np.zeros((MOST_BOXES, 3), np.float32) for _ in range(2))
    centers[:count], sizes[:count] = scene.boxes[:, CENTER], scene.boxes[:, SIZE]
    labels, present = np.zeros(MOST_BOXES, np.int64), np.zeros(MOST_BOXES, np.float32)
    labels[:count], present[:count] = scene.boxes[:, CLASS], 1
    return {
        "gt_box_centers": centers,
        "gt_box_sizes": sizes,
        "gt_box_centers_normalized": (centers - low) / extent * present[:, None],
        "gt_box_sizes_normalized": sizes / extent,
        "gt_box_sem_cls_label": labels,
        "gt_box_present": present,
        "gt_box_angles": np.zeros(MOST_BOXES, np.float32),
        "gt_angle_class_label": np.zeros(MOST_BOXES, np.int64),
        "gt_angle_residual_label": np.zeros(MOST_BOXES, np.float32),
        "point_cloud_dims_min": low,
        "point_cloud_dims_max": high,
    }
