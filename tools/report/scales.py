"""Axes of a chart: where a number stands, where the ticks are, how they are written, which points are worth drawing."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from tools.report.markup import short


@dataclass(frozen=True)
class Scale:
    """Maps data values in `low` ... `high` onto pixels `start` ... `end`, linearly or by logarithm."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        low, high = self.low, self.high
        if self.log:
            value, low, high = math.log10(max(value, 1e-300)), math.log10(low), math.log10(high)
        return self.start + (value - low) / (high - low) * (self.end - self.start)

    def ticks(self, count: int, *, whole: bool = False) -> list[float]:
        """Return about `count` round values inside the range; whole numbers only if `whole`."""
        if self.log:
            return _log_ticks(self.low, self.high)
        step = _round_step((self.high - self.low) / max(count, 1))
        if whole:
            step = float(max(1, math.ceil(step)))
        first = math.ceil(self.low / step - 1e-9)
        last = math.floor(self.high / step + 1e-9)
        return [index * step for index in range(first, last + 1)]


def _round_step(raw: float) -> float:
    """Return the smallest of 1, 2, 2.5, 5, 10 times a power of ten that is not below `raw`."""
    power = 10.0 ** math.floor(math.log10(raw))
    return next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= raw * (1 - 1e-9))


def _log_ticks(low: float, high: float) -> list[float]:
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    spread = math.log10(high / low)
    factors = (1,) if spread > 3 else (1, 2, 5) if spread > 0.7 else (1, 1.5, 2, 3, 4, 5, 7)
    stride = max(1, math.ceil(spread / 6))
    values = [factor * 10.0**decade for decade in decades if decade % stride == 0 for factor in factors]
    return [value for value in values if low * (1 - 1e-9) <= value <= high * (1 + 1e-9)]


def tick_text(value: float, step: float) -> str:
    """Write a tick so that neighbours `step` apart differ, without trailing noise such as 0.30000000000000004."""
    if abs(value) >= 1e6 or 0 < step < 1e-5:
        return short(value, 3)
    digits = 0
    while digits < 6 and abs(step - round(step, digits)) > 1e-6 * abs(step):
        digits += 1
    return f"{value:,.{digits}f}"


def padded_range(values: Sequence[float], *, log: bool, floor: float | None = None) -> tuple[float, float]:
    """Return a range with some air around `values`; never empty, never below `floor` unless a value is."""
    low, high = min(values), max(values)
    if log:
        return low / 1.15, high * 1.15
    room = 0.08 * (high - low) or 0.1 * abs(high) or 1.0
    bottom = low - room
    if floor is not None and low >= floor:
        bottom = max(bottom, floor)
    return bottom, high + room


def central_range(values: Sequence[float]) -> tuple[float, float]:
    """Return the range of all but the outermost half percent on each side: one wild step does not flatten a curve."""
    ordered = sorted(values)
    cut = len(ordered) // 200
    return ordered[cut], ordered[-1 - cut]


def thin_out(xs: Sequence[float], ys: Sequence[float], limit: int = 600) -> tuple[list[float], list[float]]:
    """Return at most about `limit` points: the lowest and the highest of each stretch, so that spikes stay visible."""
    if len(xs) <= limit:
        return list(xs), list(ys)
    stretches = limit // 2
    keep: list[int] = [0]
    for index in range(stretches):
        members = range(index * len(xs) // stretches, (index + 1) * len(xs) // stretches)
        keep.extend({min(members, key=ys.__getitem__), max(members, key=ys.__getitem__)})
    keep = sorted({*keep, len(xs) - 1})
    return [xs[index] for index in keep], [ys[index] for index in keep]
