"""What the report says about the course of a run: summary cards, curves, evaluations, timing."""

from collections.abc import Mapping, Sequence
from statistics import median

from tools.report.charts import Level, Mark, Series, line_chart
from tools.report.markup import MISSING, Section, cards, duration, short, table
from tools.report.runlog import RunLog, SvmCurve, curve, is_untrained, number, percent, step_curve, svm_curves

PART_SCORES = {"instance_miou": "instance mIoU", "class_miou": "class mIoU", "accuracy": "point accuracy"}
DETECTION_SCORES = {"ap25": "AP25", "ap50": "AP50"}
PICKED = "The best epoch is selected on the test set that it is reported on, which favours it; the last epoch is not selected."
LONG_TABLE = 40  # rows; longer tables are folded


def summary_cards(log: RunLog, *, seed: object = None, summary: Mapping[str, object] | None = None) -> str:
    """Return the cards on top: those of `summary` first, then what the rows of the run tell."""
    entries = [(label, str(text), "") for label, text in (summary or {}).items()]
    entries += _scored_cards(log.parts, dict(list(PART_SCORES.items())[:2]))
    entries += _scored_cards(log.detection, DETECTION_SCORES)
    curves = svm_curves(log.svm)
    for svm in curves[:1]:
        entries += _svm_cards(svm)
    entries += _accuracy_cards(log) + _selected_cards(log)
    epochs, losses = curve(log.epochs, "loss")
    if losses:
        entries.append(("Final loss", short(losses[-1]), f"mean of epoch {epochs[-1]:.0f}"))
    seconds = _column(log, "seconds")
    if log.epochs:
        total = f"{duration(sum(seconds))} in all" if seconds else ""
        entries.append(("Epochs", f"{len(log.epochs):,}", total))
    if seconds:
        entries.append(("Time per epoch", duration(median(seconds)), "median"))
    if speed := _column(log, "samples_per_second"):
        entries.append(("Throughput", f"{short(median(speed), 3)} / s", "samples, median over epochs"))
    if memory := _column(log, "memory_mb"):
        entries.append(("Peak memory", _megabytes(max(memory)), ""))
    if seed is not None:
        entries.append(("Seed", str(seed), ""))
    return cards(entries) if entries else ""


def curves_section(log: RunLog) -> Section:
    """Return loss, accuracy, learning rate and speed over the epochs."""
    svm = svm_curves(log.svm)
    charts = [_loss_chart(log)]
    if log.parts:
        charts.insert(0, _parts_chart(log))
    if svm:
        charts.append(_svm_chart(svm))
    if log.val or (log.held_out and not (log.svm or log.parts)):
        charts.append(_accuracy_chart(log))
    rate = step_curve(log.steps, "lr")
    rate = rate if rate[0] else curve(log.epochs, "lr")
    charts.append(line_chart([Series("learning rate", *rate, color=2)], title="Learning rate", floor=0))
    speed = [
        Series("steps", *step_curve(log.steps, "samples_per_second"), color=3, thin=True),
        Series("epochs", *curve(log.epochs, "samples_per_second"), color=3),
    ]
    charts.append(line_chart(speed, title="Throughput", y_label="samples per second", floor=0))
    return Section("Curves", f'<div class="charts">{"".join(charts)}</div>')


def svm_section(log: RunLog) -> Section | None:
    """Return best, last and untrained accuracy per data set and every evaluation, or None without evaluations."""
    curves = svm_curves(log.svm)
    if not curves:
        return None
    rows = []
    for svm in curves:
        best = f"{svm.best[1]:.2f} (epoch {svm.best[0]:.0f})" if svm.best else MISSING
        last = f"{svm.accuracies[-1]:.2f} (epoch {svm.epochs[-1]:.0f})" if svm.epochs else MISSING
        rows.append((svm.name, last, MISSING if svm.random is None else f"{svm.random:.2f}", best))
    body = _panel(table(("data set", "last, %", "random weights, %", "best, %"), rows))
    scale = percent(log.svm)

    def accuracy(row: dict, key: str) -> str:
        value = number(row, key)
        return MISSING if value is None else f"{scale * value:.2f}"

    every = [
        (
            row.get("data", ""),
            "random weights" if is_untrained(row) else row.get("epoch", MISSING),
            accuracy(row, "accuracy"),
            short(number(row, "C")),
            accuracy(row, "chosen_accuracy"),
            short(number(row, "chosen_C")),
            duration(number(row, "seconds")),
        )
        for row in log.svm
    ]
    headers = ("data set", "epoch", "accuracy, %", "C", "with C by cross-validation, %", "that C", "time")
    details = table(headers, every)
    body += f'<details class="panel"><summary>All {len(every)} evaluations</summary>{details}</details>'
    return Section("Linear SVM", body, PICKED)


