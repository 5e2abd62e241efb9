"""Rows of runs: grouped over seeds and folds, filtered, sorted, as text."""

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tools.summary_runs import Run, differing
from utils.errors import UserError, suggest

HEADERS = {
    "method": "method",
    "task": "task",
    "data": "data",
    "score": "score",
    "seeds": "seeds",
    "last": "last epoch",
    "best": "best epoch (selected on the test set)",
    "chosen": "last epoch, C cross-validated",
    "selected": "epoch selected on held-out clouds",
    "held_out": "on the held-out clouds",
    "untrained": "random weights",
    "others": "further scores",
    "minutes": "minutes",
    "differs": "differs in",
    "note": "note",
    "folder": "folder",
}
NUMBERS = ("last", "best", "chosen", "selected", "held_out", "untrained", "minutes")
# Below the folder of a command, those of its seeds and folds.
PARTS = ("seed", "fold")


@dataclass(frozen=True)
class Row:
    """Runs that differ in seed or fold alone, in order, and the keys in which they differ from the others."""

    runs: list[Run]
    differs: str

    def values(self, column: str) -> list[float]:
        """Return the numbers of a column, one a run that has one."""
        return [value for run in self.runs if (value := getattr(run, column)) is not None]

    def cell(self, column: str) -> str:
        """Return a column as text."""
        first = self.runs[0]
        if column in NUMBERS:
            return _number(self.values(column), digits=1 if column == "minutes" else 2)
        if column == "others":
            return self._others()
        if column == "seeds":
            return ", ".join(dict.fromkeys("?" if run.seed is None else str(run.seed) for run in self.runs))
        if column == "differs":
            return self.differs
        if column == "folder":
            return (first.folder if len(self.runs) == 1 else first.folder.parent).as_posix()
        if column == "note":
            return "; ".join(dict.fromkeys(run.note for run in self.runs if run.note))
        return str(getattr(first, column))

    def _others(self) -> str:
        """Return the further scores, each with its mean and spread."""
        names = dict.fromkeys(name for run in self.runs for name in run.others)
        numbers = {name: [run.others[name] for run in self.runs if name in run.others] for name in names}
        return ", ".join(f"{name} {_number(values, digits=2)}" for name, values in numbers.items())


def group(runs: list[Run], *, each: bool = False) -> list[Row]:
    """Return rows of runs: those of one command with several seeds or folds are one."""
    differs = differing(runs)
    rows: dict[object, list[Run]] = {}
    for run in runs:
        several = run.folder.name.startswith(PARTS) and not each
        rows.setdefault((run.folder.parent, differs[run.folder]) if several else run.folder, []).append(run)
    return [Row(found, differs[found[0].folder]) for found in rows.values()]


def filter_rows(rows: list[Row], conditions: Sequence[str]) -> list[Row]:
    """Return the rows that meet each "COLUMN=TEXT".

    Raises:
        UserError: a condition without "=", or of a column or key that no run has.
    """
    for condition in conditions:
        name, equals, text = condition.partition("=")
        known = [*HEADERS, *dict.fromkeys(key for row in rows for run in row.runs for key in run.keys)]
        if not equals or name not in known:
            raise UserError(f"--filter {condition}: expected COLUMN=TEXT; {suggest(name, known)}")
        rows = [row for row in rows if text.lower() in _searched(row, name).lower()]
    return rows


def _searched(row: Row, name: str) -> str:
    return row.cell(name) if name in HEADERS else str(row.runs[0].keys.get(name, ""))


def sort_rows(rows: list[Row], column: str | None) -> list[Row]:
    """Return the rows by a column, highest first, without a number last; None leaves their order.

    Raises:
        UserError: there is no such column.
    """
    if column is None:
        return rows
    if column not in HEADERS:
        raise UserError(f"--sort {column}: is no column; {suggest(column, HEADERS)}")
    key: Callable[[Row], object] = lambda row: row.cell(column)  # noqa: E731
    if column in NUMBERS:
        key = lambda row: -statistics.mean(row.values(column)) if row.values(column) else float("inf")  # noqa: E731
    return sorted(rows, key=key)


def table(rows: list[Row]) -> tuple[list[str], list[list[str]]]:
    """Return headers and cells; columns that are empty everywhere are left out."""
    columns = [column for column in HEADERS if any(row.cell(column) for row in rows)]
    return [HEADERS[column] for column in columns], [[row.cell(column) for column in columns] for row in rows]


def _number(values: list[float], digits: int) -> str:
    if not values:
        return ""
    mean = f"{statistics.mean(values):.{digits}f}"
    return mean if len(values) == 1 else f"{mean} ± {statistics.stdev(values):.{digits}f}"
