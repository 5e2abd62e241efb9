"""Line charts as inline SVG: readable without scripts, with a read-out under the pointer where scripts run."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from tools.report.markup import embed_json, escape, short
from tools.report.scales import Scale, central_range, padded_range, thin_out, tick_text

WIDTH, HEIGHT = 600, 300
LEFT, RIGHT, TOP, BOTTOM = 62, 16, 14, 42
DOTS_UP_TO = 40  # a curve with few points shows them


@dataclass(frozen=True)
class Series:
    """One curve. `color` counts in the palette of the style sheet (0-5); a `thin` one is in the background, `dots` are not joined."""

    name: str
    xs: Sequence[float]
    ys: Sequence[float]
    color: int = 0
    thin: bool = False
    dots: bool = False


@dataclass(frozen=True)
class Level:
    """A dashed horizontal line at `y`, for a value that stays the same; without a name it is not in the legend."""

    name: str
    y: float
    color: int = 0


@dataclass(frozen=True)
class Mark:
    """A ring with a text at one point of a curve."""

    x: float
    y: float
    text: str
    color: int = 0


def line_chart(
    series: Sequence[Series],
    *,
    title: str,
    x_label: str = "epoch",
    y_label: str = "",
    levels: Sequence[Level] = (),
    marks: Sequence[Mark] = (),
    log_y: bool | None = False,
    floor: float | None = None,
    text: Callable[[float], str] = short,
) -> str:
    """Return a figure with one chart.

    Args:
        log_y: None takes a logarithmic axis when the values are positive and span more than a factor of 30.
        floor: the axis does not start below it unless a value is lower (0 for quantities that cannot be negative).
        text: how the read-out writes a value.
    """
    series = [s for s in series if len(s.xs)]
    if not series and not levels:
        return _empty(title)
    # Thin curves may jump; they take part in the range without their outermost values and are clipped by the frame.
    values = [y for s in series for y in (central_range(s.ys) if s.thin else s.ys)] + [level.y for level in levels]
    if log_y is None:
        log_y = min(values) > 0 and max(values) / min(values) > 30
    xs = [x for s in series for x in (s.xs[0], s.xs[-1])] or [0.0]
    low, high = min(xs), max(xs)
    if high - low < 1e-9:
        low, high = low - 0.5, high + 0.5
    x_scale = Scale(low, high, LEFT + 4, WIDTH - RIGHT - 4)
    y_scale = Scale(*padded_range(values, log=log_y, floor=floor), HEIGHT - BOTTOM, TOP, log_y)
    axis = y_label + (" (log)" if log_y and y_label else "")
    drawn = [(s, *thin_out(s.xs, s.ys)) for s in series]
    # An inner svg cuts off what leaves the frame.
    frame = (0, TOP - 8, WIDTH, HEIGHT - BOTTOM - TOP + 8)
    view_box = " ".join(map(str, frame))
    inner = f'<svg x="{frame[0]}" y="{frame[1]}" width="{frame[2]}" height="{frame[3]}" viewBox="{view_box}">'
    parts = [_axes(x_scale, y_scale, x_label, axis), inner]
    parts += [_level(level, y_scale) for level in levels]
    parts += [_curve(s, xs, ys, x_scale, y_scale) for s, xs, ys in drawn]
    parts += ["</svg>", *(_mark(mark, x_scale, y_scale) for mark in marks)]
    label = f"{title}: {', '.join(s.name for s in series)} over {x_label}"
    readout = {
        "x": [x_scale.low, x_scale.high, x_scale.start, x_scale.end],
        "xLabel": x_label,
        "box": [TOP, HEIGHT - BOTTOM],
        "series": [_readout(s, xs, ys, y_scale, text) for s, xs, ys in drawn],
    }
    return (
        f'<figure class="chart"><figcaption>{escape(title)}{_legend(series, levels)}</figcaption>'
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(label)}">{"".join(parts)}</svg>'
        f"{embed_json(readout, css_class='readout')}</figure>"
    )


def _empty(title: str) -> str:
    caption = f"<figcaption>{escape(title)}</figcaption>"
    return f'<figure class="chart">{caption}<p class="none">Nothing recorded yet.</p></figure>'


def _legend(series: Sequence[Series], levels: Sequence[Level]) -> str:
    entries = [(s.name, s.color, "dots" if s.dots else "thin" if s.thin else "line") for s in series]
    entries += [(level.name, level.color, "dashed") for level in levels if level.name]
    items = "".join(f'<li class="c{color} {kind}">{escape(name)}</li>' for name, color, kind in entries)
    return f'<ul class="legend">{items}</ul>'


def _axes(x_scale: Scale, y_scale: Scale, x_label: str, y_label: str) -> str:
    parts = []
    y_ticks = y_scale.ticks(6)
    step = min((b - a for a, b in pairwise(y_ticks)), default=0.0)
    for value in y_ticks:
        y = y_scale(value)
        # On a logarithmic axis the spacing differs from tick to tick, so each is written by itself.
        name = short(value, 3) if y_scale.log else tick_text(value, step)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text class="tick" x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{name}</text>')
    bottom = HEIGHT - BOTTOM
    for value in x_scale.ticks(8, whole=True):
        x = x_scale(value)
        parts.append(f'<line class="axis" x1="{x:.1f}" x2="{x:.1f}" y1="{bottom}" y2="{bottom + 4}"/>')
        parts.append(f'<text class="tick" x="{x:.1f}" y="{bottom + 18}" text-anchor="middle">{value:,.0f}</text>')
    parts.append(f'<line class="axis" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{bottom}" y2="{bottom}"/>')
    middle = (LEFT + WIDTH - RIGHT) / 2
    parts.append(f'<text class="label" x="{middle}" y="{HEIGHT - 6}" text-anchor="middle">{escape(x_label)}</text>')
    turned = f'transform="translate(13 {(TOP + bottom) / 2}) rotate(-90)"'
    parts.append(f'<text class="label" {turned} text-anchor="middle">{escape(y_label)}</text>')
    return "".join(parts)


def _curve(series: Series, xs: list[float], ys: list[float], x_scale: Scale, y_scale: Scale) -> str:
    points = [(x_scale(x), y_scale(y)) for x, y in zip(xs, ys, strict=True)]
    kind = "thin" if series.thin else "line"
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    joined = len(points) > 1 and not series.dots
    parts = [f'<polyline class="c{series.color} {kind}" points="{path}"/>'] if joined else []
    if not joined or (not series.thin and len(points) <= DOTS_UP_TO):
        parts += [
            f'<circle class="c{series.color} dot" cx="{x:.1f}" cy="{y:.1f}" r="{5 if series.dots else 3}"/>'
            for x, y in points
        ]
    return "".join(parts)


def _level(level: Level, y_scale: Scale) -> str:
    y = y_scale(level.y)
    return f'<line class="c{level.color} dashed" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'


def _mark(mark: Mark, x_scale: Scale, y_scale: Scale) -> str:
    x, y = x_scale(mark.x), y_scale(mark.y)
    # Above the point if there is room, and inside the frame.
    anchor = "start" if x < LEFT + 40 else "end" if x > WIDTH - RIGHT - 40 else "middle"
    below = y < TOP + 8
    return (
        f'<circle class="c{mark.color} ring" cx="{x:.1f}" cy="{y:.1f}" r="5.5"/>'
        f'<text class="mark" x="{x:.1f}" y="{y + 20 if below else y - 11:.1f}" text-anchor="{anchor}">'
        f"{escape(mark.text)}</text>"
    )


def _readout(series: Series, xs: list[float], ys: list[float], y_scale: Scale, text: Callable[[float], str]) -> dict:
    return {
        "name": series.name,
        "color": series.color,
        "x": [float(f"{x:.6g}") for x in xs],
        "y": [round(y_scale(y), 1) for y in ys],
        "text": [text(y) for y in ys],
    }
