"""Metrics of part segmentation: plain functions on arrays.

Shapes: `M` clouds, `N` points, `C` categories, `P` parts of all categories together.
"""

from dataclasses import dataclass

import numpy as np

from utils.errors import UserError
from utils.metrics import confusion_matrix

# Scores that a run is compared by -> what people call them.
SCORES = {"instance_miou": "instance mIoU", "class_miou": "class mIoU", "accuracy": "point accuracy"}


@dataclass(frozen=True)
class PartScores:
    """What predictions are worth; shares of 1.

    Attributes:
        instance_miou: mean over clouds of their mean IoU over the parts of their category.
        class_miou: mean over the categories that have clouds of their `category_ious`.
        accuracy: share of points that are right.
        class_accuracy: mean over the parts that occur of the share of their points that are right.
        shape_ious: (M,) mean IoU of each cloud.
        category_ious: (C,) mean of `shape_ious` a category, NaN for one without clouds.
        part_ious: (P,) mean IoU over the clouds of a part's category, NaN for a part without clouds.
        confusion: (P, P) int64 points, rows true parts, columns predicted ones.
    """

    instance_miou: float
    class_miou: float
    accuracy: float
    class_accuracy: float
    shape_ious: np.ndarray
    category_ious: np.ndarray
    part_ious: np.ndarray
    confusion: np.ndarray

    def row(self) -> dict[str, float]:
        """Return what metrics.jsonl says of it."""
        names = ("instance_miou", "class_miou", "accuracy", "class_accuracy")
        return {name: getattr(self, name) for name in names}


def score_parts(predictions, parts, categories, owned: np.ndarray) -> PartScores:
    """Score predicted parts by the published protocol (Point-MAE, Sec. 4; the protocol of Qi et al. 2017).

    The IoU of a part that a cloud neither has nor is given counts 1. A mean over nothing is left out, not NaN.

    Args:
        predictions, parts: (M, N) part ids.
        categories: (M,) category ids.
        owned: (C, P) bool, True where the category has the part.

    Raises:
        UserError: shapes that do not fit, no clouds, or a part that the cloud's category does not have.
    """
    predictions, parts, categories = (np.asarray(ids).astype(np.int64) for ids in (predictions, parts, categories))
    if predictions.shape != parts.shape or parts.ndim != 2 or categories.shape != parts.shape[:1] or not parts.size:
        raise UserError(
            f"metrics: predictions {predictions.shape}, parts {parts.shape}, categories {categories.shape} "
            "must be (M, N), (M, N) and (M,)"
        )
    for name, ids in (("predictions", predictions), ("parts", parts)):
        inside = (ids >= 0) & (ids < owned.shape[1])
        wrong = ~(inside & owned[categories[:, None], np.where(inside, ids, 0)])
        if wrong.any():
            cloud, point = np.argwhere(wrong)[0]
            raise UserError(
                f"metrics: {name} of cloud {cloud} hold part {ids[cloud, point]}, which category {categories[cloud]} does not have"
            )
    ious = _ious(predictions, parts, owned.shape[1])  # (M, P)
    mine = owned[categories]  # (M, P)
    shape_ious = np.where(mine, ious, 0).sum(1) / mine.sum(1)
    category_ious = np.array([_mean(shape_ious[categories == number]) for number in range(len(owned))])
    confusion = confusion_matrix(predictions.ravel(), parts.ravel(), owned.shape[1])
    seen = confusion.sum(1)
    return PartScores(
        instance_miou=float(shape_ious.mean()),
        class_miou=float(np.nanmean(category_ious)),
        accuracy=float((predictions == parts).mean()),
        class_accuracy=float((confusion.diagonal()[seen > 0] / seen[seen > 0]).mean()),
        shape_ious=shape_ious,
        category_ious=category_ious,
        part_ious=np.array([_mean(ious[mine[:, part], part]) for part in range(owned.shape[1])]),
        confusion=confusion,
    )


def _ious(predictions: np.ndarray, parts: np.ndarray, count: int) -> np.ndarray:
    """Return the IoU of every part in every cloud, (M, P); 1 where neither has the part."""
    true, guessed = _counts(parts, count), _counts(predictions, count)
    # Points that are wrong count in a bin of their own, which is cut off.
    both = _counts(np.where(predictions == parts, parts, count), count + 1)[:, :count]
    union = true + guessed - both
    return np.divide(both, union, out=np.ones(union.shape), where=union > 0)


def _counts(ids: np.ndarray, count: int) -> np.ndarray:
    """Count the points of each part in each cloud, (M, count)."""
    cells = np.arange(len(ids))[:, None] * count + ids
    return np.bincount(cells.ravel(), minlength=len(ids) * count).reshape(len(ids), count)


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if len(values) else float("nan")
