"""Robustness of a fine-tuned classifier: `--test --corruptions DIR` evaluates it on ModelNet40-C, corruption by corruption.

All error rates are in percent.
"""

import csv
import io
import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import fmean

from torch import nn

from datasets import CloudSet, build_dataset
from datasets.modelnet40_c import CORRUPTIONS, FAMILIES, LAYOUT, SEVERITIES, ModelNet40CConfig, present
from tools.context import RunContext
from tools.evaluate import Evaluator, check_class_names, check_classes, evaluation_set
from tools.report.markup import table
from tools.report.page import Section, write_report
from tools.results import open_output
from tools.sampling import points_needed, repeat_points
from tools.test import load_classifier
from utils.errors import UserError
from utils.files import write_atomic
from utils.reading import read_text

Errors = dict[str, dict[int, float]]  # corruption -> severity -> error rate


@dataclass
class Robustness:
    """What a classifier is worth on clean and on corrupted clouds.

    Args:
        clean: error rate on the clean test set.
        errors: of every corruption and severity that was evaluated.
        reference: error rates of a baseline; a severity that is None stands for the mean over all.
    """

    clean: float
    errors: Errors = field(default_factory=dict)
    reference: dict[str, dict[int | None, float]] | None = None

    def mean(self, corruption: str) -> float:
        """Return the mean over the severities of one corruption."""
        return fmean(self.errors[corruption].values())

    def mean_error(self, corruptions=CORRUPTIONS) -> float | None:
        """Return the mean over corruptions, each with the same weight; None where none of them was evaluated."""
        means = [self.mean(corruption) for corruption in corruptions if corruption in self.errors]
        return fmean(means) if means else None

    def corruption_error(self, corruption: str) -> float | None:
        """Return the errors on one corruption in percent of the baseline's, summed over severities; None without a baseline."""
        if self.reference is None:
            return None
        own, base = self.errors[corruption], self.reference[corruption]
        if None in base:
            return 100 * fmean(own.values()) / base[None]
        return 100 * sum(own.values()) / sum(base[severity] for severity in own)

    def mean_corruption_error(self) -> float | None:
        """Return the mean of `corruption_error` over corruptions; 100 is as good as the baseline, less is better."""
        return None if self.reference is None else fmean(self.corruption_error(name) for name in self.errors)

    def results(self) -> dict[str, float]:
        """Return error rates in percent, by what they are."""
        found = {
            "accuracy": 100 - self.clean,
            "error rate, clean": self.clean,
            "error rate, mean over corruptions": self.mean_error(),
            **{f"error rate, {name} family": self.mean_error(family) for name, family in FAMILIES.items()},
            "mean corruption error (100 = the reference)": self.mean_corruption_error(),
        }
        return {name: value for name, value in found.items() if value is not None}

    def rows(self) -> list[list[str]]:
        """Return the table, its head first: the error of each corruption by severity, their mean, and the corruption error."""
        head = ["corruption", *map(str, SEVERITIES), "mean"]
        rows = [head if self.reference is None else [*head, "corruption error"]]
        for name, errors in self.errors.items():
            values = [*(errors.get(severity) for severity in SEVERITIES), self.mean(name)]
            if self.reference is not None:
                values.append(self.corruption_error(name))
            rows.append([name, *("-" if value is None else f"{value:.2f}" for value in values)])
        return rows


def run_corruptions(run: RunContext) -> dict[str, float]:
    """Evaluate the classifier in `--ckpts` on the clean test set and on ModelNet40-C; returns percentages by what they are.

    Clouds of a corruption are thinned to the points that the classifier takes, as --test does; those that have fewer
    are taken as they are, because repeated points would take the places of neighbours, and repeated only where they
    are too few for the groups.

    Raises:
        UserError: the checkpoint is not one of this classifier whole, data are missing or damaged, or the reference
            does not fit.
    """
    config, args = run.config, run.args
    folder = Path(args.corruptions)
    found, lost = present(folder)
    reference = read_reference(Path(args.reference), found) if args.reference else None
    model = load_classifier(run)
    clean = evaluation_set(run)
    settings = [
        ModelNet40CConfig(DATA_PATH=str(folder), corruption=corruption, severity=severity)
        for corruption, severity in found
    ]
    # All files are read before the first is evaluated: the last one must not be what ends a run of hours.
    for clouds in (clean, *map(build_dataset, settings)):
        check_classes(clouds, config.model.cls_dim)
        check_class_names(config.class_names or clean.class_names, clouds, str(args.ckpts))
    evaluator = Evaluator(run, clean)
    outcome = Robustness(100 * (1 - evaluator.evaluate(model)), reference=reference)
    run.log.info(
        f"{evaluator.clouds.name} ({evaluator.clouds.subset}), clean, {len(evaluator.clouds)} clouds: error {outcome.clean:.2f} %"
    )
    if lost:
        run.log.warning(f"{folder}: lacks {len(lost)} of 75 files: {', '.join(lost)}. Expected there: {LAYOUT}")
    cells = _evaluate_all(run, model, settings, outcome)
    run.log.info("\n" + text_table(outcome.rows()))
    for name, value in outcome.results().items():
        run.log.info(f"{name}: {value:.2f} %")
    _write(run, outcome, evaluator, cells, lost)
    return outcome.results()


