"""Average precision of detections: VoteNet's and PASCAL's rule, plain functions on arrays.

Shapes: `K` predicted boxes and `G` targets of a scene, `C` classes.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from detection.detections import Detected, bounds

THRESHOLDS = (0.25, 0.5)  # of the intersection over union, as published
# Scores that a run is compared by -> what people call them.
SCORES = {"ap25": "AP25", "ap50": "AP50", "ar25": "AR25", "ar50": "AR50"}
# Volumes of targets in cubic metres at which "small" ends and "large" begins: a chair has about 0.2, a table 0.5 and more.
SIZES = {"small": (0.0, 0.1), "medium": (0.1, 0.5), "large": (0.5, np.inf)}


class SceneResult(NamedTuple):
    """What an evaluation knows of a scene."""

    detected: Detected
    corners: np.ndarray  # (K, 8, 3) float32 of the predicted boxes, camera frame
    target_corners: np.ndarray  # (G, 8, 3) float32
    target_classes: np.ndarray  # (G,) int64


@dataclass(frozen=True)
class Curve:
    """Precision and recall of a class as the least score falls: arrays (D,) by descending score."""

    recall: np.ndarray
    precision: np.ndarray
    scores: np.ndarray


@dataclass(frozen=True)
class AveragePrecision:
    """Average precision at one threshold; shares of 1.

    Attributes:
        ap, recall: (C,), NaN for a class with neither target nor detection; recall of all its detections.
        mean, mean_recall: over the other classes, in float32 as published; NaN where there are none.
        curves: class -> its curve, for classes with targets and detections.
        hits: for each scene (D,) bool, which of its detections are right.
    """

    ap: np.ndarray
    recall: np.ndarray
    mean: float
    mean_recall: float
    curves: dict[int, Curve] = field(repr=False)
    hits: list[np.ndarray] = field(repr=False)


def box_iou(corners: np.ndarray, target_corners: np.ndarray) -> np.ndarray:
    """Return the intersection over union (K, G) float64 of boxes along the axes; 0 where both are flat."""
    low, high = bounds(corners)
    target_low, target_high = bounds(target_corners)
    inter = np.minimum(high[:, None], target_high) - np.maximum(low[:, None], target_low)
    inter = inter.clip(min=0).prod(axis=-1)
    union = (high - low).prod(axis=1)[:, None] + (target_high - target_low).prod(axis=1) - inter
    return np.divide(inter, union, out=np.zeros_like(inter), where=union > 0)


def average_precision(
    scenes: Sequence[SceneResult],
    classes: int,
    threshold: float,
    *,
    eleven_points: bool = False,
    sizes: tuple[float, float] | None = None,
) -> AveragePrecision:
    """Score the detections of scenes.

    Detections of a class, by descending score (of equal ones those of the earlier scene, then of the lower box, first), take the target of
    their class and scene with the highest intersection over union. They are right if that is above the threshold and the target is free.

    Args:
        eleven_points: the mean precision at eleven recalls instead of the area.
        sizes: only targets whose volume is within these count; detections of others, and boxes of another size that hit none, are left out.
    """
    overlaps = [box_iou(scene.corners, scene.target_corners) for scene in scenes]
    ap, recall = np.full(classes, np.nan), np.full(classes, np.nan)
    curves: dict[int, Curve] = {}
    hits = [np.zeros(len(scene.detected.scores), bool) for scene in scenes]
    for number in range(classes):
        found = _of_class(scenes, overlaps, number, threshold, sizes)
        targets = found.targets
        if not targets and not len(found.scores):
            continue
        ap[number] = recall[number] = 0.0
        for row, detection in found.places[found.right]:
            hits[row][detection] = True
        if not targets or not len(found.scores):
            continue
        right = np.cumsum(found.right, dtype=np.float64)
        recalls, precisions = right / targets, right / np.arange(1, len(right) + 1)
        ap[number] = _eleven(recalls, precisions) if eleven_points else _area(recalls, precisions)
        recall[number] = recalls[-1]
        curves[number] = Curve(recalls, precisions, found.scores)
    counted = ~np.isnan(ap)
    if not counted.any():
        return AveragePrecision(ap, recall, np.nan, np.nan, curves, hits)
    mean = float(np.mean(ap[counted].astype(np.float32)))
    return AveragePrecision(ap, recall, mean, float(np.mean(recall[counted])), curves, hits)


class _Ranked(NamedTuple):
    """The detections of a class by descending score."""

    scores: np.ndarray  # (D,)
    right: np.ndarray  # (D,) bool
    places: np.ndarray  # (D, 2) scene, row among its detections
    targets: int


def _of_class(
    scenes: Sequence[SceneResult],
    overlaps: Sequence[np.ndarray],
    number: int,
    threshold: float,
    sizes: tuple[float, float] | None,
) -> _Ranked:
    """Rank the detections of a class over all scenes, and say which are right."""
    scores, claims, places, targets = [], [], [], 0
    offset = 0  # numbers targets through all scenes
    for row, (scene, overlap) in enumerate(zip(scenes, overlaps, strict=True)):
        own = np.flatnonzero(scene.target_classes == number)
        counts = _within(scene.target_corners[own], sizes)
        targets += int(counts.sum())
        mine = np.flatnonzero(scene.detected.classes == number)
        boxes = scene.detected.boxes[mine]
        claim = np.full(len(mine), -1)
        left_out = ~_within(scene.corners[boxes], sizes)
        if len(own) and len(mine):
            best = overlap[np.ix_(boxes, own)].argmax(axis=1)
            above = overlap[boxes, own[best]] > threshold
            claim[above] = offset + best[above]
            left_out[above] = ~counts[best[above]]
        kept = ~left_out
        scores.append(scene.detected.scores[mine][kept])
        claims.append(claim[kept])
        places.append(np.stack([np.full(len(mine), row), mine], axis=1)[kept])
        offset += len(own)
    score = np.concatenate(scores) if scores else np.zeros(0)
    order = np.argsort(-score.astype(np.float64), kind="stable")
    claim = np.concatenate(claims)[order] if claims else np.zeros(0, np.int64)
    right = np.zeros(len(order), bool)
    taken, first = np.unique(claim, return_index=True)
    right[first[taken >= 0]] = True
    place = np.concatenate(places)[order] if places else np.zeros((0, 2), np.int64)
    return _Ranked(score[order], right, place, targets)


def _within(corners: np.ndarray, sizes: tuple[float, float] | None) -> np.ndarray:
    """Say which boxes (K, 8, 3) have a volume in a range."""
    if sizes is None:
        return np.ones(len(corners), bool)
    low, high = bounds(corners)
    volume = (high - low).prod(axis=1)
    return (volume >= sizes[0]) & (volume < sizes[1])


def _area(recalls: np.ndarray, precisions: np.ndarray) -> float:
    """Return the area under the precision that a recall of at least r can have."""
    recalls = np.concatenate([[0.0], recalls, [1.0]])
    precisions = np.concatenate([[0.0], precisions, [0.0]])
    envelope = np.maximum.accumulate(precisions[::-1])[::-1]
    steps = np.flatnonzero(recalls[1:] != recalls[:-1])
    return float(((recalls[steps + 1] - recalls[steps]) * envelope[steps + 1]).sum())


def _eleven(recalls: np.ndarray, precisions: np.ndarray) -> float:
    """Return the mean over eleven recalls of the best precision from there on."""
    levels = np.arange(0.0, 1.1, 0.1)
    return float(sum(precisions[recalls >= level].max(initial=0.0) / len(levels) for level in levels))