def parts_section(log: RunLog) -> Section | None:
    """Return every evaluation of a part segmenter, without and with voting, or None without any."""
    if not log.parts:
        return None
    votes = {row.get("epoch"): row for row in log.parts_vote}
    headers = ["epoch", *(f"{name}, %" for name in PART_SCORES.values())]
    rows = [[row.get("epoch", MISSING), *(_percent(number(row, key)) for key in PART_SCORES)] for row in log.parts]
    if votes:
        headers.append("instance mIoU with voting, %")
        for shown, row in zip(rows, log.parts, strict=True):
            shown.append(_percent(number(votes.get(row.get("epoch"), {}), "mean")))
    return Section("Mean IoU", _listed(headers, rows), PICKED)


def accuracy_section(log: RunLog) -> Section | None:
    """Return every evaluation of a classifier, without and with voting, or None without any."""
    if not log.val:
        return None
    votes = {row.get("epoch"): row for row in log.vote}
    headers = ["epoch", "accuracy, %", "time"]
    rows = [
        [row.get("epoch", MISSING), _percent(number(row, "accuracy")), duration(number(row, "seconds"))]
        for row in log.val
    ]
    if votes:
        headers[2:2] = ["with voting, %", "spread over rounds", "rounds"]
        for shown in rows:
            vote = votes.get(shown[0], {})
            spread = f"{100 * (number(vote, 'std') or 0):.2f}" if vote else MISSING
            shown[2:2] = [_percent(number(vote, "mean")), spread, vote.get("rounds", MISSING)]
    return Section("Accuracy", _listed(headers, rows), PICKED)


def timing_section(log: RunLog) -> Section | None:
    """Return one line per epoch with loss, learning rate, time, speed and memory, or None without epochs."""
    if not log.epochs:
        return None
    rows = [
        (
            row.get("epoch", MISSING),
            _loss(number(row, "loss")),
            short(number(row, "lr"), 3),
            duration(number(row, "seconds")),
            short(number(row, "samples_per_second"), 3),
            _megabytes(number(row, "memory_mb")),
        )
        for row in log.epochs
    ]
    headers = ("epoch", "loss", "learning rate", "time", "samples per second", "peak memory")
    return Section("Epochs, time and memory", _listed(headers, rows))


