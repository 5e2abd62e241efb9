"""Reports of detection: average precision by class and by size, curves of precision and recall, scenes with true and predicted boxes."""

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from detection.detections import Detected
from detection.evaluate import DetectionEvaluator
from detection.metrics import SCORES, SIZES, THRESHOLDS, SceneResult, average_precision
from tools.context import RunContext
from tools.report.charts import Series, line_chart
from tools.report.clouds import CATEGORIES
from tools.report.markup import MISSING, table
from tools.report.page import GalleryItem, Section, write_report
from tools.report.runlog import curve, read_rows
from utils.files import write_atomic

WORST = 10  # scenes that are shown
CURVES = 4  # classes of a chart
SHOWN_POINTS = 5000  # of a scene
SURE = 0.3  # score of the predicted boxes that are drawn
EDGES = ((0, 1), (1, 2), (2, 3), (3, 0), (4, 5), (5, 6), (6, 7), (7, 4), (0, 4), (1, 5), (2, 6), (3, 7))
EDGE_POINTS = 24
ROOM = "scene"
GREY = CATEGORIES.index("#7f8794")  # place of the scene among the colours of classes
BORDER, FLOOR = 0.12, 0.1  # metres of a scene's walls that would hide what is inside, and of the floor that is shown


def write_pages(
    run: RunContext,
    folder: Path,
    evaluator: DetectionEvaluator,
    *,
    title: str,
    summary: Mapping[str, object] | None = None,
) -> Path:
    """Write the report of a run or test into `folder`, with what the last evaluation found; returns the page.

    With `report.html` and `gallery.png` come `ap.csv` and, of the scenes that are shown, `detections.csv`.
    """
    sections, gallery = [], []
    rows = read_rows(folder / "metrics.jsonl", "detection")
    if rows:
        sections.append(_course(rows))
    if evaluator.scores is not None:
        names = evaluator.clouds.class_names
        by_class = class_rows(evaluator, names)
        _write_table(folder / "ap.csv", by_class)
        _write_table(folder / "detections.csv", detection_rows(evaluator, names))
        sections += [_class_section(by_class), _size_section(evaluator), _curve_section(evaluator, names)]
        gallery = worst_scenes(evaluator)
    return write_report(
        folder,
        config=run.config_dict(),
        gallery=gallery,
        summary=summary,
        title=title,
        sections=sections,
        gallery_about=(
            "Scenes with the lowest AP25",
            f"At most {WORST}; true boxes, and predicted ones with a score above {SURE:g}. Outer walls are left out.",
        ),
    )


def _write_table(path: Path, rows: Sequence[Sequence[object]]) -> None:
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\n").writerows(rows)
    write_atomic(path, lambda file: file.write(text.getvalue().encode("utf-8")))


def class_rows(evaluator: DetectionEvaluator, names: Sequence[str]) -> list[list]:
    """Return class, number of targets, AP and recall at both thresholds in percent; the head first, the mean last."""
    scores = [evaluator.scores[threshold] for threshold in THRESHOLDS]
    targets = np.bincount(np.concatenate([scene.target_classes for scene in evaluator.scenes]), minlength=len(names))
    rows: list[list] = [["class", "targets", "AP25, %", "AP50, %", "recall at 25, %", "recall at 50, %"]]
    for number, name in enumerate(names):
        values = [score.ap[number] for score in scores] + [score.recall[number] for score in scores]
        rows.append([name, int(targets[number]), *map(_percent, values)])
    means = [score.mean for score in scores] + [score.mean_recall for score in scores]
    return [*rows, ["mean", int(targets.sum()), *map(_percent, means)]]


def _percent(value: float) -> str:
    return MISSING if np.isnan(value) else f"{100 * value:.2f}"


