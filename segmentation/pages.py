"""Reports of part segmentation: IoUs by category and part, the confusion of parts, the worst clouds, PLY files."""

import csv
import io
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from datasets.formats.ply import write_ply
from segmentation.evaluate import PartEvaluator
from segmentation.metrics import PartScores
from tools.context import RunContext
from tools.report.clouds import CATEGORIES
from tools.report.confusion import confusion_section
from tools.report.markup import MISSING, Html, escape, table
from tools.report.page import GalleryItem, Section, write_report
from utils.files import write_atomic

MOST_ROWS = 24  # of a gallery, one a category
WORST = 12  # clouds of all categories together; the worst one of each category is shown as well
GREY = len(CATEGORIES) - 1  # of the categories' colours
ABOUT = (
    "Clouds, worst first",
    "The clouds with the lowest mean IoU over their parts, the worst one of each category among them, with true and predicted parts; "
    "errors: a wrong point has the colour of the part that it was given, right ones are grey. After them the first cloud of each "
    "category, which nobody selected.",
)


def write_pages(
    run: RunContext, folder: Path, evaluator: PartEvaluator, *, title: str, summary: Mapping[str, object] | None = None
) -> Path:
    """Write the report of a run or test into `folder`, with what the last evaluation found; returns the page.

    With `report.html`, `gallery.png` (the worst clouds) and `categories.png` (the first of each category) come `ious.csv` and
    `parts/<cloud>_{true,predicted}.ply` of the latter.
    """
    sections, worst, first = [], [], []
    if evaluator.scores is not None:
        clouds = evaluator.clouds
        rows = iou_rows(evaluator.scores, clouds.class_names, clouds.category_parts, clouds.part_names)
        text = io.StringIO(newline="")
        csv.writer(text, lineterminator="\n").writerows(rows)
        write_atomic(folder / "ious.csv", lambda file: file.write(text.getvalue().encode("utf-8")))
        chosen = worst_clouds(evaluator.scores.shape_ious, clouds.labels)
        sections = [_iou_section(evaluator, chosen), _confusion(evaluator)]
        worst = [with_errors(item) for item in _items(evaluator, chosen)]
        first = _items(evaluator, np.unique(clouds.labels, return_index=True)[1].tolist()[:MOST_ROWS])
        for item in first:
            write_parts(folder / "parts", item)
    return write_report(
        folder,
        config=run.config_dict(),
        gallery=worst,
        galleries={"categories": [with_errors(item) for item in first]},
        gallery_about=ABOUT,
        summary=summary,
        title=title,
        sections=sections,
    )


def worst_clouds(ious: np.ndarray, labels: np.ndarray, count: int = WORST) -> list[int]:
    """Return the clouds with the lowest mean IoUs (M,), lowest first: `count` of all, and of each category the worst one."""
    order = np.argsort(ious, kind="stable")
    of_each = np.sort(np.unique(labels[order], return_index=True)[1])[:MOST_ROWS]
    return order[np.union1d(np.arange(min(count, len(order))), of_each)].tolist()


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


def with_errors(item: GalleryItem) -> GalleryItem:
    """Add a third cloud to a row of true and predicted parts: wrong points with the part that they were given, right ones grey."""
    right = GREY + len(CATEGORIES) * (len(item.legend) // len(CATEGORIES))
    legend = [*item.legend, *[""] * (right - len(item.legend)), "right"]  # at a place whose colour is grey
    true, predicted = item.values["true"], item.values["predicted"]
    errors = np.where(predicted == true, right, predicted)
    return replace(
        item,
        clouds={**item.clouds, "errors": item.clouds["true"]},
        values={**item.values, "errors": errors},
        legend=legend,
    )


def _short(name: str, category: str) -> str:
    return name.removeprefix(f"{category} ")


def _items(evaluator: PartEvaluator, rows: Sequence[int]) -> list[GalleryItem]:
    """Return clouds of the set by their rows, in this order, with their true and their predicted parts."""
    clouds = evaluator.clouds
    ascending = sorted(rows)
    points = dict(zip(ascending, evaluator.points(ascending), strict=True))
    items = []
    for row in rows:
        category = clouds.class_names[clouds.labels[row]]
        ids = sorted(clouds.category_parts[category])
        parts = {"true": evaluator.parts[row], "predicted": evaluator.predictions[row]}
        wrong = (parts["true"] != parts["predicted"]).mean()
        items.append(
            part_item(
                clouds.names[row] if clouds.names else f"#{row}",
                points[row],
                parts,
                ids,
                [_short(clouds.part_names[part], category) for part in ids],
                up_axis=clouds.up_axis,
                note=f"{category}, mean IoU {100 * evaluator.scores.shape_ious[row]:.1f} %, {100 * wrong:.1f} % of the points wrong",
            )
        )
    return items


def _iou_section(evaluator: PartEvaluator, worst: Sequence[int]) -> Section:
    """Return the IoUs of categories as a table, with links to the worst clouds in the gallery, and those of parts as bars."""
    scores, clouds = evaluator.scores, evaluator.clouds
    rows, cards = [], []
    for number, category in enumerate(clouds.class_names):
        own = np.flatnonzero(clouds.labels == number)
        lowest = next((place for place, row in enumerate(worst) if clouds.labels[row] == number), None)
        value = _percent(scores.shape_ious[own].min()) if len(own) else ""
        linked = value if lowest is None else Html(f'<a href="#cloud-{lowest}">{value}</a>')
        rows.append((category, len(own), _percent(scores.category_ious[number]) if len(own) else "", linked))
        if len(own):
            cards.append(_part_bars(scores, category, clouds.category_parts[category], clouds.part_names))
    head = ("category", "clouds", "mean IoU, %", "worst cloud, %")
    instance, classes = _percent(scores.instance_miou), _percent(scores.class_miou)
    lead = (
        f"Mean over clouds (instance mIoU) {instance} %, over categories (class mIoU) {classes} %. "
        "A part that a cloud neither has nor is given counts as an IoU of 1, as published. The worst cloud of a category leads to it in "
        "the gallery. Below, the parts of each category, with the number of true points."
    )
    body = f'<div class="panel sortable">{table(head, rows)}</div><div class="columns">{"".join(cards)}</div>'
    return Section("IoU by category and part", body, lead)


def _part_bars(scores: PartScores, category: str, parts: Sequence[int], names: Sequence[str]) -> str:
    """Return the IoU of each part of a category as bars."""
    points = scores.confusion.sum(1)
    bars = "".join(
        f'<li><span class="name">{escape(_short(names[part], category))}</span>'
        f'<span class="bar"><i style="width:{0 if math.isnan(iou) else 100 * iou:.1f}%"></i></span>'
        f'<span class="share">{_percent(iou)}</span><small>{points[part]:,}</small></li>'
        for part in parts
        for iou in [float(scores.part_ious[part])]
    )
    return f'<div class="panel"><h3>{escape(category)}</h3><ul class="bars">{bars}</ul></div>'


def _confusion(evaluator: PartEvaluator) -> Section:
    used = np.flatnonzero(evaluator.scores.confusion.sum(0) + evaluator.scores.confusion.sum(1))
    names = [evaluator.clouds.part_names[part] for part in used]
    return confusion_section(
        evaluator.scores.confusion[np.ix_(used, used)], names, title="Confusion of parts", unit="points"
    )


def _percent(value: float | None) -> str:
    return MISSING if value is None or math.isnan(value) else f"{100 * value:.2f}"
