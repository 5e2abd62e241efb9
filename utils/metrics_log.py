"""Rows of metrics that survive interruptions without gaps or doubles: `metrics.jsonl` and TensorBoard."""

import json
import logging
import math
import time
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from utils.errors import UserError
from utils.event_files import drop_scalars
from utils.files import explain_write, write_atomic

_LOG = logging.getLogger("m2ae.metrics")
JUDGEMENTS = ("svm", "val", "vote", "parts", "parts_vote")  # kinds of rows that an evaluation writes


class MetricsWriter:
    """Append rows to `<folder>/metrics.jsonl` and scalars to `<folder>/TFBoard/{train,test}`.

    Args:
        resume_from: (epoch, step) that comes next, of a run that is continued: rows of that step and later are dropped,
            because they will be written again. None keeps all rows.
        pending: epochs that are complete but will be judged again; the rows of their judgement are dropped.
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
        self._boards: dict[str, Any] | None = {}
        self._earlier: dict[str, list[Path]] = {}  # event files of earlier processes, by split
        self._seen: set[tuple[str, str]] = set()
        if resume_from is not None and self.path.exists():
            _truncate(self.path, resume_from, frozenset(pending))
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._file = self.path.open("a", encoding="utf-8")
        except OSError as error:
            raise UserError(explain_write(self.path, error)) from error

    def write(self, row: dict) -> None:
        """Append one JSON line and flush it. Numbers that are not finite become null."""
        text = json.dumps({key: _plain(value) for key, value in row.items()}, allow_nan=False)
        try:
            self._file.write(text + "\n")
            self._file.flush()
            for board in (self._boards or {}).values():
                board.flush()
        except OSError as error:
            raise UserError(explain_write(self.path, error)) from error

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
        """Write a configuration to TensorBoard, as text and as hyper-parameters; nothing in a run that is continued."""
        board = None if self._resumed_past_start else self._board("train")
        if board is None:
            return
        import yaml
        from tensorboardX.summary import hparams

        text = yaml.safe_dump(config, sort_keys=False, allow_unicode=True)
        board.add_text("Configuration", "".join(f"    {line}\n" for line in text.splitlines()))
        values = {key: value for key, value in _flat(config) if isinstance(value, bool | int | float | str)}
        for summary in hparams(values, {"Loss/Epoch/Loss_1": 0.0}):
            board.file_writer.add_summary(summary)

    def _board(self, split: str):
        """Open the TensorBoard writer of a split; None without tensorboardX, which is said once."""
        if self._boards is None:
            return None
        if split not in self._boards:
            try:
                from tensorboardX import SummaryWriter
            except ImportError:
                self._boards = None
                _LOG.warning("tensorboardX is not installed: no TensorBoard files; metrics.jsonl holds the numbers")
                return None
            folder = self._board_folder / split
            self._earlier[split] = sorted(folder.glob("events.out.tfevents.*"))
            # Without the suffix a second writer within one second would overwrite the file of the first.
            self._boards[split] = SummaryWriter(str(folder), flush_secs=10, filename_suffix=f".{time.time_ns()}")
        return self._boards[split]

    def close(self) -> None:
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
    """Drop the rows that will be written again, and a last line that was cut short."""
    kept = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict) and _stays(row, resume_from, pending):
            kept.append(line + "\n")
    write_atomic(path, lambda file: file.write("".join(kept).encode("utf-8")))


def _stays(row: dict, resume_from: tuple[int, int], pending: frozenset[int]) -> bool:
    epoch, step = resume_from
    if row.get("epoch") is None:  # judged before training
        return resume_from > (0, 0)
    if row.get("kind") in JUDGEMENTS and row["epoch"] in pending:
        return False
    if row["epoch"] == epoch and row.get("kind") == "step":
        return row.get("step", 0) < step
    return row["epoch"] < epoch
