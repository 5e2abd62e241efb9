"""Rows of metrics that survive interruptions without gaps or doubles: `metrics.jsonl` and TensorBoard."""

import json
import logging
import math
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any

from utils.errors import UserError
from utils.event_files import ScalarFile, drop_scalars
from utils.files import RESUME, explain_write, write_atomic
from utils.reading import read_text

_LOG = logging.getLogger("m2ae.metrics")
MOST_EPOCHS = 1 << 20  # that are looked for one by one
EVALUATIONS = ("svm", "val", "vote", "parts", "parts_vote", "held_out", "detection")  # kinds of rows that an evaluation writes


class MetricsWriter:
    """Append rows to `<folder>/metrics.jsonl` and scalars to `<folder>/TFBoard/{train,test}`.

    Args:
        resume_from: (epoch, step) that comes next, of a run that is continued: rows of that step and later are dropped,
            because they will be written again. None keeps all rows.
        pending: epochs that are complete but will be evaluated again; the rows of their evaluation are dropped.
        boards: folder of the TensorBoard files, in place of `<folder>/TFBoard`.

    Raises:
        UserError: the folder cannot be written.
    """

    def __init__(
        self,
        folder: str | Path,
        resume_from: tuple[int, int] | None = None,
        *,
        pending: Collection[int] = (),
        boards: str | Path | None = None,
    ) -> None:
        self.folder = Path(folder)
        self._board_folder = self.folder / "TFBoard" if boards is None else Path(boards)
        self.path = self.folder / "metrics.jsonl"
        self._resumed = resume_from is not None
        self._resumed_past_start = self._resumed and tuple(resume_from) > (0, 0)
        self._config: dict | None = None  # that TensorBoard still gets
        self._boards: dict[str, Any] | None = {}
        self._earlier: dict[str, list[Path]] = {}  # event files of earlier processes, by split
        self._seen: set[tuple[str, str]] = set()
        self.follower: Callable[[dict], None] | None = None  # gets every row that is written
        if resume_from is not None:
            _truncate(self.path, resume_from, frozenset(pending))
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._file = self.path.open("a", encoding="utf-8")
        except OSError as error:
            raise UserError(explain_write(self.path, error, RESUME)) from error

    def write(self, row: dict) -> None:
        """Append one JSON line and flush it. Numbers that are not finite become null."""
        text = json.dumps({key: _plain(value) for key, value in row.items()}, allow_nan=False)
        try:
            self._file.write(text + "\n")
        except OSError as error:
            raise UserError(explain_write(self.path, error, RESUME)) from error
        self.flush()
        if self.follower is not None:
            self.follower(json.loads(text))

    def flush(self) -> None:
        """Bring rows and scalars to the disk."""
        try:
            self._file.flush()
            for board in (self._boards or {}).values():
                board.flush()
        except OSError as error:
            raise UserError(explain_write(self.path, error, RESUME)) from error

    def scalar(self, tag: str, value: float, step: int, split: str = "train") -> None:
        """Write a TensorBoard scalar.

        The first one of a tag in a continued run drops what earlier processes wrote of this tag at that step and later.
        """
        board = self._board(split)
        if board is None:
            return
        if self._resumed and (split, tag) not in self._seen:
            self._seen.add((split, tag))
            drop_scalars(self._earlier[split], tag, step)
        board.add_scalar(tag, value, step)

    def describe(self, config: dict) -> None:
        """Write a configuration to TensorBoard, before its first scalar; nothing in a run that is continued."""
        self._config = None if self._resumed_past_start else config

    def _write_config(self, board: ScalarFile, config: dict) -> None:
        """Write a configuration as text and as hyper-parameters."""
        import yaml
        from tensorboardX.summary import hparams

        text = yaml.safe_dump(config, sort_keys=False, allow_unicode=True)
        board.add_text("Configuration", "".join(f"    {line}\n" for line in text.splitlines()))
        values = {key: value for key, value in _flat(config) if isinstance(value, bool | int | float | str)}
        for summary in hparams(values, {"Loss/Epoch/Loss_1": 0.0}):
            board.add_summary(summary)

    def _board(self, split: str):
        """Open the TensorBoard writer of a split; None without tensorboardX, which is said once."""
        if self._boards is None:
            return None
        if split not in self._boards:
            try:
                import tensorboardX  # noqa: F401
            except ImportError:
                self._boards = None
                _LOG.warning("tensorboardX is not installed: no TensorBoard files; metrics.jsonl holds the numbers")
                return None
            folder = self._board_folder / split
            self._earlier[split] = sorted(folder.glob("events.out.tfevents.*"))
            try:
                self._boards[split] = ScalarFile(folder)
            except OSError as error:
                raise UserError(explain_write(folder, error, RESUME)) from error
            if split == "train" and self._config is not None:
                self._write_config(self._boards[split], self._config)
        return self._boards[split]

    def close(self) -> None:
        """Close all files."""
        self._file.close()
        for board in (self._boards or {}).values():
            board.close()

    def __enter__(self) -> "MetricsWriter":
        return self

    def __exit__(self, *_) -> None:
        self.close()


