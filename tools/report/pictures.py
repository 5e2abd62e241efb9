"""A table of pictures in the report: images side by side, one line a cloud, as one embedded PNG."""

import base64
import io
from collections.abc import Mapping, Sequence

import numpy as np

from tools.report.markup import escape

CELL = 1.7  # inches of one picture


def picture_table(rows: Sequence[tuple[str, Mapping[str, np.ndarray]]], *, alt: str) -> str:
    """Return an image element with the grid that `picture_figure` draws; `alt` says what it shows to those who do not see it.

    Raises:
        ImportError: matplotlib is missing.
    """
    file = io.BytesIO()
    picture_figure(rows).savefig(file, format="png")
    data = base64.b64encode(file.getvalue()).decode("ascii")
    return f'<div class="panel scroll"><img style="max-width:100%" alt="{escape(alt)}" src="data:image/png;base64,{data}"/></div>'


def picture_figure(rows: Sequence[tuple[str, Mapping[str, np.ndarray]]]):
    """Return a matplotlib figure with one line of pictures a row.

    Args:
        rows: (name, column title -> picture); a picture is (h, w) in [0, 1], drawn in grey, or (h, w, 3) uint8.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    columns = list(dict.fromkeys(title for _, pictures in rows for title in pictures))
    figure = Figure(figsize=(CELL * len(columns) + 0.3, CELL * len(rows) + 0.3), dpi=110, facecolor="white")
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(rows), len(columns), squeeze=False)
    for index, (name, pictures) in enumerate(rows):
        for position, (cell, title) in enumerate(zip(axes[index], columns, strict=True)):
            cell.set(xticks=[], yticks=[])
            cell.spines[:].set_visible(False)
            if title in pictures:
                grey = {"cmap": "gray", "vmin": 0.0, "vmax": 1.0} if pictures[title].ndim == 2 else {}
                cell.imshow(pictures[title], interpolation="antialiased", **grey)
            if index == 0:
                cell.set_title(title, fontsize=8, color="#1d2433")
            if position == 0:
                cell.set_ylabel(name, fontsize=8, color="#5b6475")
    figure.tight_layout(pad=0.4)
    return figure
