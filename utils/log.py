"""What a run says: lines on the console and in a file, a progress bar, and rows of metrics."""

import logging
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import TypeVar

from utils.errors import UserError, on_terminal, printable
from utils.metrics_log import MetricsWriter

__all__ = ["Logger", "MetricsWriter", "Progress", "format_seconds", "track"]

_FORMAT = "%(asctime)s %(message)s"
_HANDLER = "m2ae"  # name of the handlers of a Logger
SAY_EVERY = 10.0  # seconds between two lines of `track`
T = TypeVar("T")


class _ConsoleHandler(logging.Handler):
    """Write to stderr, above a progress bar where one is shown."""

    def emit(self, record: logging.LogRecord) -> None:
        if getattr(record, "file_only", False):
            return
        try:
            line = printable(self.format(record))
            if on_terminal():
                from tqdm import tqdm

                tqdm.write(line, file=sys.stderr)
            elif sys.stderr is not None:
                sys.stderr.write(line + "\n")
                sys.stderr.flush()
        except (OSError, ValueError):  # A closed pipe must not end the run.
            self.handleError(record)


@contextmanager
def console(level: int = logging.INFO) -> Iterator[None]:
    """Print what `m2ae.*` logs on stderr, while a command runs that has no folder for a log."""
    log = logging.getLogger("m2ae")
    handler, before = _ConsoleHandler(), log.level
    log.addHandler(handler)
    log.setLevel(level)
    try:
        yield
    finally:
        log.removeHandler(handler)
        log.setLevel(before)


class Logger:
    """Log to `<folder>/<YYYYmmdd_HHMMSS>.log` and to stderr, on process 0; other processes say nothing.

    Records of the standard logging module arrive there too: warnings of any library, and `m2ae.*` from level info on.
    There is one log at a time: a new one takes the place of one that was not closed.

    Raises:
        UserError: the folder cannot be written.
    """

    def __init__(self, folder: str | Path, rank: int = 0):
        self.path: Path | None = None
        self._log = logging.getLogger("m2ae")
        self._log.setLevel(logging.INFO)
        self._handlers: list[logging.Handler] = []
        for handler in [h for h in logging.getLogger().handlers if h.name == _HANDLER]:
            logging.getLogger().removeHandler(handler)
            handler.close()
        if rank != 0:
            self._attach(logging.NullHandler())
            return
        folder = Path(folder)
        self.path = folder / f"{datetime.now():%Y%m%d_%H%M%S}.log"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            file = logging.FileHandler(self.path, encoding="utf-8", errors="backslashreplace")
        except OSError as error:
            reason = error.strerror or error
            raise UserError(
                f"cannot write the log in {folder}: {reason}; choose a folder that can be written"
            ) from error
        self._attach(file)
        self._attach(_ConsoleHandler())

    def _attach(self, handler: logging.Handler) -> None:
        handler.name = _HANDLER
        handler.setFormatter(logging.Formatter(_FORMAT, "%Y-%m-%d %H:%M:%S"))
        logging.getLogger().addHandler(handler)
        self._handlers.append(handler)

    def info(self, message: str, *, file_only: bool = False) -> None:
        """Log a line."""
        self._log.info("%s", message, extra={"file_only": file_only})

    def warning(self, message: str) -> None:
        """Log a warning."""
        self._log.warning("%s", message)

    def error(self, message: str) -> None:
        """Log an error."""
        self._log.error("%s", message)

    def progress(self, total: int, description: str = "", *, done: int = 0) -> "Progress":
        """Return a progress display of `total` steps, `done` of them already behind."""
        return Progress(total, description, done=done, log=self if self.path else None)

    def close(self) -> None:
        """Close the file and stop listening to the logging module."""
        for handler in self._handlers:
            logging.getLogger().removeHandler(handler)
            handler.close()
        self._handlers.clear()

    def __enter__(self) -> "Logger":
        return self

    def __exit__(self, *_) -> None:
        self.close()


class Progress:
    """How far an epoch is: a bar where stderr is a terminal, a line at each update otherwise.

    The lines go to the log file in both cases.

    Args:
        total: steps of the whole.
        done: steps that were done before this process began.
        log: where lines go; None shows nothing, as processes other than the first do.
    """

    def __init__(self, total: int, description: str = "", *, done: int = 0, log: Logger | None = None):
        self.total, self.done, self.description = total, done, description
        self.samples_per_second = 0.0
        self._log, self._first, self._samples = log, done, 0
        self._started = time.perf_counter()
        self._bar = None
        if log is not None and on_terminal():
            from tqdm import tqdm

            self._bar = tqdm(total=total, initial=done, desc=description, dynamic_ncols=True, leave=False)

    def update(self, n: int = 1, *, samples: int = 0, run_left: float | None = None, **fields: float) -> None:
        """Count `n` steps with `samples` clouds, and show `fields` (loss, lr ...) with the speed and the time left.

        Call it at the log interval: values must be on the host by then.

        Args:
            run_left: seconds left of the whole, of which this is a part.
        """
        self.done += n
        self._samples += samples
        seconds = max(time.perf_counter() - self._started, 1e-9)
        self.samples_per_second = self._samples / seconds
        if self._log is None:
            return
        shown = {name: f"{value:.4g}" for name, value in fields.items()}
        if self._samples:
            shown["samples/s"] = f"{self.samples_per_second:.0f}"
        left = format_seconds(seconds / max(self.done - self._first, 1) * max(self.total - self.done, 0)) + " left"
        if run_left is not None:
            left += f" of the epoch, {format_seconds(run_left)} of the run"
        if self._bar is not None:
            more = {} if run_left is None else {"run": f"{format_seconds(run_left)} left"}
            self._bar.set_postfix({**shown, **more}, refresh=False)
            self._bar.update(n)
        line = f"{self.description} [{self.done}/{self.total}] " + ", ".join(f"{k} {v}" for k, v in shown.items())
        self._log.info(f"{line}, {left}", file_only=self._bar is not None)

    def close(self) -> None:
        """End the line of progress."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_) -> None:
        self.close()


def track(items: Iterable[T], description: str, total: int | None = None) -> Iterator[T]:
    """Yield items, and show how far this phase of a command is: a bar on a terminal, else a line every `SAY_EVERY` seconds.

    Phases that are over by then say nothing, nor do processes that have no log on the console.

    Args:
        total: number of the items; None = their length.
    """
    total = len(items) if total is None else total
    log, started = logging.getLogger("m2ae"), time.perf_counter()
    said, bar = started, None
    listening = any(isinstance(handler, _ConsoleHandler) for handler in [*logging.getLogger().handlers, *log.handlers])
    if listening and on_terminal() and threading.current_thread() is threading.main_thread():
        from tqdm import tqdm

        bar = tqdm(total=total, desc=description, dynamic_ncols=True, leave=False, delay=1)
    try:
        for done, item in enumerate(items, start=1):
            yield item
            now = time.perf_counter()
            if bar is not None:
                bar.update()
            if listening and now - said >= SAY_EVERY and done < total:
                said, left = now, format_seconds((now - started) / done * (total - done))
                log.info(f"{description} [{done}/{total}], {left} left", extra={"file_only": bar is not None})
    finally:
        if bar is not None:
            bar.close()


def format_seconds(seconds: float) -> str:
    """Return "1:02:03" or "2:03"."""
    minutes, seconds = divmod(int(seconds + 0.5), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
