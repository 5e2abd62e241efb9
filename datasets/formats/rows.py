"""Rows of numbers in text, with rows of different lengths, without a Python loop over them.

Legend: T numbers, L lines that are not blank.
"""

import re
import warnings
from dataclasses import dataclass

import numpy as np

_COMMENT = re.compile(rb"#[^\n]*")


@dataclass(frozen=True)
class Rows:
    """Numbers of a text, line by line."""

    values: np.ndarray  # (T,) float64
    starts: np.ndarray  # (L,) int64, where each line begins in `values`
    counts: np.ndarray  # (L,) int64, numbers of each line

    def __len__(self) -> int:
        return len(self.starts)

    def part(self, begin: int, end: int) -> "Rows":
        """Return the lines from `begin` to before `end`; `values` stay the same."""
        return Rows(self.values, self.starts[begin:end], self.counts[begin:end])

    def columns(self, width: int) -> np.ndarray:
        """Return the first `width` numbers of each line, (L, width).

        Raises:
            ValueError: a line has fewer.
        """
        short = np.flatnonzero(self.counts < width)
        if len(short):
            raise ValueError(f"row {short[0]} has {self.counts[short[0]]} of {width} numbers; the file is cut short")
        return self.values[self.starts[:, None] + np.arange(width)]


def parse_rows(data: bytes) -> Rows:
    """Read numbers that white space separates; blank lines and what follows `#` are left out.

    Raises:
        ValueError: something is no number.
    """
    if b"#" in data:
        data = _COMMENT.sub(b"", data)
    if b"\r" in data:
        data = data.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    # A blank before and a line end after, so that every number begins after a blank and lies before a line end.
    letters = np.frombuffer(b" " + data + b"\n", np.uint8)
    blank = letters <= 32
    begins = np.flatnonzero(blank[:-1] & ~blank[1:])
    ends = np.flatnonzero(letters == 10)
    after = np.searchsorted(begins, ends)  # numbers up to the end of each line
    counts = np.diff(after, prepend=0)
    kept = counts > 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what is no number shows in their count
        try:
            values = np.fromstring(data, np.float64, sep=" ") if len(begins) else np.empty(0)
        except ValueError:
            values = np.empty(0)
    if len(values) != len(begins):
        raise ValueError(_first_bad(data))
    return Rows(values, (after - counts)[kept], counts[kept])


def _first_bad(data: bytes) -> str:
    for number, line in enumerate(data.split(b"\n"), start=1):
        for word in line.split():
            try:
                float(word)
            except ValueError:
                return f"{word[:30].decode('ascii', 'backslashreplace')!r} is no number (line {number} of the data)"
    return "its numbers run into each other"


def polygon_groups(rows: Rows, sizes: np.ndarray, skip: int) -> np.ndarray:
    """Return the triangles (F, 3) int64 of polygons, one a line, whose `sizes` corners stand after `skip` other numbers."""
    short = np.flatnonzero(rows.counts < sizes + skip)
    if len(short):
        raise ValueError(
            f"face {short[0]} has {rows.counts[short[0]] - skip} of {sizes[short[0]]} corners; it is cut short"
        )
    return triangles(rows.values, rows.starts + skip, sizes)


def triangles(corners: np.ndarray, starts: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Cut polygons into triangles (F, 3) int64: those that are triangles, then halves of quadrilaterals, then fans.

    Args:
        corners: (T,) vertex numbers of all polygons.
        starts, sizes: where each polygon begins in `corners`, and its number of corners; fewer than three make no triangle.

    Raises:
        ValueError: a vertex number is no whole number.
    """
    parts = []
    for size in (3, 4):
        found = corners[starts[sizes == size][:, None] + np.arange(size)]  # (n, size)
        parts += [found] if size == 3 else [found[:, [0, 1, 2]], found[:, [2, 3, 0]]]
    more = np.flatnonzero(sizes > 4)
    if len(more):
        fans = sizes[more] - 2
        first = np.repeat(starts[more], fans)
        step = np.arange(fans.sum()) - np.repeat(np.cumsum(fans) - fans, fans)
        parts.append(corners[np.stack([first, first + step + 1, first + step + 2], axis=1)])
    joined = np.concatenate(parts)
    whole = joined.astype(np.int64)
    if not np.array_equal(whole, joined):
        raise ValueError("a face has a vertex number that is no whole number")
    return whole