def detection_rows(evaluator: DetectionEvaluator, names: Sequence[str]) -> list[list]:
    """Return every box that gives detections: scene, most likely class, its score, centre and size in metres, depth frame."""
    rows: list[list] = [["scene", "class", "score", *("x", "y", "z"), *("dx", "dy", "dz")]]
    for scene, name in zip(evaluator.scenes, evaluator.clouds.names, strict=True):
        for label, box, score in best_of_each(scene.detected):
            low, high = depth_bounds(scene.corners[box])
            numbers = [f"{value:.4f}" for value in (*(low + high) / 2, *(high - low))]
            rows.append([name, names[label], f"{score:.4f}", *numbers])
    return rows


def best_of_each(detected: Detected) -> list[tuple[int, int, float]]:
    """Return (class, box, score) of the best detection of each box, the most certain first."""
    order = np.argsort(-detected.scores, kind="stable")
    _, first = np.unique(detected.boxes[order], return_index=True)
    chosen = order[np.sort(first)]
    return [(int(detected.classes[i]), int(detected.boxes[i]), float(detected.scores[i])) for i in chosen]


def depth_bounds(corners: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the lowest and highest coordinates of a box (8, 3) of the camera frame in the depth frame."""
    x, y, z = corners.T
    depth = np.stack([x, z, -y], axis=1)
    return depth.min(axis=0), depth.max(axis=0)


def _course(rows: list[dict]) -> Section:
    """Return the scores over the epochs."""
    series = []
    for number, (key, name) in enumerate(SCORES.items()):
        epochs, values = curve(rows, key)
        series.append(Series(name, epochs, [100 * value for value in values], color=number))
    chart = line_chart(series, title="Evaluations", y_label="%", floor=0)
    return Section("Average precision", f'<div class="charts">{chart}</div>')


def _class_section(rows: list[list]) -> Section:
    lead = "A class without targets counts with 0 in the mean where it has detections, as published."
    return Section("By class", f'<div class="panel">{table(rows[0], rows[1:])}</div>', lead)


def _size_section(evaluator: DetectionEvaluator) -> Section:
    classes, rows = evaluator.run.config.model.num_classes, []
    for name, sizes in SIZES.items():
        scores = [average_precision(evaluator.scenes, classes, limit, sizes=sizes) for limit in THRESHOLDS]
        present = _classes_of_size(evaluator.scenes, sizes)
        means = [score.ap[present].mean() if len(present) else np.nan for score in scores]
        recalls = [score.recall[present].mean() if len(present) else np.nan for score in scores]
        low, high = sizes
        text = f"{name} ({f'{low:g} to {high:g}' if np.isfinite(high) else f'from {low:g}'} cubic metres)"
        rows.append([text, len(present), *map(_percent, (*means, *recalls))])
    head = ("size", "classes", "AP25, %", "AP50, %", "recall at 25, %", "recall at 50, %")
    lead = "Means over the classes that have targets of this size; detections of targets of other sizes do not count."
    return Section("By size", f'<div class="panel">{table(head, rows)}</div>', lead)


def _classes_of_size(scenes: Sequence[SceneResult], sizes: tuple[float, float]) -> np.ndarray:
    found: set[int] = set()
    for scene in scenes:
        extent = scene.target_corners.max(axis=1) - scene.target_corners.min(axis=1)
        volume = extent.prod(axis=1)
        found.update(scene.target_classes[(volume >= sizes[0]) & (volume < sizes[1])].tolist())
    return np.array(sorted(found), np.int64)


def _curve_section(evaluator: DetectionEvaluator, names: Sequence[str]) -> Section:
    charts = []
    for threshold in THRESHOLDS:
        curves = evaluator.scores[threshold].curves
        known = sorted(curves)
        for begin in range(0, len(known), CURVES):
            series = [
                Series(
                    names[number],
                    (100 * curves[number].recall).tolist(),
                    (100 * curves[number].precision).tolist(),
                    color=place,
                )
                for place, number in enumerate(known[begin : begin + CURVES])
            ]
            title = f"At an overlap of {threshold:g}"
            charts.append(line_chart(series, title=title, x_label="recall, %", y_label="precision, %", floor=0))
    return Section("Precision and recall", f'<div class="charts">{"".join(charts)}</div>')


def scene_scores(evaluator: DetectionEvaluator) -> np.ndarray:
    """Return the AP25 of each scene by itself, the mean over the classes of its targets; NaN without targets."""
    classes = evaluator.run.config.model.num_classes
    scores = np.full(len(evaluator.scenes), np.nan)
    for row, scene in enumerate(evaluator.scenes):
        present = np.unique(scene.target_classes)
        if len(present):
            scores[row] = average_precision([scene], classes, THRESHOLDS[0]).ap[present].mean()
    return scores


def worst_scenes(evaluator: DetectionEvaluator) -> list[GalleryItem]:
    """Return the scenes with the lowest AP25, each with its true and its predicted boxes."""
    scores = scene_scores(evaluator)
    known = np.flatnonzero(~np.isnan(scores))
    chosen = known[np.argsort(scores[known], kind="stable")][:WORST]
    return [_item(evaluator, int(row), scores[row]) for row in chosen]


def _item(evaluator: DetectionEvaluator, row: int, score: float) -> GalleryItem:
    clouds, scene = evaluator.clouds, evaluator.scenes[row]
    count = clouds.points.shape[1] if clouds.counts is None else int(clouds.counts[row])
    points = shown_points(np.array(clouds.points[row, :count]))
    sure = [(label, scene.corners[box]) for label, box, score in best_of_each(scene.detected) if score > SURE]
    true = list(zip(scene.target_classes.tolist(), scene.target_corners, strict=True))
    note = f"AP25 {100 * score:.1f} %, {len(true)} objects, {len(sure)} boxes"
    return scene_item(clouds.names[row], points, {"true": true, "predicted": sure}, clouds.class_names, note=note)


def shown_points(points: np.ndarray) -> np.ndarray:
    """Return some of the points (n, 3) of a scene, spread over their order, without the walls at its horizontal limits."""
    low, high = points.min(axis=0), points.max(axis=0)
    inside = ((points > low + BORDER) & (points < high - BORDER))[:, :2].all(axis=1)
    open_points = points[inside | (points[:, 2] < low[2] + FLOOR)]
    points = open_points if len(open_points) else points
    return points[np.linspace(0, len(points) - 1, min(len(points), SHOWN_POINTS)).astype(int)]


def scene_item(
    name: str,
    points: np.ndarray,
    boxes: Mapping[str, Sequence[tuple[int, np.ndarray]]],
    class_names: Sequence[str],
    *,
    note: str,
) -> GalleryItem:
    """Return a gallery row: a scene (n, 3), once with each set of boxes, given as (class, corners (8, 3) in the camera frame)."""
    cells, values, place = {}, {}, min(GREY, len(class_names))
    legend = [*class_names[:place], ROOM, *class_names[place:]]
    for title, own in boxes.items():
        edges = [box_edges(corners) for _, corners in own]
        cells[f"{title} boxes"] = np.concatenate([points, *edges]).astype(np.float32)
        labels = [np.full(len(edge), label + (label >= GREY)) for (label, _), edge in zip(own, edges, strict=True)]
        values[f"{title} boxes"] = np.concatenate([np.full(len(points), place), *labels])
    return GalleryItem(name, cells, values=values, legend=legend, value_name="class", up_axis="z", note=note)


def box_edges(corners: np.ndarray) -> np.ndarray:
    """Return points (m, 3), depth frame, along the edges of a box (8, 3) of the camera frame."""
    x, y, z = corners.T
    depth = np.stack([x, z, -y], axis=1)
    share = np.linspace(0, 1, EDGE_POINTS)[:, None]
    return np.concatenate([depth[a] + share * (depth[b] - depth[a]) for a, b in EDGES])
