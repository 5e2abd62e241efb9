"""What the report says of the epoch that counts: which are known, how each was chosen, and which one a table may print."""

from collections.abc import Callable

from tools.report.markup import MISSING, Section, table
from tools.report.runlog import RunLog, curve, number

# What epochs are selected by.
SCORES = (("svm", "accuracy"), ("val", "accuracy"), ("parts", "instance_miou"), ("detection", "ap25"))
LEAD = (
    "The best epoch is selected on the test set, which favours it: published tables print it, a comparison should not. The epoch that "
    "held-out clouds of the training set selected, and the last one, may stand in a table as they are."
)


def selection_section(log: RunLog) -> Section | None:
    """Return last, best and selected epoch with their scores on both sets, or None where the test set was not evaluated."""
    rows, key = next(((rows, key) for kind, key in SCORES if (rows := getattr(log, kind))), (log.selected, _key(log)))
    epochs, values = curve(rows, key)
    held_out = dict(zip(*curve(log.held_out, key), strict=True))
    if not values and not log.selected:
        return None
    shown = []
    if rows is not log.selected:
        shown.append(("last epoch", epochs[-1], values[-1], "yes"))
        if len(values) > 1:
            best = values.index(max(values))
            shown.append(("best epoch, selected on the test set", epochs[best], values[best], "as such only"))
    for row in log.selected[-1:]:
        C = number(row, "C")
        name = f"epoch{'' if C is None else f' and C ({C:g})'} selected on held-out clouds"
        shown.append((name, number(row, "epoch"), number(row, key), "yes"))
    percent = _percent(values)
    cells = [
        (name, f"{epoch:.0f}", percent(value), percent(held_out.get(epoch)), printed)
        for name, epoch, value, printed in shown
    ]
    headers = ("which", "epoch", "test set, %", "held-out clouds, %", "may stand in a table")
    return Section("Which epoch counts", f'<div class="panel">{table(headers, cells)}</div>', LEAD)


def _key(log: RunLog) -> str:
    return "instance_miou" if any("instance_miou" in row for row in log.selected) else "accuracy"


def _percent(values: list[float]) -> Callable[[float | None], str]:
    scale = 1.0 if any(value > 1 for value in values) else 100.0
    return lambda value: MISSING if value is None else f"{scale * value:.2f}"
