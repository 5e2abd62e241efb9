"""The gallery as a PNG figure."""

from collections.abc import Iterator

import numpy as np

from tools.report.clouds import (
    CATEGORIES,
    COLUMN_COLORS,
    HEIGHT_SCALE,
    MAX_POINTS,
    VALUE_SCALE,
    Cloud,
    Row,
    equal_count,
    scale_colors,
)
from tools.report.splat import draw
from utils.log import track

CELL, GAP = 1.9, 0.03  # inches of one cloud, and around it
LONGEST = 19  # characters of a name that fit above a column
DPI = 170
PIXELS = 480  # each cloud is drawn at this size and scaled down, which smooths its edges


def gallery_figure(rows: list[Row]):
    """Return a matplotlib figure with one line of pictures and clouds per row; many rows are in two or three blocks, side by side.

    Clouds of one name are in one column. Where hardly any share a name, as the nearest clouds of a query, names are below the clouds.

    Raises:
        ImportError: if matplotlib is missing.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from PIL import Image

    columns = list(dict.fromkeys(name for row in rows for name in _names(row)))
    widest = max(len(_names(row)) for row in rows)
    named_below = len(columns) > 2 * widest
    columns = columns[:widest] if named_below else columns
    size = min(10, 10 * LONGEST / max(map(len, columns), default=1))
    blocks = 1 if len(rows) <= 5 else 2 if len(rows) <= 12 else 3
    lines = -(-len(rows) // blocks)
    wide, high = 0.35 + CELL * len(columns), CELL + 0.22
    figure = Figure(figsize=(wide * blocks, high * lines + 0.5), dpi=DPI, facecolor="white")
    FigureCanvasAgg(figure)
    total_width, total_height = figure.get_size_inches()
    side = round((CELL - 2 * GAP) * DPI)

    def place(x: float, y: float, width: float, height: float) -> list[float]:
        """Inches from the top left corner -> matplotlib's shares from the bottom left."""
        return [x / total_width, 1 - (y + height) / total_height, width / total_width, height / total_height]

    for index, row in track(list(enumerate(rows)), "drawing the report's clouds"):
        block, line = divmod(index, lines)
        left, top = block * wide, 0.42 + line * high
        if line == 0 and not named_below:
            for position, name in enumerate(columns):
                x, y = place(left + 0.35 + CELL * (position + 0.5), 0.28, 0, 0)[:2]
                figure.text(x, y, name, ha="center", va="center", fontsize=size, color="#1d2433", weight="bold")
        x, y = place(left + 0.2, top + high / 2, 0, 0)[:2]
        figure.text(x, y, row.name, ha="center", va="center", rotation=90, fontsize=8, color="#5b6475")
        for number, (name, image, caption) in enumerate(_cells(row)):
            position = number if named_below else columns.index(name)
            x, y = place(left + 0.35 + CELL * position + GAP, top + GAP, CELL - 2 * GAP, CELL - 2 * GAP)[:2]
            # Axes around each cloud would take longer than drawing it.
            picture = Image.fromarray(image).convert("RGB").resize((side, side), Image.Resampling.LANCZOS)
            figure.figimage(np.asarray(picture), xo=round(x * total_width * DPI), yo=round(y * total_height * DPI))
            x, y = place(left + 0.35 + CELL * (position + 0.5), top + CELL + 0.06, 0, 0)[:2]
            text, small = (name, 8) if named_below else (caption, 6)
            figure.text(x, y, text, ha="center", va="center", fontsize=small, color="#8a92a3")
    return figure


def _names(row: Row) -> list[str]:
    """Return the names of the pictures and clouds of a row, in order."""
    return [*row.pictures, *(cloud.name for cloud in row.clouds)]


def _cells(row: Row) -> Iterator[tuple[str, np.ndarray, str]]:
    """Yield name, image and caption of the pictures and clouds of a row."""
    for name, image in row.pictures.items():
        yield name, image, ""
    for cloud in row.clouds:
        label = f"{list(cloud.frames)[-1]}, " if cloud.frames else ""  # the one that is drawn
        yield cloud.name, _image(cloud, row), label + _caption(cloud, row)


def shown_count(cloud: Cloud, row: Row) -> int:
    """Return how many of the points are drawn: no more than of the first cloud, so that densities compare, or than a figure shows."""
    return min(len(cloud.points), equal_count(row) or len(cloud.points), MAX_POINTS)


def _caption(cloud: Cloud, row: Row) -> str:
    count = shown_count(cloud, row)
    return f"{count:,} points" if count == cloud.total else f"{count:,} of {cloud.total:,} points"


def _image(cloud: Cloud, row: Row) -> np.ndarray:
    count = shown_count(cloud, row)
    return draw(row.fit * cloud.points[:count], _colors(cloud, row)[:count], PIXELS)


def _colors(cloud: Cloud, row: Row) -> np.ndarray:
    """Return (n, 3) RGB: by category or value if the row has any (clouds without are grey), else by height."""
    if cloud.values is None and any(other.values is not None for other in row.clouds):
        return scale_colors(COLUMN_COLORS[:1] * 2, np.zeros(len(cloud.points)))
    if cloud.values is not None and row.legend is not None:
        anchors = [CATEGORIES[index % len(CATEGORIES)] for index in range(max(len(row.legend), 1))]
        return scale_colors(anchors, cloud.values / max(len(anchors) - 1, 1))
    if cloud.values is not None:
        return scale_colors(VALUE_SCALE, cloud.values / 255)
    heights = row.clouds[0].points[:, 1]
    low, high = (float(heights.min()), float(heights.max())) if len(heights) else (-1.0, 1.0)
    return scale_colors(HEIGHT_SCALE, (cloud.points[:, 1] - low) / max(high - low, 1e-6))
