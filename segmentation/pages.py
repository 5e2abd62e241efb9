"""Reports of part segmentation: tables of IoUs, the confusion of parts, true and predicted clouds, PLY files."""

import csv
import io
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from datasets.formats.ply import write_ply
from segmentation.evaluate import PartEvaluator
from segmentation.metrics import PartScores
from tools.context import RunContext
from tools.report.clouds import CATEGORIES
from tools.report.confusion import confusion_section
from tools.report.markup import MISSING, table
from tools.report.page import GalleryItem, Section, write_report
from utils.files import write_atomic

MOST_ROWS = 24  # of the gallery, one a category


def write_pages(
    run: RunContext, folder: Path, evaluator: PartEvaluator, *, title: str, summary: Mapping[str, object] | None = None
) -> Path:
    """Write the report of a run or test into `folder`, with what the last evaluation found; returns the page.

    With `report.html` and `gallery.png` come `ious.csv` and `parts/<category>_{true,predicted}.ply`.
    """
    sections, gallery = [], []
    if evaluator.scores is not None:
        clouds = evaluator.clouds
        rows = iou_rows(evaluator.scores, clouds.class_names, clouds.category_parts, clouds.part_names)
        text = io.StringIO(newline="")
        csv.writer(text, lineterminator="\n").writerows(rows)
        write_atomic(folder / "ious.csv", lambda file: file.write(text.getvalue().encode("utf-8")))
        sections = [_iou_section(evaluator.scores, rows), _confusion(evaluator)]
        gallery = _gallery(evaluator)
        for item in gallery:
            write_parts(folder / "parts", item)
    return write_report(
        folder, config=run.config_dict(), gallery=gallery, summary=summary, title=title, sections=sections
    )


def iou_rows(
    scores: PartScores,
    categories: Sequence[str],
    category_parts: Mapping[str, Sequence[int]],
    part_names: Sequence[str],
) -> list[list]:
    """Return category, part and IoU in percent, the head first: a row a category, without a part, then those of its parts."""
    rows: list[list] = [["category", "part", "mean IoU, %"]]
    for number, category in enumerate(categories):
        rows.append([category, "", _percent(scores.category_ious[number])])
        for part in category_parts[category]:
            rows.append([category, _short(part_names[part], category), _percent(scores.part_ious[part])])
    return rows


def write_parts(folder: Path, item: GalleryItem) -> None:
    """Write the clouds of a gallery row as PLY files, coloured by part; their headers say which colour and label is which part."""
    folder.mkdir(parents=True, exist_ok=True)
    stem = re.sub(r"[^A-Za-z0-9._-]+", "_", item.name)
    colors = [tuple(int(code[at : at + 2], 16) for at in (1, 3, 5)) for code in CATEGORIES]
    palette = np.array([colors[index % len(colors)] for index in range(len(item.legend))], np.uint8)
    comments = [
        f"label {index} = {name}, color {' '.join(map(str, palette[index]))}" for index, name in enumerate(item.legend)
    ]
    for name, points in item.clouds.items():
        values = np.asarray(item.values[name]).astype(np.int64)
        write_ply(folder / f"{stem}_{name}.ply", points, colors=palette[values], labels=values, comments=comments)


def part_item(
    name: str, points: np.ndarray, parts: Mapping[str, np.ndarray], ids: Sequence[int], names: Sequence[str], **options
) -> GalleryItem:
    """Return a gallery row of one cloud (n, 3) under several labellings, global part ids (n,), of a category with parts `ids`."""
    values = {key: np.searchsorted(ids, found) for key, found in parts.items()}
    return GalleryItem(
        name, dict.fromkeys(parts, points), values=values, legend=list(names), value_name="part", **options
    )


def _short(name: str, category: str) -> str:
    return name.removeprefix(f"{category} ")


def _gallery(evaluator: PartEvaluator) -> list[GalleryItem]:
    """Return the first cloud of each category, which nobody chose, with its true and its predicted parts."""
    clouds = evaluator.clouds
    _, first = np.unique(clouds.labels, return_index=True)
    rows = sorted(first.tolist())[:MOST_ROWS]
    items = []
    for row, points in zip(rows, evaluator.points(rows), strict=True):
        category = clouds.class_names[clouds.labels[row]]
        ids = sorted(clouds.category_parts[category])
        items.append(
            part_item(
                clouds.names[row] if clouds.names else f"#{row}",
                points,
                {"true": evaluator.parts[row], "predicted": evaluator.predictions[row]},
                ids,
                [_short(clouds.part_names[part], category) for part in ids],
                up_axis=clouds.up_axis,
                note=f"{category}, mean IoU {100 * evaluator.scores.shape_ious[row]:.1f} %",
            )
        )
    return items


def _iou_section(scores: PartScores, rows: list[list]) -> Section:
    overall = [
        ("mean over clouds (instance mIoU)", "", _percent(scores.instance_miou)),
        ("mean over categories (class mIoU)", "", _percent(scores.class_miou)),
    ]
    lead = "A part that a cloud neither has nor is given counts as an IoU of 1, as published."
    return Section(
        "IoU by category and part",
        f'<div class="panel">{table(rows[0], [*overall, *rows[1:]], text_columns=2)}</div>',
        lead,
    )


def _confusion(evaluator: PartEvaluator) -> Section:
    used = np.flatnonzero(evaluator.scores.confusion.sum(0) + evaluator.scores.confusion.sum(1))
    names = [evaluator.clouds.part_names[part] for part in used]
    return confusion_section(
        evaluator.scores.confusion[np.ix_(used, used)], names, title="Confusion of parts", unit="points"
    )


def _percent(value: float | None) -> str:
    return MISSING if value is None or math.isnan(value) else f"{100 * value:.2f}"