def _flat(config: dict, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield (dotted key, value) of nested mappings."""
    for key, value in config.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _plain(value: Any) -> Any:
    if hasattr(value, "item"):  # NumPy and torch scalars
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _truncate(path: Path, resume_from: tuple[int, int], pending: frozenset[int]) -> None:
    """Drop the rows that will be written again, a last line that was cut short, and what is no row; say which epochs are missing."""
    kept, epochs, foreign = [], set(), 0
    lines = read_text(path).split("\n") if path.exists() else []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        row = _row(line)
        if row is None:
            foreign += number < len(lines)  # the last line may have been cut by a kill
        elif _stays(row, resume_from, pending):
            kept.append(line + "\n")
            if row["kind"] == "epoch" and row.get("epoch") is not None:
                epochs.add(row["epoch"])
    missing = sorted(set(range(min(resume_from[0], MOST_EPOCHS))) - epochs)
    if foreign:
        _LOG.warning("%s: %d lines are no rows of metrics and were dropped", path, foreign)
    if missing:
        _LOG.warning("%s: has no rows of the epochs %s; the run goes on without them", path, _ranges(missing))
    if path.exists():
        write_atomic(path, lambda file: file.write("".join(kept).encode("utf-8")), RESUME)


def _row(line: str) -> dict | None:
    """Return the row of a line; None where it is not one that this program writes."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(row, dict) or not isinstance(row.get("kind"), str):
        return None
    epoch, step = row.get("epoch"), row.get("step", 0)
    whole = all(
        isinstance(value, int) and not isinstance(value, bool) for value in (0 if epoch is None else epoch, step)
    )
    return row if whole else None


def _ranges(numbers: list[int]) -> str:
    """Return "0-2, 5" for 0, 1, 2, 5."""
    parts: list[list[int]] = []
    for number in numbers:
        if parts and number == parts[-1][1] + 1:
            parts[-1][1] = number
        else:
            parts.append([number, number])
    shown = [str(low) if low == high else f"{low}-{high}" for low, high in parts[:8]]
    return ", ".join(shown) + (" ..." if len(parts) > 8 else "")


def read_rows(path: Path) -> list[dict]:
    """Return the rows of a file of metrics; lines that are none are left out."""
    if not path.is_file():
        return []
    rows = (_row(line) for line in read_text(path).split("\n") if line.strip())
    return [row for row in rows if row is not None]


def _stays(row: dict, resume_from: tuple[int, int], pending: frozenset[int]) -> bool:
    epoch, step = resume_from
    if row.get("epoch") is None:  # evaluated before training
        return resume_from > (0, 0)
    if row["kind"] in EVALUATIONS and row["epoch"] in pending:
        return False
    if row["epoch"] == epoch and row["kind"] == "step":
        return row.get("step", 0) < step
    return row["epoch"] < epoch
