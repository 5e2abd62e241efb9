"""How far a long task is: a bar on a terminal, else a line each twentieth; on stderr."""

import time

from utils.errors import on_terminal, say
from utils.log import format_seconds


class Progress:
    """Count up to `total`; a total of 0 is unknown and shows lines only at the end.

    Args:
        done: counted before this process began, not taken for its speed.
    """

    def __init__(self, total: int, what: str, *, done: int = 0, unit: str = ""):
        self.total, self.what, self.done, self.unit = total, what, done, unit
        self._first, self._started, self._bar = done, time.perf_counter(), None
        if on_terminal():
            from tqdm import tqdm

            self._bar = tqdm(
                total=total or None, initial=done, desc=what, unit=unit, unit_scale=unit == "B", leave=False
            )

    def update(self, count: int = 1) -> None:
        """Count so many more as done, and show it."""
        before, self.done = self.done, self.done + count
        if self._bar is not None:
            self._bar.update(count)
        elif self.total and self.done * 20 // self.total > before * 20 // self.total:
            seconds = time.perf_counter() - self._started
            left = seconds / (self.done - self._first) * (self.total - self.done)
            say(
                f"{self.what}: {self.done:,} of {self.total:,}{f' {self.unit}' if self.unit else ''}, "
                f"{format_seconds(max(left, 0))} left"
            )

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_) -> None:
        if self._bar is not None:
            self._bar.close()