def _evaluate_all(
    run: RunContext, model: nn.Module, settings: list[ModelNet40CConfig], outcome: Robustness
) -> list[list]:
    """Put the errors on every file into `outcome`; returns the rows of `corruptions.csv`."""
    cells = []
    for setting in settings:
        clouds = build_dataset(setting)
        corrupted = _evaluator(run, clouds)
        error = 100 * (1 - corrupted.evaluate(model))
        outcome.errors.setdefault(setting.corruption, {})[setting.severity] = error
        stored = clouds.points.shape[1]
        cells.append([setting.corruption, setting.severity, f"{error:.4f}", len(clouds), stored, corrupted.npoints])
        run.log.info(f"{setting.corruption} {setting.severity}: error {error:.2f} % ({stored} points a cloud)")
    return cells


def _evaluator(run: RunContext, clouds: CloudSet) -> Evaluator:
    """Return the evaluator of a set whose clouds may have fewer points than the classifier takes."""
    needed = points_needed(run.config.model)
    if clouds.npoints < needed:
        clouds = replace(clouds, points=repeat_points(clouds.points, needed), npoints=needed, sampling="all")
    return Evaluator(run, clouds, npoints=min(run.config.npoints or clouds.npoints, clouds.npoints))


def read_reference(path: Path, found: list[tuple[str, int]]) -> dict[str, dict[int | None, float]]:
    """Read error rates of a baseline: a JSON file with `errors`, corruption -> severity -> percent, as `corruptions.json` has it.

    A list of five numbers stands for the severities in turn, one number for their mean.

    Raises:
        UserError: the file cannot be read, or lacks one of the corruptions and severities `found`, or an error rate
            is no percentage above 0.
    """
    try:
        errors = json.loads(read_text(path))["errors"]
        read = {name: _severities(value) for name, value in errors.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(
            f"--reference {path}: cannot be read ({type(error).__name__}: {error}); give the corruptions.json of another run, or "
            '{"errors": {"uniform": [1, 2, 3, 4, 5], ...}} with percentages'
        ) from error
    for corruption, severity in found:
        base = read.get(corruption, {})
        value = base.get(None, base.get(severity))
        if value is None:
            raise UserError(f"--reference {path}: has no error rate of {corruption} at severity {severity}; add it")
        if not 0 < value <= 100:
            raise UserError(
                f"--reference {path}: the error rate of {corruption} is {value}; it must be a percentage above 0"
            )
    return read


def _severities(value) -> dict[int | None, float]:
    if isinstance(value, dict):
        return {int(severity): float(rate) for severity, rate in value.items()}
    if isinstance(value, list):
        return dict(zip(SEVERITIES, map(float, value), strict=True))
    return {None: float(value)}


def text_table(rows: list[list[str]]) -> str:
    """Align a table for the log: names to the left, numbers to the right."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if column else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    )


def _write(run: RunContext, outcome: Robustness, evaluator: Evaluator, cells: list[list], lost: list[str]) -> None:
    """Write `corruptions.json`, `corruptions.csv` and the report into a time-stamped folder."""
    folder = open_output(run, "corruptions")
    content = {
        "unit": "percent",
        "checkpoint": str(run.args.ckpts),
        "reference": run.args.reference,
        "results": outcome.results(),
        "errors": outcome.errors,
        "missing": lost,
    }
    write_atomic(folder / "corruptions.json", lambda file: file.write((json.dumps(content, indent=1) + "\n").encode()))
    text = io.StringIO(newline="")
    head = ["corruption", "severity", "error_percent", "clouds", "points", "points_seen"]
    csv.writer(text, lineterminator="\n").writerows([head, *cells])
    write_atomic(folder / "corruptions.csv", lambda file: file.write(text.getvalue().encode()))
    head, *rows = outcome.rows()
    lead = "Error rates in percent by severity" + (f"; {len(lost)} of 75 files were missing." if lost else ".")
    path = write_report(
        folder,
        config=run.config_dict(),
        confusion=evaluator.confusion(),
        summary={name[0].upper() + name[1:]: f"{value:.2f} %" for name, value in outcome.results().items()},
        title=f"{run.config.model.NAME} on ModelNet40-C: {run.args.exp_name}",
        sections=[Section("Corruptions", table(head, rows), lead=lead)],
    )
    run.log.info(f"report: {path}")
