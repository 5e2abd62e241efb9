"""What tasks and methods do, to see: parts from frozen features, the order and blocks of Point-JEPA, a built-in scene."""

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image

from benchmarks.figures.canvas import GREY, HIDDEN, Block, Cell, block
from benchmarks.figures.features import MAE, SHOWN, encode, model_of, on_points
from benchmarks.figures.shapes import Shape, shapes
from datasets import CloudSet, build_dataset
from datasets.scenes import CENTER, CLASS, SIZE
from detection.inputs import boxes_of
from detection.pages import BORDER, FLOOR, box_edges
from extensions import fps, gather
from models.detection.boxes import box_corners
from models.point_jepa import BlockKeys, draw_blocks, greedy_order
from tools.look.sheets import ramp
from tools.report.clouds import CATEGORIES
from utils.seed import generator

PART_CLOUDS, PART_POINTS = 40, 50  # of each category, and points of each cloud, that the linear classifier is fitted to
GROUPS = 64
TARGETS = ("#e4572e", "#f2a541", "#c05299", "#8d5524")
CONTEXT = "#2f7fb8"


def rgb(color: str) -> np.ndarray:
    """Return a colour "#rrggbb" as (3,) in 0-1."""
    return np.array([int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)])


def parts(side: int) -> Image.Image:
    """Draw true and predicted parts, and errors: a linear classifier on frozen features, one a category."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    true, predicted, wrong = [], [], []
    train, test = (shapes(SHOWN, count, subset=subset) for count, subset in ((PART_CLOUDS, "train"), (2, "test")))
    for known, asked in zip(train, test, strict=True):
        some = slice(PART_POINTS)
        probe = make_pipeline(StandardScaler(), LogisticRegression(max_iter=500))
        probe.fit(
            np.concatenate([row[some] for row in point_features(known)]),
            np.concatenate([cloud.parts[some] for cloud in known]),
        )
        names = np.unique(np.concatenate([cloud.parts for cloud in (*known, *asked)]))
        for cloud, features in zip(asked, point_features(asked), strict=True):
            found = probe.predict(features)
            colors = [
                np.array([rgb(color) for color in CATEGORIES])[names.searchsorted(ids)] for ids in (cloud.parts, found)
            ]
            right = found == cloud.parts
            true.append(Cell(cloud.points, colors[0]))
            predicted.append(Cell(cloud.points, colors[1]))
            wrong.append(Cell(cloud.points, np.where(right[:, None], GREY, HIDDEN), f"{right.mean():.0%} right"))
    return block(Block([true, predicted, wrong], sides=["true", "predicted", "errors"]), round(side * 0.8))


def point_features(clouds: Sequence[Shape]) -> list[np.ndarray]:
    """Return features (n, C) of the points of each cloud, from those of the patches around."""
    return [
        on_points(cloud, one, one.features) for cloud, one in zip(clouds, encode(model_of(MAE), clouds)[0], strict=True)
    ]


def ordering(side: int) -> Image.Image:
    """Draw the order in which Point-JEPA puts patches, and one draw of its context and targets."""
    blocks = draw_blocks(GROUPS, BlockKeys(), generator=generator(0, 0, 0, "figure"))
    colors = np.tile(GREY, (GROUPS, 1))
    colors[blocks.context] = rgb(CONTEXT)
    for places, color in zip(blocks.targets, TARGETS, strict=True):
        colors[places] = rgb(color)
    ordered, drawn = [], []
    for cloud in (cloud for row in shapes(SHOWN, 2) for cloud in row):
        place = _places(cloud)
        ordered.append(Cell(cloud.points, ramp(place, 0, GROUPS - 1)))
        drawn.append(Cell(cloud.points, colors[place]))
    sides = ["order of the\npatches", "context: blue\ntargets: warm\nunused: grey"]
    return block(
        Block([ordered, drawn], titles={0: f"From first to last of {GROUPS}"}, sides=sides, scale=("first", "last")),
        round(side * 0.8),
    )


def _places(cloud: Shape) -> np.ndarray:
    """Return for each point the position of its patch in the order, (n,)."""
    points = cloud.given[None]
    centers = gather(points, fps(points, GROUPS))
    order = greedy_order(centers)[0]
    near = torch.cdist(torch.from_numpy(cloud.points), centers[0, order]).argmin(1)
    return near.numpy()


def scene(side: int) -> Image.Image:
    """Draw built-in scenes with the boxes of their objects, without walls."""
    entry = {"NAME": "SyntheticScenes", "subset": "test", "N_POINTS": 12000, "npoints": 12000, "scenes": 2}
    clouds = build_dataset(entry)
    return block(Block([[_scene(clouds, row) for row in range(len(clouds))]]), 3 * side, side // 12)


def _scene(clouds: CloudSet, row: int) -> Cell:
    points = np.array(clouds.points[row])
    low, high = points.min(0), points.max(0)
    inside = ((points > low + BORDER) & (points < high - BORDER))[:, :2].all(1)
    points = points[inside | (points[:, 2] < low[2] + FLOOR)]
    boxes = boxes_of(clouds, row)
    corners = box_corners(*(torch.from_numpy(boxes[:, columns]) for columns in (CENTER, SIZE))).numpy()
    shades = [rgb(CATEGORIES[int(kind) % len(CATEGORIES)]) for kind in boxes[:, CLASS]]
    colors, edges = np.tile(GREY, (len(points), 1)), [box_edges(one) for one in corners]
    for box, shade in zip(boxes, shades, strict=True):
        colors[(np.abs(points - box[CENTER]) <= box[SIZE] / 2).all(1)] = 0.3 + 0.7 * shade
    colors = np.concatenate(
        [colors, *(np.tile(shade, (len(edge), 1)) for shade, edge in zip(shades, edges, strict=True))]
    )
    whole = np.concatenate([points, *edges])
    names = ", ".join(sorted({clouds.class_names[int(kind)] for kind in boxes[:, CLASS]}))
    return Cell(np.stack([whole[:, 0], whole[:, 2], -whole[:, 1]], axis=1), colors, names, ball=0.005)
