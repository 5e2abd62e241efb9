"""From predicted boxes to detections: empty boxes, non-maximum suppression, scores (as published for VoteNet and 3DETR).

Shapes: `K` predicted boxes of a scene, `N` points, `C` classes, `D` detections.
"""

from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

NMS = ("class", "all", "2d", "none")


@dataclass(frozen=True)
class Rules:
    """How boxes become detections; defaults as published for ScanNet.

    Args:
        least_points: boxes that hold fewer points are dropped; 0 = none is. If all would be, the most certain one stays.
        nms: "class": boxes of one class suppress each other; "all": boxes of all classes do; "2d": likewise, by their overlap as seen from
            the front (camera axes x and z); "none".
        overlap: intersection over union above which the less certain box is dropped.
        over_own: divide the intersection by the volume of the less certain box instead.
        certainty: boxes need an objectness above this.
        all_classes: each box is a detection of every class, scored by its probability times the objectness; else one detection of its most
            likely class, scored by `by`.
        by: "objectness" or "class", the probability of that class.
    """

    least_points: int = 5
    nms: Literal["class", "all", "2d", "none"] = "class"
    overlap: float = 0.25
    over_own: bool = False
    certainty: float = 0.05
    all_classes: bool = True
    by: Literal["objectness", "class"] = "objectness"


class Detected(NamedTuple):
    """Detections of a scene, class after class, boxes in their order."""

    classes: np.ndarray  # (D,) int64
    boxes: np.ndarray  # (D,) int64, rows among the predicted boxes
    scores: np.ndarray  # (D,) float32


def bounds(corners: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the lowest and highest coordinates, (K, 3) float64 each, of boxes given by corners (K, 8, 3)."""
    corners = corners.astype(np.float64)
    return corners.min(axis=1), corners.max(axis=1)


def points_inside(points: np.ndarray, corners: np.ndarray) -> np.ndarray:
    """Count the points (N, 3), in the depth frame, in each box (K, 8, 3), in the camera frame; faces belong to the box. (K,) int64."""
    low, high = bounds(corners)
    camera = np.stack([points[:, 0], -points[:, 2], points[:, 1]], axis=1).astype(np.float64)
    order = np.argsort(camera[:, 0], kind="stable")  # a box needs only the points of its range along one axis
    camera = camera[order]
    first = np.searchsorted(camera[:, 0], low[:, 0], side="left")
    last = np.searchsorted(camera[:, 0], high[:, 0], side="right")
    counts = np.empty(len(corners), np.int64)
    for row, (begin, end) in enumerate(zip(first, last, strict=True)):
        part = camera[begin:end, 1:]
        counts[row] = ((part >= low[row, 1:]) & (part <= high[row, 1:])).all(axis=1).sum()
    return counts


def kept_boxes(
    points: np.ndarray, corners: np.ndarray, objectness: np.ndarray, probabilities: np.ndarray, rules: Rules
) -> np.ndarray:
    """Return which boxes give detections, (K,) bool.

    Args:
        points: (N, 3) of the scene, depth frame.
        corners: (K, 8, 3), camera frame.
        objectness: (K,).
        probabilities: (K, C).
    """
    if not len(corners):
        return np.zeros(0, bool)
    kept = np.ones(len(corners), bool)
    if rules.least_points:
        kept = points_inside(points, corners) >= rules.least_points
        if not kept.any():
            kept[objectness.argmax()] = True
    if rules.nms != "none":
        rows = np.flatnonzero(kept)
        classes = probabilities[rows].argmax(axis=1) if rules.nms == "class" else np.zeros(len(rows), np.int64)
        kept = np.zeros(len(corners), bool)
        kept[rows[_suppress(corners[rows], objectness[rows], classes, rules)]] = True
    return kept & (objectness > rules.certainty)


def _suppress(corners: np.ndarray, scores: np.ndarray, classes: np.ndarray, rules: Rules) -> list[int]:
    """Return the boxes that no more certain one suppresses; of equal scores the later box comes first."""
    low, high = bounds(corners)
    if rules.nms == "2d":
        low, high = low[:, ::2], high[:, ::2]
    volume = (high - low).prod(axis=1)
    waiting, chosen = np.argsort(scores, kind="stable"), []
    while len(waiting):
        best, waiting = waiting[-1], waiting[:-1]
        chosen.append(int(best))
        inter = np.minimum(high[best], high[waiting]) - np.maximum(low[best], low[waiting])
        inter = inter.clip(min=0).prod(axis=1)
        whole = volume[waiting] if rules.over_own else volume[best] + volume[waiting] - inter
        overlap = np.divide(inter, whole, out=np.zeros_like(inter), where=whole > 0)
        waiting = waiting[~((overlap > rules.overlap) & (classes[waiting] == classes[best]))]
    return chosen


def detections(kept: np.ndarray, objectness: np.ndarray, probabilities: np.ndarray, rules: Rules) -> Detected:
    """Return the detections of the boxes that are kept, (K,) bool; other arguments as in `kept_boxes`."""
    rows = np.flatnonzero(kept)
    if rules.all_classes:
        count = probabilities.shape[1]
        scores = (probabilities[rows] * objectness[rows, None]).T  # (C, kept)
        return Detected(np.repeat(np.arange(count), len(rows)), np.tile(rows, count), scores.ravel())
    classes = probabilities[rows].argmax(axis=1)
    scores = objectness[rows] if rules.by == "objectness" else probabilities[rows, classes]
    return Detected(classes, rows, scores)
