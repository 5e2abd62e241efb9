"""Read `metrics.jsonl` of a run folder, whatever state the run left it in."""

import json
import math
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

KINDS = ("step", "epoch", "svm", "val", "vote", "parts", "parts_vote", "held_out", "selected", "detection")


@dataclass(frozen=True)
class RunLog:
    """The rows of one run by kind, in order, the last one kept where a resumed run wrote a row again.

    `skipped` counts the lines that could not be read; a run killed while writing leaves one.
    """

    steps: list[dict] = field(default_factory=list)
    epochs: list[dict] = field(default_factory=list)
    svm: list[dict] = field(default_factory=list)
    val: list[dict] = field(default_factory=list)  # evaluations of a classifier, and
    vote: list[dict] = field(default_factory=list)  # those by voting
    parts: list[dict] = field(default_factory=list)  # evaluations of a part segmenter, and
    parts_vote: list[dict] = field(default_factory=list)  # those by voting
    held_out: list[dict] = field(
        default_factory=list
    )  # evaluations on clouds that are held out of the training set, and
    selected: list[dict] = field(default_factory=list)  # what the test set says of the epoch that they selected
    detection: list[dict] = field(default_factory=list)  # evaluations of a detector
    skipped: int = 0


def read_metrics(path: Path) -> RunLog:
    """Read the rows of `path`; a missing file gives an empty log, a line that is no JSON object is left out."""
    rows: dict[str, dict] = {kind: {} for kind in KINDS}
    skipped = 0
    if not path.is_file():
        return RunLog()
    with path.open(encoding="utf-8", errors="replace") as lines:
        for line in lines:
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except (ValueError, RecursionError):
                row = None
            if not isinstance(row, dict):
                skipped += 1
            elif row.get("kind") in KINDS:
                _keep_last(rows[row["kind"]], row)
    return RunLog(*(list(rows[kind].values()) for kind in KINDS), skipped=skipped)


def read_rows(path: Path, kind: str) -> list[dict]:
    """Read the rows of one more kind, sorted by epoch; none of a missing file."""
    rows: dict[str, dict] = {}
    if path.is_file():
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                row = json.loads(line)
            except (ValueError, RecursionError):
                continue
            if isinstance(row, dict) and row.get("kind") == kind:
                _keep_last(rows, row)
    return sorted(rows.values(), key=lambda row: number(row, "epoch") or 0.0)


def read_predictions(path: Path) -> tuple[list[int], list[int]]:
    """Read true and predicted classes from the `predictions.txt` of a classifier; none of a missing file, or of other lines."""
    if not path.is_file():
        return [], []
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()[1:]
    rows = [fields for line in lines if len(fields := line.split("\t")[-2:]) == 2 and all(map(str.isdecimal, fields))]
    return [int(label) for label, _ in rows], [int(guess) for _, guess in rows]


def _keep_last(rows: dict, row: dict) -> None:
    key = repr(tuple(row.get(name) for name in ("epoch", "step", "data")))
    rows.pop(key, None)  # a repeated row also moves to the end, where the resumed run wrote it
    rows[key] = row


def number(row: dict, key: str) -> float | None:
    """Return `row[key]` as a finite float, or None where it is absent, no number, NaN or infinite."""
    value = row.get(key)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    try:
        value = float(value)
    except OverflowError:  # an integer too large for a float
        return None
    return value if math.isfinite(value) else None


def curve(rows: list[dict], key: str) -> tuple[list[float], list[float]]:
    """Return (epochs, values of `key`), sorted by epoch; rows without both numbers are left out."""
    pairs = ((number(row, "epoch"), number(row, key)) for row in rows)
    pairs = sorted(pair for pair in pairs if None not in pair)
    return [x for x, _ in pairs], [y for _, y in pairs]


def step_curve(steps: list[dict], key: str) -> tuple[list[float], list[float]]:
    """Return (positions, values of `key`) of the step rows.

    The rows of epoch e are spread over e - 0.5 ... e + 0.5, so that an epoch's mean, drawn at e, is in the middle
    of the steps it summarises. Rows are spaced evenly, whether `step` counts within an epoch or over the run.
    """
    numbered = [(number(row, "epoch"), number(row, "step"), number(row, key)) for row in steps]
    numbered = sorted((row for row in numbered if row[0] is not None and row[1] is not None), key=lambda row: row[:2])
    per_epoch = Counter(epoch for epoch, _, _ in numbered)
    widest = max(per_epoch.values(), default=1)
    xs, ys, seen = [], [], Counter()
    for epoch, _, value in numbered:
        position = epoch - 0.5 + (seen[epoch] + 0.5) / widest
        seen[epoch] += 1
        if value is not None:
            xs.append(position)
            ys.append(value)
    return xs, ys


def is_untrained(row: dict) -> bool:
    """Tell whether an SVM row is that of the encoder with random weights: its epoch is written as null."""
    return "epoch" in row and row["epoch"] is None


def counted(log: RunLog) -> str:
    """Return how many rows of each kind there are, "" without any."""
    kinds = {"step": log.steps, "epoch": log.epochs, "SVM": log.svm, "validation": log.val, "vote": log.vote}
    kinds |= {"part": log.parts, "part vote": log.parts_vote, "held-out": log.held_out, "selected": log.selected}
    kinds |= {"detection": log.detection}
    text = ", ".join(f"{len(rows):,} {name}" for name, rows in kinds.items() if rows)
    return f"{text} rows" if text else ""


@dataclass(frozen=True)
class SvmCurve:
    """Linear-SVM accuracies on one data set, in percent; `random` is that of the encoder with random weights."""

    name: str
    epochs: list[float]
    accuracies: list[float]
    random: float | None

    @property
    def best(self) -> tuple[float, float] | None:
        """The (epoch, accuracy) of the first best evaluation, or None without any."""
        pairs = list(zip(self.epochs, self.accuracies, strict=True))
        return max(pairs, key=lambda pair: (pair[1], -pair[0]), default=None)


def percent(rows: list[dict]) -> float:
    """Return the factor that turns the accuracies of SVM rows into percent: they are fractions unless one exceeds 1."""
    return 1.0 if any((number(row, "accuracy") or 0) > 1 for row in rows) else 100.0


def svm_curves(rows: list[dict]) -> list[SvmCurve]:
    """Group SVM rows by `data`; a second curve has the accuracies at the C that cross-validation chose, if present."""
    scale = percent(rows)
    groups: dict[str, list[dict]] = {}
    for key, suffix in (("accuracy", ""), ("chosen_accuracy", ", C by cross-validation")):
        for row in rows:
            if (value := number(row, key)) is not None:
                name = str(row.get("data") or "linear SVM") + suffix
                groups.setdefault(name, []).append({**row, "percent": value * scale})
    curves = []
    for name, group in groups.items():
        untrained = [row["percent"] for row in group if is_untrained(row)]
        curves.append(SvmCurve(name, *curve(group, "percent"), untrained[-1] if untrained else None))
    return curves
