"""What several runs of a classifier say together: the accuracy of each fold or seed, and which classes fail in which of them."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean, stdev

from tools.report.charts import Level, Series, line_chart
from tools.report.markup import MISSING, Html, Section, escape, table
from tools.report.runlog import read_predictions
from utils.config.yaml import read_yaml
from utils.errors import UserError

SCORE = re.compile("^(accuracy|instance mIoU)|linear SVM")  # names of results that are drawn
LEAD = (
    "Of the last evaluation of each run. Recall: of the clouds of a class, how many are given it; the lowest is that of one run, and "
    "leads to its report. Classes that fail come first."
)


@dataclass
class ClassRuns:
    """What runs said of the clouds of one class: run -> (clouds, right), and how often another class was given."""

    runs: dict[str, tuple[int, int]] = field(default_factory=dict)
    taken_for: Counter[str] = field(default_factory=Counter)

    @property
    def clouds(self) -> int:
        """Clouds over all runs."""
        return sum(clouds for clouds, _ in self.runs.values())

    @property
    def right(self) -> int:
        """How many of them are right."""
        return sum(right for _, right in self.runs.values())

    @property
    def lowest(self) -> tuple[str, float]:
        """The run with the lowest recall, and that recall."""
        run = min(self.runs, key=lambda name: self.runs[name][1] / self.runs[name][0])
        return run, self.runs[run][1] / self.runs[run][0]


def spread_section(results: Mapping[str, Mapping], runs: Sequence[str]) -> Section | None:
    """Return the scores of the runs as dots, with mean and sample standard deviation; None where no score has a value a run.

    Args:
        results: quantity -> {"mean", "std", "values"}, in percent, a value a run.
        runs: names, `fold<k>`, `seed<s>` or `seed<s>_fold<k>`.
    """
    x_label, places = _places(runs)
    charts = []
    for name, row in results.items():
        if not SCORE.search(name) or not len(row["values"]) == len(runs) > 1:
            continue
        series: dict[str, tuple[list[float], list[float]]] = {}
        for (curve, x), value in zip(places, row["values"], strict=True):
            xs, ys = series.setdefault(curve, ([], []))
            xs.append(x)
            ys.append(value)
        dots = [Series(curve, *pair, color=color % 4, dots=True) for color, (curve, pair) in enumerate(series.items())]
        middle, std = row["mean"], row["std"]
        levels = [Level(f"mean {middle:.2f} %", middle, color=5), Level(f"± {std:.2f} %", middle + std, color=4)]
        levels.append(Level("", middle - std, color=4))
        text = lambda value: f"{value:.2f} %"  # noqa: E731
        charts.append(line_chart(dots, title=name, x_label=x_label, y_label="%", levels=levels, text=text))
    if not charts:
        return None
    lead = "A dot is a run; dashed: the mean, and the sample standard deviation around it."
    return Section(f"Score by {x_label}", f'<div class="charts">{"".join(charts)}</div>', lead)


def _places(runs: Sequence[str]) -> tuple[str, list[tuple[str, float]]]:
    """Return what the x axis is, and for each run the name of its dots and its place: by fold, a colour a seed, else by seed."""
    found = [re.fullmatch(r"(?:seed(\d+))?_?(?:fold(\d+))?", run) for run in runs]
    for group, x_label in ((2, "fold"), (1, "seed")):
        if all(match and match[group] for match in found):
            return x_label, [(f"seed {m[1]}" if group == 2 and m[1] else "runs", float(m[group])) for m in found]
    return "run", [("runs", float(place)) for place in range(len(runs))]


def classes_section(folder: Path, runs: Sequence[str]) -> Section | None:
    """Return recall by class over the runs below a folder, lowest first; None where no run left its predictions."""
    found = read_classes(folder, runs)
    if not found:
        return None
    rows = []
    for name, one in sorted(found.items(), key=lambda pair: (pair[1].right / pair[1].clouds, pair[0])):
        shares = [right / clouds for clouds, right in one.runs.values()]
        run, lowest = one.lowest
        report = (folder / run / "report.html").exists()
        where = f"{100 * lowest:.1f} ({run})"
        if report:
            where = Html(f'{100 * lowest:.1f} (<a href="{escape(run)}/report.html">{escape(run)}</a>)')
        most = ", ".join(f"{other} ({count})" for other, count in one.taken_for.most_common(2)) or MISSING
        spread = f"{100 * stdev(shares):.1f}" if len(shares) > 1 else ""
        rows.append((name, most, len(shares), one.clouds, one.right, f"{100 * mean(shares):.1f}", spread, where))
    head = ("class", "most often taken for", "runs", "clouds", "right", "mean recall, %", "spread", "lowest recall, %")
    return Section(
        "Classes over all runs", f'<div class="panel sortable">{table(head, rows, text_columns=2)}</div>', LEAD
    )


def read_classes(folder: Path, runs: Sequence[str]) -> dict[str, ClassRuns]:
    """Read what the runs below a folder predicted, by the name of the true class; runs without predictions are left out."""
    found: dict[str, ClassRuns] = {}
    for run in runs:
        labels, guesses = read_predictions(folder / run / "predictions.txt")
        names = _class_names(folder / run / "config.yaml")
        called = lambda label, names=names: names[label] if label < len(names) else str(label)  # noqa: E731
        for label in sorted(set(labels)):
            own = [guess for true, guess in zip(labels, guesses, strict=True) if true == label]
            one = found.setdefault(called(label), ClassRuns())
            one.runs[run] = (len(own), own.count(label))
            one.taken_for.update(called(guess) for guess in own if guess != label)
    return found


def _class_names(path: Path) -> list[str]:
    """Return the class names of a run's configuration; none where it has none."""
    try:
        return list(read_yaml(path).get("class_names") or []) if path.is_file() else []
    except UserError:
        return []
