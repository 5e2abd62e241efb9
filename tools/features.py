"""Features of whole sets of clouds, and the linear SVM that evaluates them."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
import torch
from torch import nn

from datasets.batches import Batches
from datasets.clouds import CloudSet
from utils.device import autocast
from utils.log import track
from utils.metrics import accuracy

# Values that the search for C tries, besides the published one.
C_GRID = (0.001, 0.01, 0.1, 1.0, 10.0, 100.0)
FOLDS = 4
_LOG = logging.getLogger("m2ae.svm")


@dataclass
class SVMResult:
    """A linear SVM on frozen features: accuracies are fractions, predictions int64 (M,)."""

    accuracy: float
    C: float
    predictions: np.ndarray
    chosen_C: float | None = None  # by cross-validation on the training features
    chosen_accuracy: float | None = None  # on the test features, with that C


@dataclass
class HeldOut:
    """What clouds that are held out of the training set say of features: the best C, and the accuracy with it, a fraction.

    Args:
        test_accuracy: of all training clouds with that C on the test set; None where the test set is not evaluated.
    """

    C: float
    accuracy: float
    test_accuracy: float | None = None

    def row(self) -> dict:
        """Return what metrics.jsonl says of it."""
        found = {"accuracy": self.accuracy, "C": self.C}
        return found if self.test_accuracy is None else {**found, "test_accuracy": self.test_accuracy}


def extract_features(
    model: nn.Module, clouds: CloudSet, *, batch_size: int, seed: int, device, precision: str = "fp32"
):
    """Encode every cloud of a set, in evaluation mode, without augmentation; returns float32 (M, C) and labels (M,)."""
    was_training = model.training
    model.eval()
    features = []
    with torch.inference_mode(), autocast(device, precision):
        batches = Batches(clouds, batch_size=batch_size, seed=seed, device=device, shuffle=False, drop_last=False)
        for batch in track(batches.evaluation(), f"features of {clouds.name} ({clouds.subset})", len(batches)):
            features.append(model.encode(batch.points).float().cpu())
    model.train(was_training)
    return torch.cat(features).numpy(), np.asarray(clouds.labels)


def linear_svm(train_x, train_y, test_x, test_y, *, C: float, choose: bool = False) -> SVMResult:
    """Fit a linear support vector classifier (one against one) and evaluate it on the test features.

    The Gram matrix is computed once, in double precision: the same problem as `SVC(kernel="linear")`, at
    matrix-product speed.

    Args:
        choose: also choose C by cross-validation on the training features and evaluate that one.
    """
    train_x, test_x = np.asarray(train_x, np.float64), np.asarray(test_x, np.float64)
    gram, cross = train_x @ train_x.T, test_x @ train_x.T
    predictions = _fit(gram, train_y, C).predict(cross)
    result = SVMResult(accuracy(predictions, test_y), C, predictions)
    if choose:
        result.chosen_C = choose_c(gram, train_y, sorted({C, *C_GRID}))
        chosen = _fit(gram, train_y, result.chosen_C).predict(cross)
        result.chosen_accuracy = accuracy(chosen, test_y)
    return result


def choose_held_out(features, labels, held_out: np.ndarray, C: float) -> HeldOut:
    """Return the C, of C_GRID and the given one, with the best accuracy on held-out clouds; the smallest one on ties.

    Args:
        features, labels: of the whole training set.
        held_out: bool, which of them are not fitted.
    """
    features = np.asarray(features, np.float64)
    fitted = features[~held_out]
    gram, cross = fitted @ fitted.T, features[held_out] @ fitted.T
    found = {
        value: accuracy(_fit(gram, labels[~held_out], value).predict(cross), labels[held_out])
        for value in track(sorted({C, *C_GRID}), "choosing C on held-out clouds")
    }
    best = max(found, key=lambda value: (found[value], -value))
    return HeldOut(float(best), found[best])


def choose_c(gram: np.ndarray, labels: np.ndarray, grid: Sequence[float]) -> float:
    """Return the C of `grid` with the best mean accuracy over stratified folds; the smallest one on ties.

    There are as many folds as the smallest class has clouds, from 2 to FOLDS. Where fewer than two classes have two
    clouds, a part may hold nothing to tell apart: the smallest C is returned, with a warning.
    """
    from sklearn.model_selection import StratifiedKFold

    counts = np.unique(labels, return_counts=True)[1]
    if (counts >= 2).sum() < 2:
        _LOG.warning("linear SVM: too few classes have two clouds to choose C with; taking the smallest, %g", min(grid))
        return float(min(grid))
    folds = max(2, min(FOLDS, int(counts.min())))
    splits = list(StratifiedKFold(folds, shuffle=True, random_state=0).split(gram, labels))
    scores = []
    for C, (a, b) in track(list(product(grid, splits)), "choosing C by cross-validation"):
        scores.append(accuracy(_fit(gram[np.ix_(a, a)], labels[a], C).predict(gram[np.ix_(b, a)]), labels[b]))
    return float(grid[int(np.argmax(np.reshape(scores, (len(grid), folds)).mean(1)))])


def _fit(gram: np.ndarray, labels: np.ndarray, C: float):
    from sklearn.svm import SVC

    return SVC(C=C, kernel="precomputed").fit(gram, labels)
