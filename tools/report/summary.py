"""The page of several runs of one command (`--seeds`, `--fold all`): mean and spread, curves over each other, links to each report."""

from collections.abc import Mapping
from pathlib import Path

from tools.report.charts import Series, line_chart
from tools.report.folds import classes_section, spread_section
from tools.report.markup import Html, Section, asset, cards, escape, table
from tools.report.page import page
from tools.report.runlog import RunLog, curve, percent, read_metrics
from utils.errors import UserError
from utils.files import write_atomic

# What is drawn over the epochs: rows of a log, key, title, and whether the values are fractions.
CURVES = (
    ("epochs", "loss", "Training loss", False),
    ("svm", "accuracy", "Linear SVM accuracy, %", True),
    ("val", "accuracy", "Accuracy, %", True),
    ("parts", "instance_miou", "Instance mIoU, %", True),
    ("detection", "ap25", "AP25, %", True),
    ("held_out", "accuracy", "Accuracy on held-out clouds, %", True),
)
COLORS = 6


def write_summary(folder: Path, results: Mapping[str, Mapping], runs: list[str], *, title: str) -> Path:
    """Write `summary.html` into the folder above the runs and return its path.

    Args:
        folder: has a folder for each run, named as in `runs`, with its `metrics.jsonl` and `report.html` where there are any.
        results: quantity -> {"mean", "std", "values"}, in percent, a value a run.

    Raises:
        UserError: the page cannot be written.
    """
    logs = {run: read_metrics(folder / run / "metrics.jsonl") for run in runs}
    shown = [
        (name, f"{row['mean']:.2f} ± {row['std']:.2f} %", f"{len(row['values'])} runs") for name, row in results.items()
    ]
    text = page(
        title,
        subtitle=f"{len(runs)} runs: {', '.join(runs)}",
        cards=cards(shown),
        sections=[
            *filter(None, (spread_section(results, runs), classes_section(folder, runs))),
            _table(folder, results, runs),
            *curve_sections(logs),
        ],
        script=asset("table.js"),
    )
    try:
        write_atomic(folder / "summary.html", lambda file: file.write(text.encode("utf-8")))
    except OSError as error:
        raise UserError(f"summary: cannot write {folder / 'summary.html'}: {error.strerror or error}") from error
    return folder / "summary.html"


def _table(folder: Path, results: Mapping[str, Mapping], runs: list[str]) -> Section:
    names = list(results)
    rows = []
    for place, run in enumerate(runs):
        report = (folder / run / "report.html").exists()
        name = Html(f'<a href="{escape(run)}/report.html">{escape(run)}</a>') if report else run
        values = (row["values"][place] if place < len(row["values"]) else None for row in results.values())
        rows.append((name, *("" if value is None else f"{value:.2f}" for value in values)))
    for label, key in (("mean", "mean"), ("sample standard deviation", "std")):
        rows.append((label, *(f"{results[name][key]:.2f}" for name in names)))
    lead = "In percent. A name leads to the report of the run."
    return Section("Results", f'<div class="panel">{table(("run", *names), rows)}</div>', lead)


def curve_sections(logs: Mapping[str, RunLog]) -> list[Section]:
    """Return the curves of several runs, by name, over each other; none where no run has any."""
    charts = []
    for kind, key, title, shares in CURVES:
        series = []
        for color, (run, log) in enumerate(logs.items()):
            rows = getattr(log, kind)
            epochs, values = curve(rows, key)
            scale = percent(rows) if shares else 1.0
            series.append(Series(run, epochs, [scale * value for value in values], color=color % COLORS))
        if any(len(one.xs) for one in series):
            charts.append(line_chart(series, title=title, floor=0 if shares else None, log_y=False if shares else None))
    return [Section("Curves", f'<div class="charts">{"".join(charts)}</div>')] if charts else []
