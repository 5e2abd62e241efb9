"""Detect objects in one's own scenes (`--predict`): any cloud files, metres, z up unless `--up` says otherwise."""

import json
import re
import zlib
from collections import Counter
from pathlib import Path

import numpy as np
import torch
from torch import nn

from datasets.formats.arrays import load_npy
from datasets.formats.cloud_files import BadFiles, Shape, cloud_files, read_shape
from datasets.formats.ply import write_ply
from datasets.formats.points import Notes, check_up, upright
from datasets.scannet import CLASSES, ScanNetConfig, check_colors
from datasets.scenes import centered_colors, sample, targets
from detection.detections import Rules
from detection.evaluate import load_detector, predict, scene_results
from detection.inputs import Inputs, scene_of_points
from detection.pages import SURE, best_of_each, box_edges, depth_bounds, scene_item, shown_points
from tools.context import RunContext
from tools.report.clouds import CATEGORIES
from tools.report.page import GalleryItem, write_report
from tools.results import open_output
from utils.errors import UserError, printable
from utils.files import write_atomic
from utils.log import track

MOST_ROWS = 24  # of the gallery
UNCLOUDS = ("_bbox.npy", "_ins_label.npy", "_sem_label.npy")  # next to the vertices of a scene in VoteNet's layout
VERTICES = "_vert.npy"
FAR = 200.0  # metres; scenes of rooms in other units, or in coordinates of the earth, go beyond


def run_predict(run: RunContext) -> dict[str, float]:
    """Detect objects in the scenes of `--predict`; writes a time-stamped folder with a page, and for each a JSON and a PLY file.

    Returns how many scenes and boxes there are, and how many boxes of each class.

    Raises:
        UserError: a scene cannot be read or has too few points, or the checkpoint does not name its classes.
    """
    args = run.args
    files = [
        file for file in cloud_files(args.predict, what="--predict", recursive=True) if not file.name.endswith(UNCLOUDS)
    ]
    check_up(args.up)
    if args.category:
        raise UserError(f"--category {args.category}: is for part segmentation; leave it out")
    model = load_detector(run)
    _name_classes(run)
    if not files:
        raise UserError(f"--predict {args.predict}: holds no scenes; give a cloud, or a folder of clouds")
    folder = open_output(run, "predict")
    root = Path(args.predict) if Path(args.predict).is_dir() else files[0].parent
    gallery, counts, bad, notes = [], Counter(), BadFiles(args.skip_bad), Notes()
    for file in track(files, "detecting objects"):
        try:
            shape = read_shape(file, notes)
            item, classes = _detect_file(run, model, file, shape, file.relative_to(root).as_posix(), folder / "boxes")
        except UserError as error:
            bad.add(error)
            continue
        gallery = [*gallery, item][:MOST_ROWS]
        counts.update(classes)
    notes.tell()
    bad.tell(len(files))
    summary = {"Scenes": len(files) - len(bad.messages), "Boxes": counts.total(), "Checkpoint": str(args.ckpts)}
    path = write_report(
        folder,
        config=run.config_dict(),
        gallery=gallery,
        summary=summary,
        title=f"Objects in {printable(args.predict)}",
    )
    run.log.info(f"{summary['Scenes']} scenes, boxes as JSON and PLY files in {folder / 'boxes'}, report: {path}")
    found = {f"{name}, boxes": count for name, count in sorted(counts.items())}
    return {"scenes": summary["Scenes"], "boxes": summary["Boxes"], **found}


def _name_classes(run: RunContext) -> None:
    """Name the classes where the checkpoint does not, as public ones of ScanNet.

    Raises:
        UserError: they are not known.
    """
    config = run.config
    if config.class_names is None and isinstance(_entry(run), ScanNetConfig):
        config.class_names = list(CLASSES)
    if config.class_names is None or len(config.class_names) != config.model.num_classes:
        raise UserError(f"{run.args.ckpts}: does not name its classes; give class_names with --set")


def _entry(run: RunContext) -> object:
    """Return the set that says how many points a scene has."""
    sets = run.config.dataset
    return sets.test or sets.val or sets.train