def _listed(headers: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Return a table in a panel, folded where it is long."""
    listed = table(headers, rows)
    if len(rows) <= LONG_TABLE:
        return _panel(listed)
    return f'<details class="panel"><summary>All {len(rows)} rows</summary>{listed}</details>'


def _svm_cards(svm: SvmCurve) -> list[tuple[str, str, str]]:
    entries = []
    if svm.best:
        gain = "" if svm.random is None else f", {svm.best[1] - svm.random:+.2f} over random"
        remark = f"{svm.name}, epoch {svm.best[0]:.0f}, selected on the test set{gain}"
        entries.append(("Best linear SVM", f"{svm.best[1]:.2f} %", remark))
        entries.append(("Last linear SVM", f"{svm.accuracies[-1]:.2f} %", f"{svm.name}, epoch {svm.epochs[-1]:.0f}"))
    if svm.random is not None:
        entries.append(("Random weights", f"{svm.random:.2f} %", f"{svm.name}, same SVM"))
    return entries


def _scored_cards(rows: list[dict], names: Mapping[str, str]) -> list[tuple[str, str, str]]:
    """Return the last value of each score, and the best one of the first, which selects the epoch."""
    entries = []
    for key, name in names.items():
        epochs, values = curve(rows, key)
        if not values:
            continue
        entries.append((f"Last {name}", f"{100 * values[-1]:.2f} %", f"epoch {epochs[-1]:.0f}"))
        if key == next(iter(names)):
            place = values.index(max(values))
            remark = f"epoch {epochs[place]:.0f}, selected on the test set"
            entries.append((f"Best {name}", f"{100 * values[place]:.2f} %", remark))
    return entries


def _accuracy_cards(log: RunLog) -> list[tuple[str, str, str]]:
    entries = []
    for rows, key, name in ((log.val, "accuracy", "accuracy"), (log.vote, "mean", "accuracy with voting")):
        epochs, values = curve(rows, key)
        if values:
            place = values.index(max(values))
            best = f"{epochs[place]:.0f}, selected on the test set"
            entries.append((f"Last {name}", f"{100 * values[-1]:.2f} %", f"epoch {epochs[-1]:.0f}"))
            entries.append((f"Best {name}", f"{100 * values[place]:.2f} %", f"epoch {best}"))
    return entries


def _selected_cards(log: RunLog) -> list[tuple[str, str, str]]:
    """Return the score on the test set of the epoch that held-out clouds selected."""
    for row in log.selected[-1:]:
        key = "instance_miou" if "instance_miou" in row else "accuracy"
        remark = f"epoch {row.get('epoch', MISSING)}" + (f", C {row['C']:g}" if number(row, "C") is not None else "")
        return [("Test set, epoch selected on held-out clouds", f"{_percent(number(row, key))} %", remark)]
    return []


def _parts_chart(log: RunLog) -> str:
    """Return the scores of part segmentation over the epochs; scores that are equal everywhere share a curve."""
    names: dict[tuple, list[str]] = {}
    for key, name in PART_SCORES.items():
        epochs, values = curve(log.parts, key)
        names.setdefault((tuple(epochs), tuple(100 * value for value in values)), []).append(name)
    series = [Series(" = ".join(same), *pair, color=color) for color, (pair, same) in enumerate(names.items())]
    epochs, values = curve(log.parts_vote, "mean")
    series.append(Series("instance mIoU with voting", epochs, [100 * value for value in values], color=3))
    return line_chart(series, title="Part segmentation", y_label="%", floor=0, text=lambda value: f"{value:.2f} %")


def _accuracy_chart(log: RunLog) -> str:
    shown = {
        "training, augmented": (log.epochs, "accuracy"),
        "test set": (log.val, "accuracy"),
        "test set, with voting": (log.vote, "mean"),
        "held-out clouds": (log.held_out, "accuracy"),
    }
    series = []
    for color, (name, (rows, key)) in enumerate(shown.items()):
        epochs, values = curve(rows, key)
        series.append(Series(name, epochs, [100 * value for value in values], color=color))
    return line_chart(series, title="Accuracy", y_label="accuracy, %", floor=0, text=lambda value: f"{value:.2f} %")


def _loss_chart(log: RunLog) -> str:
    series = [
        Series("steps", *step_curve(log.steps, "loss"), color=0, thin=True),
        Series("epoch mean", *curve(log.epochs, "loss"), color=0),
    ]
    return line_chart(series, title="Training loss", y_label="loss", log_y=None)


def _svm_chart(curves: list[SvmCurve]) -> str:
    series = [Series(svm.name, svm.epochs, svm.accuracies, color=(i + 1) % 6) for i, svm in enumerate(curves)]
    untrained = [(i, svm.random) for i, svm in enumerate(curves) if svm.random is not None]
    # One entry in the legend stands for all dashed lines; each has the colour of its curve.
    levels = [Level("random weights" if n == 0 else "", y, color=(i + 1) % 6) for n, (i, y) in enumerate(untrained)]
    marks = [
        Mark(*svm.best, f"best {svm.best[1]:.2f} %", color=(i + 1) % 6) for i, svm in enumerate(curves[:1]) if svm.best
    ]
    return line_chart(
        series, title="Linear SVM accuracy", y_label="accuracy, %", levels=levels, marks=marks, floor=0,
        text=lambda value: f"{value:.2f} %",
    )  # fmt: skip


def _column(log: RunLog, key: str) -> list[float]:
    return [value for row in log.epochs if (value := number(row, key)) is not None]


def _percent(value: float | None) -> str:
    return MISSING if value is None else f"{100 * value:.2f}"


def _loss(value: float | None) -> str:
    return MISSING if value is None else f"{value:#.5g}"


def _megabytes(value: float | None) -> str:
    if value is None:
        return MISSING
    return f"{value / 1024:.1f} GiB" if value >= 1024 else f"{value:.0f} MiB"


def _panel(content: str) -> str:
    return f'<div class="panel">{content}</div>'
