"""What a classifier got wrong: its most confident mistakes, clouds of each cell of the confusion matrix, and a table by class.

Shapes: `M` clouds, `C` classes.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from tools.report.clouds import GalleryItem
from tools.report.markup import MISSING, Section, table

MISTAKES = 24  # most confident ones that are shown
OTHERS, OF_A_CELL = 48, 3  # further mistakes, up to so many of a cell of the confusion matrix
RIGHT = 40  # classes of which one right cloud is shown
ABOUT = (
    "Mistakes, most confident first",
    "Clouds of the test set that got a wrong class, ordered by the probability that the model gave to it; after them more mistakes of "
    "other cells of the confusion matrix, and of each class the right cloud that was nearest to a mistake. A number in the matrix shows "
    "the clouds of its cell.",
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


def of_cells(found: Predictions, known: Sequence[int]) -> list[int]:
    """Return rows of cells of the confusion matrix besides those that are `known`.

    First mistakes, of each cell the most confident ones, a round over the cells at a time; then of each class the right cloud with the
    lowest probability.
    """
    cells: dict[tuple[int, int], list[int]] = {}
    for row in mistakes(found, len(found.labels)):
        cells.setdefault((int(found.labels[row]), int(found.predicted[row])), []).append(row)
    rounds = [row for turn in range(OF_A_CELL) for rows in cells.values() for row in rows[turn : turn + 1]]
    wrong = [row for row in rounds if row not in set(known)][:OTHERS]
    certainty = found.probabilities.max(1)
    right = np.flatnonzero(found.predicted == found.labels)
    order = right[np.argsort(certainty[right], kind="stable")]
    nearest = order[np.unique(found.labels[order], return_index=True)[1]]
    return [*wrong, *nearest[:RIGHT].tolist()]


def cloud_item(found: Predictions, row: int) -> GalleryItem:
    """Return a row of the gallery: a cloud with its class and what it was taken for, or nearly was."""
    label, guess, said = int(found.labels[row]), int(found.predicted[row]), found.probabilities[row]
    own = said[label] if label < len(said) else 0.0
    note = f"{found.called(label)} ({100 * own:.1f} %)"
    if label != guess:
        note += f", taken for {found.called(guess)} ({100 * said[guess]:.1f} %)"
    elif len(said) > 1:
        second = int(np.argsort(said, kind="stable")[-2])
        note += f", right; next {found.called(second)} ({100 * said[second]:.1f} %)"
    return GalleryItem(
        found.names[row],
        {"input": found.points(row)},
        up_axis=found.up_axis,
        note=note,
        pair=(found.called(label), found.called(guess)),
    )


def class_section(found: Predictions) -> Section:
    """Return a table by class: recall, precision, F1, mean probability of the true class, and what it is taken for."""
    rows, shares = [], []
    predicted = found.predicted
    for label in np.unique(np.concatenate([found.labels, predicted])).tolist():
        own, guessed = found.labels == label, predicted == label
        right = int((own & guessed).sum())
        wrong = predicted[own & ~guessed]
        others, counts = np.unique(wrong, return_counts=True)
        most = f"{found.called(int(others[counts.argmax()]))} ({counts.max()})" if len(wrong) else MISSING
        known = label < found.probabilities.shape[1] and own.any()
        mean = found.probabilities[own, label].mean() if known else None
        shares.append(
            [_share(right, own.sum()), _share(right, guessed.sum()), _share(2 * right, own.sum() + guessed.sum())]
        )
        rows.append((found.called(label), most, int(own.sum()), right, *map(_percent, [*shares[-1], mean])))
    columns = [[value for value in column if value is not None] for column in zip(*shares, strict=True)]
    means = zip(("recall", "precision", "F1"), columns, strict=True)
    mean = ", ".join(f"{name} {_percent(float(np.mean(column)))} %" for name, column in means if column)
    names = ("recall", "precision", "F1", "mean probability")
    head = ("class", "most often taken for", "clouds", "right", *(f"{name}, %" for name in names))
    lead = (
        f"Means over classes: {mean}. "
        "Recall, the accuracy of a class: of its clouds, how many are given it. Precision: of the clouds that are given it, how many have "
        "it. F1: their harmonic mean. Mean probability: of the true class."
    )
    return Section("By class", f'<div class="panel sortable">{table(head, rows, text_columns=2)}</div>', lead)


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None


def _percent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.1f}"
