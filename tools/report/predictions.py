"""What a classifier got wrong: the clouds of its most confident mistakes, and a table by class.

Shapes: `M` clouds, `C` classes.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from tools.report.clouds import GalleryItem
from tools.report.markup import MISSING, Section, table

MISTAKES = 24  # that are shown
ABOUT = (
    "Mistakes, most confident first",
    "Clouds of the test set that got a wrong class, ordered by the probability that the model gave to it.",
)


@dataclass(frozen=True)
class Predictions:
    """What a classifier said of the clouds of a set.

    Args:
        labels: (M,) true classes.
        probabilities: (M, C) of each class.
        class_names: C names, or fewer; others are called by their number.
        names: M names of the clouds.
        points: row -> the points (n, 3) that the model was given.
    """

    labels: np.ndarray
    probabilities: np.ndarray
    class_names: Sequence[str]
    names: Sequence[str]
    points: Callable[[int], np.ndarray]
    up_axis: str = "y"

    @property
    def predicted(self) -> np.ndarray:
        """The most probable classes (M,)."""
        return self.probabilities.argmax(1)

    def called(self, label: int) -> str:
        """Return the name of a class."""
        return self.class_names[label] if label < len(self.class_names) else str(label)


def mistakes(found: Predictions, count: int = MISTAKES) -> list[int]:
    """Return the rows of wrong predictions, those with the most probable wrong class first."""
    wrong = np.flatnonzero(found.predicted != found.labels)
    return wrong[np.argsort(-found.probabilities.max(1)[wrong], kind="stable")][:count].tolist()


def mistake_items(found: Predictions, count: int = MISTAKES) -> list[GalleryItem]:
    """Return a gallery row for each of the most confident mistakes."""
    items = []
    for row in mistakes(found, count):
        label, guess = int(found.labels[row]), int(found.predicted[row])
        own = found.probabilities[row, label] if label < found.probabilities.shape[1] else 0.0
        items.append(
            GalleryItem(
                found.names[row],
                {"input": found.points(row)},
                up_axis=found.up_axis,
                note=f"{found.called(label)} ({100 * own:.1f} %), taken for {found.called(guess)} "
                f"({100 * found.probabilities[row, guess]:.1f} %)",
                pair=(found.called(label), found.called(guess)),
            )
        )
    return items


def class_section(found: Predictions) -> Section:
    """Return a table by class: accuracy, precision, mean probability of the true class, and what it is taken for."""
    rows = []
    predicted = found.predicted
    for label in np.unique(np.concatenate([found.labels, predicted])).tolist():
        own, guessed = found.labels == label, predicted == label
        right = int((own & guessed).sum())
        wrong = predicted[own & ~guessed]
        others, counts = np.unique(wrong, return_counts=True)
        most = f"{found.called(int(others[counts.argmax()]))} ({counts.max()})" if len(wrong) else MISSING
        known = label < found.probabilities.shape[1] and own.any()
        mean = f"{100 * found.probabilities[own, label].mean():.1f}" if known else MISSING
        shares = (f"{100 * right / total:.1f}" if total else MISSING for total in (int(own.sum()), int(guessed.sum())))
        rows.append((found.called(label), most, int(own.sum()), right, *shares, mean))
    head = ("class", "most often taken for", "clouds", "right", "accuracy, %", "precision, %", "mean probability, %")
    lead = "Precision: of the clouds that are given this class, how many have it. Mean probability: of the true class."
    return Section("By class", f'<div class="panel">{table(head, rows, text_columns=2)}</div>', lead)