def _detect_file(
    run: RunContext, model: nn.Module, file: Path, shape: Shape, name: str, folder: Path
) -> tuple[GalleryItem, list[str]]:
    """Detect objects in one scene and write its files; returns its row of the gallery and the classes of its boxes."""
    names, count = run.config.class_names, getattr(_entry(run), "npoints", 0) or 40_000
    points = (shape.points if shape.faces is None else shape.sample(count)[0]).astype(np.float32)
    points = points if file.name.endswith(VERTICES) else _along_z(points, run.args.up)
    if len(points) < run.config.model.preenc_npoints:
        raise UserError(
            f"{printable(name)}: has {len(points):,} points, fewer than the {run.config.model.preenc_npoints:,} centres of the model"
        )
    largest = float(np.abs(points).max())
    if largest > FAR:
        run.log.warning(f"{printable(name)}: has coordinates up to {largest:g}; scenes are in metres, near the origin")
    colors = _colors(file, shape) if run.config.model.use_color else None
    inputs = _inputs(run.device, points, colors, count)
    (result,) = scene_results(inputs, predict(run, model, inputs), Rules())
    boxes = [box for box in best_of_each(result.detected) if box[2] > SURE]
    stem = re.sub(r"[^A-Za-z0-9._-]+", "_", name)
    _write(folder, stem, points, [(names[label], score, result.corners[box]) for label, box, score in boxes])
    shown = {"predicted": [(label, result.corners[box]) for label, box, _ in boxes]}
    item = scene_item(
        printable(name), shown_points(points), shown, names, note=f"{len(boxes)} boxes with a score above {SURE:g}"
    )
    return item, [names[label] for label, *_ in boxes]


def _along_z(points: np.ndarray, up: str) -> np.ndarray:
    x, y, z = upright(points, up).T
    return np.stack([x, -z, y], axis=1)


def _colors(file: Path, shape: Shape) -> np.ndarray:
    """Return the colours (n, 3), 0 to 255, of the points of a scene.

    Raises:
        UserError: the file holds none that can be used.
    """
    if not file.name.endswith(VERTICES):
        raise UserError(f"{printable(file)}: this detector needs colours, which are read of {VERTICES} files only")
    vertices = load_npy(file)
    if vertices.ndim != 2 or vertices.shape[1] != 6:
        raise UserError(
            f"{printable(file)}: has shape {vertices.shape}; this detector needs (n, 6), coordinates and colours, as VoteNet prepares them"
        )
    colors = vertices[:, 3:] if shape.kept is None else vertices[shape.kept, 3:]
    check_colors(colors, file.name.removesuffix(VERTICES), printable(file))
    return colors


def _inputs(device: torch.device, points: np.ndarray, colors: np.ndarray | None, count: int) -> Inputs:
    """Return one scene as a batch; its points are drawn from what it holds."""
    seed = zlib.crc32(np.ascontiguousarray(points).tobytes())
    scene = sample(scene_of_points(points), count, np.random.RandomState(seed))
    return Inputs(
        torch.from_numpy(scene.points)[None].to(device),
        {key: torch.from_numpy(value)[None].to(device) for key, value in targets(scene).items()},
        None if colors is None else torch.from_numpy(centered_colors(colors[scene.rows]))[None].to(device),
    )


def _write(folder: Path, stem: str, points: np.ndarray, boxes: list[tuple[str, float, np.ndarray]]) -> None:
    """Write the boxes of a scene as JSON, metres, z up, and with its points as PLY, the edges coloured by class."""
    folder.mkdir(parents=True, exist_ok=True)
    rows, cells, colors = [], [points], [np.full((len(points), 3), 150, np.uint8)]
    classes = sorted({name for name, *_ in boxes})
    for name, score, corners in boxes:
        low, high = depth_bounds(corners)
        rows.append(
            {"class": name, "score": score, "center": ((low + high) / 2).tolist(), "size": (high - low).tolist()}
        )
        edges, shade = box_edges(corners), CATEGORIES[classes.index(name) % len(CATEGORIES)]
        cells.append(edges.astype(np.float32))
        colors.append(np.tile(np.array([int(shade[at : at + 2], 16) for at in (1, 3, 5)], np.uint8), (len(edges), 1)))
    text = json.dumps({"unit": "metres, z up", "boxes": rows}, indent=1) + "\n"
    write_atomic(folder / f"{stem}.json", lambda file: file.write(text.encode("utf-8")))
    comments = [f"{name}, color {CATEGORIES[row % len(CATEGORIES)]}" for row, name in enumerate(classes)]
    write_ply(folder / f"{stem}.ply", np.concatenate(cells), colors=np.concatenate(colors), comments=comments)
