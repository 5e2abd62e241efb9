"""Metrics of classification: plain functions on arrays of class ids (M,)."""

import numpy as np

from utils.errors import UserError


def accuracy(predictions, labels) -> float:
    """Return the fraction of predictions that are right, 0 to 1."""
    predictions, labels = _aligned(predictions, labels)
    return float((predictions == labels).mean())


def confusion_matrix(predictions, labels, num_classes: int) -> np.ndarray:
    """Count clouds by class: (num_classes, num_classes) int64, rows are true classes, columns predicted ones."""
    predictions, labels = _aligned(predictions, labels)
    for name, ids in (("predictions", predictions), ("labels", labels)):
        if ids.min() < 0 or ids.max() >= num_classes:
            wrong = ids[(ids < 0) | (ids >= num_classes)][0]
            raise UserError(
                f"confusion_matrix: {name} hold class {wrong}; {num_classes} classes are 0 to {num_classes - 1}"
            )
    cells = np.bincount(labels * num_classes + predictions, minlength=num_classes**2)
    return cells.reshape(num_classes, num_classes).astype(np.int64)


def per_class_accuracy(predictions, labels, num_classes: int) -> np.ndarray:
    """Return the accuracy of each class (num_classes,), NaN for a class without clouds."""
    matrix = confusion_matrix(predictions, labels, num_classes)
    totals = matrix.sum(axis=1)
    return np.divide(matrix.diagonal(), totals, out=np.full(num_classes, np.nan), where=totals > 0)


def _aligned(predictions, labels) -> tuple[np.ndarray, np.ndarray]:
    predictions, labels = np.asarray(predictions), np.asarray(labels)
    if predictions.shape != labels.shape or predictions.ndim != 1:
        raise UserError(f"metrics: predictions {predictions.shape} and labels {labels.shape} must both be (M,)")
    if len(labels) == 0:
        raise UserError("metrics: there is nothing to evaluate; the set is empty")
    return predictions.astype(np.int64), labels.astype(np.int64)
