"""Sheets of pictures for papers: transparent, 300 dpi, every cloud from the same side."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from tools.look.files import error_colors
from tools.look.study import Query, Study
from tools.report.clouds import VALUE_SCALE, scale_colors, unit_frame
from tools.report.splat import draw
from utils.files import write_atomic
from utils.log import track

CELL = 1.6  # inches of one cloud
DPI = 300
CAPTION = 0.22  # inches under each cloud
MOST_ROWS = 12  # clouds of one sheet
GREY = np.full(3, 0.72)


class Picture(NamedTuple):
    """A cloud with a colour for each point."""

    caption: str
    points: np.ndarray  # (n, 3)
    colors: np.ndarray  # (n, 3) in 0-1
    frame: np.ndarray  # (m, 3), the cloud whose extent is the picture's


def write_sheets(folder: Path, study: Study, query: Query, up_axis: str) -> None:
    """Write `features.png`, `similarity.png`, `attention.png`, `neighbours.png`, and `rebuilt.png` of a masked autoencoder."""
    sheets = {
        "features": _features(study),
        "similarity": _similarity(study, query),
        "attention": _attention(study, query),
    }
    if study.near.shape[1]:
        sheets["neighbours"] = _neighbours(study)
    if study.clouds[0].rebuilt is not None:
        sheets["rebuilt"] = _rebuilt(study)
    for name, rows in track(list(sheets.items()), "drawing sheets"):
        if rows:
            _write_sheet(folder / f"{name}.png", rows, up_axis)


def _shown(study: Study) -> range:
    return range(min(len(study.clouds), MOST_ROWS))


def _features(study: Study) -> list[list[Picture]]:
    """A row a cloud, a column a scale: the three widest axes as red, green and blue."""
    return [
        [
            _picture(study, number, scale, study.patch_colors(number, scale), f"scale {scale}")
            for scale in range(len(study.axes))
        ]
        for number in _shown(study)
    ]


def _similarity(study: Study, query: Query) -> list[list[Picture]]:
    """A row a cloud, a column a scale: cosine with the query, from -1 to 1."""
    similar = [study.similarity(query, scale) for scale in range(len(study.axes))]
    return [
        [
            _picture(study, number, scale, ramp(one[number], -1, 1), f"scale {scale}, cosine -1 to 1")
            for scale, one in enumerate(similar)
        ]
        for number in _shown(study)
    ]


def _attention(study: Study, query: Query) -> list[list[Picture]]:
    """A row a scale and layer, a column a head: the weights of the query, from 0 to the largest of the picture."""
    rows = []
    for scale, one in enumerate(study.clouds[query.cloud].scales):
        for layer, heads in enumerate(one.attention(study.row(query, scale))):
            line = []
            for head, weights in enumerate(heads):
                patches = weights[one.extra :]
                most = float(patches.max())
                caption = f"scale {scale}, layer {layer}, head {head}, 0 to {most:.2g}"
                line.append(_picture(study, query.cloud, scale, ramp(patches, 0, most), caption))
            rows.append(line)
    return rows


def _neighbours(study: Study) -> list[list[Picture]]:
    """A row a cloud: itself, then those with the most similar features."""
    last, rows = len(study.axes) - 1, []
    for number in _shown(study):
        line = [(number, study.clouds[number].name)]
        line += [
            (int(other), f"{study.clouds[other].name}, cosine {value:.3f}")
            for other, value in zip(study.near[number], study.near_cosine[number], strict=True)
        ]
        rows.append([_picture(study, one, last, study.patch_colors(one, last), text) for one, text in line])
    return rows


def _rebuilt(study: Study) -> list[list[Picture]]:
    """A row a cloud: the hidden patches of each scale, the rebuilt cloud and the input with the error of each point."""
    rows = []
    for number in _shown(study):
        cloud = study.clouds[number]
        made = cloud.rebuilt
        assert made is not None
        line = []
        for scale, (one, mask) in enumerate(zip(cloud.scales, made.masks, strict=True)):
            colors = np.where(mask[one.index][:, None], ramp(np.array([0.75]), 0, 1), GREY)
            line.append(Picture(f"scale {scale}, {mask.mean():.0%} hidden", one.centers, colors, cloud.points))
        for caption, points, error in (("rebuilt", made.cloud, made.cloud_error), ("input", cloud.points, made.error)):
            most = float(error.max())
            line.append(Picture(f"{caption}, error 0 to {most:.2g}", points, error_colors(error, most), cloud.points))
        rows.append(line)
    return rows


def ramp(values: np.ndarray, low: float, high: float) -> np.ndarray:
    """Return values (n,) between two ends as colours (n, 3) in 0-1."""
    return scale_colors(VALUE_SCALE, (values - low) / max(high - low, 1e-12)) / 255


def _picture(study: Study, number: int, scale: int, colors: np.ndarray, caption: str) -> Picture:
    points = study.clouds[number].points
    return Picture(caption, points, study.on_points(number, scale, colors), points)


def _write_sheet(path: Path, rows: Sequence[Sequence[Picture]], up_axis: str) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    wide, high = CELL * max(map(len, rows)), (CELL + CAPTION) * len(rows)
    figure = Figure(figsize=(wide, high), dpi=DPI)
    FigureCanvasAgg(figure)
    for line, row in enumerate(rows):
        for column, one in enumerate(row):
            top = (CELL + CAPTION) * line
            place = [CELL * column / wide, 1 - (top + CELL) / high, CELL / wide, CELL / high]
            axes = figure.add_axes(place)
            axes.axis("off")
            points = unit_frame(one.points, one.frame, up_axis)
            axes.imshow(draw(points, 255 * one.colors, round(CELL * DPI), clear=True), interpolation="antialiased")
            axes.text(
                0.5, -0.04, one.caption, transform=axes.transAxes, ha="center", va="top", fontsize=4.5, color="#5b6475"
            )
    write_atomic(path, lambda file: figure.savefig(file, format="png", dpi=DPI, transparent=True))
