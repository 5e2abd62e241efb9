"""ScanNetV2 as VoteNet prepares it for detection: vertices of scans and boxes of 18 classes.

Legend: M scenes, n vertices of a scene, k boxes.
"""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from os.path import isfile
from pathlib import Path

import numpy as np

from datasets.cache import Recipe, cached
from datasets.clouds import CloudSet
from datasets.formats.arrays import load_npy
from datasets.fractions import FractionKeys
from datasets.paths import require
from datasets.registry import DATASETS
from datasets.scenes import MOST_BOXES
from utils.errors import UserError
from utils.reading import read_text

# Name of each class by label -> its id among the 40 of NYU; names as published, misspellings included.
CLASSES = {
    "cabinet": 3, "bed": 4, "chair": 5, "sofa": 6, "table": 7, "door": 8, "window": 9, "bookshelf": 10, "picture": 11, "counter": 12,
    "desk": 14, "curtain": 16, "refrigerator": 24, "showercurtrain": 28, "toilet": 33, "sink": 34, "bathtub": 36, "garbagebin": 39,
}  # fmt: skip
SPLITS = ("train", "val")
PARTS = ("vert", "ins_label", "sem_label", "bbox")
LAYOUT = "<scene>_vert.npy, <scene>_ins_label.npy, <scene>_sem_label.npy and <scene>_bbox.npy of each scene"
MOST_VERTICES = 50_000  # of a scan in VoteNet's preparation
RARELY_ABSENT = 0.01  # share of listed scenes that may have no files
CHUNK = 16  # scenes in memory at once while the cache is written
_LOG = logging.getLogger("m2ae.data")


@dataclass
class ScanNetConfig(FractionKeys):
    """Keys of ScanNet. Scenes stay where and as large as they are, in metres, z up."""

    NAME: str = "ScanNet"
    ROOT: str = "data/scannet/scannet_train_detection_data"  # the files of all scenes
    META: str = "data/scannet/meta_data"  # scannetv2_train.txt, scannetv2_val.txt
    UP_AXIS: str = "z"  # fixed
    subset: str = "train"  # train | val
    npoints: int = 40000  # points a sample
    sampling: str = "scene"  # drawn, without repetition where a scene has as many | first | all
    bs: int = 0  # batch of this loader; 0 = the recipe's


@DATASETS.register("ScanNet", config=ScanNetConfig)
def read_scannet(config: ScanNetConfig) -> CloudSet:
    """Read one split; shorter scenes are repeated to a common length.

    Raises:
        UserError: naming the scene for anything missing or malformed.
    """
    if config.subset not in SPLITS:
        raise UserError(
            f"{config.NAME}: subset {config.subset!r} is unknown; choose train or val (the scenes of test have no labels)"
        )
    if config.UP_AXIS != "z":
        raise UserError(f"{config.NAME}: UP_AXIS {config.UP_AXIS!r} is not possible; VoteNet's scenes stand along z")
    root = require(Path(config.ROOT), LAYOUT)
    names = listed_scenes(root, Path(config.META) / f"scannetv2_{config.subset}.txt")
    counts = np.array([vertices_of(root, name) for name in names])
    most = int(counts.max())
    fields = {
        "points": ("<f4", (most, 3)),
        "colors": ("|u1", (most, 3)),
        "boxes": ("<f8", (MOST_BOXES, 8)),
        "box_counts": ("<i8", ()),
    }
    arrays = cached(
        Recipe(
            name=f"ScanNet-{config.subset}",
            key={},
            sources=[path_of(root, name, part) for name in names for part in ("vert", "bbox")],
            fields=fields,
            count=len(names),
            chunks=lambda: _chunks(root, names, most),
        )
    )
    return CloudSet(
        points=arrays["points"],
        colors=arrays["colors"],
        boxes=arrays["boxes"],
        box_counts=np.asarray(arrays["box_counts"]),
        class_names=list(CLASSES),
        names=names,
        counts=counts,
        name=config.NAME,
        subset=config.subset,
        source=str(root),
        up_axis="z",
        npoints=config.npoints,
        sampling=config.sampling,
    )


def path_of(root: Path, scene: str, part: str) -> Path:
    """Return the file of a scene: "vert", "ins_label", "sem_label" or "bbox"."""
    return root / f"{scene}_{part}.npy"


def listed_scenes(root: Path, listing: Path) -> list[str]:
    """Return the scenes of a list that have files; that some are missing is logged.

    Raises:
        UserError: no list, an empty one, or more than one scene in a hundred is missing.
    """
    require(listing, "one scene a line, such as scene0191_00", "file")
    names = [line.strip() for line in read_text(listing).splitlines() if line.strip()]
    if not names:
        raise UserError(f"{listing}: is empty; expected one scene a line, such as scene0191_00")
    twice = next((name for name in names if names.count(name) > 1), None) if len(set(names)) < len(names) else None
    if twice is not None:
        raise UserError(f"{listing}: lists {twice} twice; remove one of the lines")
    absent = [name for name in names if not any(isfile(path_of(root, name, part)) for part in PARTS)]
    if len(absent) > RARELY_ABSENT * len(names):
        raise UserError(
            f"{root}: {len(absent):,} of the {len(names):,} scenes of {listing} have no files, such as {absent[0]}; expected {LAYOUT}. "
            "Prepare them, or take them off the list"
        )
    if absent:
        _LOG.warning("%s: %d listed scenes have no files and are left out, such as %s", root, len(absent), absent[0])
    there = set(names) - set(absent)
    return [name for name in names if name in there]


def vertices_of(root: Path, scene: str) -> int:
    """Return how many vertices a scene has, by the headers of its files.

    Raises:
        UserError: a file is missing, or they are not of one preparation.
    """
    for part in PARTS:
        path = path_of(root, scene, part)
        if not isfile(path):
            raise UserError(f"{scene}: has no {path.name} in {root}; expected {LAYOUT}. Prepare this scene again")
    shape = load_npy(path_of(root, scene, "vert"), mapped=True).shape
    if len(shape) != 2 or shape[1] != 6 or not shape[0]:
        raise UserError(
            f"{path_of(root, scene, 'vert')}: has shape {shape}; expected (n, 6), coordinates and colours, as VoteNet prepares them"
        )
    for part in PARTS[1:3]:
        own = load_npy(path_of(root, scene, part), mapped=True).shape
        if own != shape[:1]:
            raise UserError(
                f"{path_of(root, scene, part)}: has shape {own} for {shape[0]} vertices; the files of {scene} are of different "
                "preparations, prepare it again"
            )
    return shape[0]


def _chunks(root: Path, names: Sequence[str], most: int) -> Iterator[dict[str, np.ndarray]]:
    for begin in range(0, len(names), CHUNK):
        part = names[begin : begin + CHUNK]
        vertices = [np.resize(read_vertices(root, name), (most, 6)) for name in part]
        boxes = [read_boxes(root, name) for name in part]
        table = np.zeros((len(part), MOST_BOXES, 8))
        for row, own in enumerate(boxes):
            table[row, : len(own)] = own
        yield {
            "points": np.stack(vertices)[..., :3],
            "colors": np.stack(vertices)[..., 3:].round().astype(np.uint8),
            "boxes": table,
            "box_counts": np.array([len(own) for own in boxes]),
        }


def read_vertices(root: Path, scene: str) -> np.ndarray:
    """Return the vertices (n, 6) float32 of a scene.

    Raises:
        UserError: they are not finite, or the colours are not between 0 and 255.
    """
    path = path_of(root, scene, "vert")
    vertices = load_npy(path)
    if vertices.dtype.kind not in "fiu":
        raise UserError(f"{path}: holds {vertices.dtype}; expected numbers")
    finite = np.isfinite(vertices).all(axis=1)
    if not finite.all():
        raise UserError(
            f"{path}: {int((~finite).sum()):,} of the {len(vertices):,} vertices of {scene} hold NaN or infinity, first row "
            f"{int(np.argmin(finite))}; prepare it again, or take it off the list"
        )
    check_colors(vertices[:, 3:], scene, str(path))
    return vertices.astype(np.float32)


def check_colors(colors: np.ndarray, scene: str, where: str) -> None:
    """Raise a UserError where colours of a scene are not between 0 and 255."""
    if not (colors.min() >= 0 and colors.max() <= 255):
        raise UserError(
            f"{where}: colours of {scene} go from {colors.min():g} to {colors.max():g}; expected 0 to 255; another preparation"
        )


def read_boxes(root: Path, scene: str) -> np.ndarray:
    """Return the boxes (k, 8) float64 of a scene: centre, full size, label, published id.

    Raises:
        UserError: another shape, too many, not finite, a size that is not positive, or an id outside the 18 classes.
    """
    path = path_of(root, scene, "bbox")
    boxes = load_npy(path)
    if boxes.size == 0:
        return np.zeros((0, 8))
    if boxes.ndim != 2 or boxes.shape[1] != 7:
        raise UserError(
            f"{path}: has shape {boxes.shape}; expected (k, 7), centre, size and class id, as VoteNet prepares them"
        )
    return checked_boxes(boxes.astype(np.float64), scene, str(path))


def checked_boxes(boxes: np.ndarray, scene: str, where: str) -> np.ndarray:
    """Return boxes (k, 7) of a scene with their labels, (k, 8), or raise as `read_boxes`."""
    if len(boxes) > MOST_BOXES:
        raise UserError(
            f"{where}: {scene} has {len(boxes)} boxes; at most {MOST_BOXES} are possible, merge or remove some"
        )
    label = {number: row for row, number in enumerate(CLASSES.values())}
    for row, box in enumerate(boxes):
        if not np.isfinite(box).all():
            raise UserError(f"{where}: box {row} of {scene} holds NaN or infinity; correct or remove it")
        if box[3:6].min() <= 0:
            size = " x ".join(f"{value:g}" for value in box[3:6])
            raise UserError(
                f"{where}: box {row} of {scene} has the size {size} m; all must be positive, correct or remove it"
            )
        if box[6] not in label:
            known = ", ".join(map(str, label))
            raise UserError(
                f"{where}: box {row} of {scene} has the class id {box[6]:g}; possible are {known}. Correct or remove it"
            )
    labels = np.array([label[number] for number in boxes[:, 6]])
    return np.concatenate([boxes[:, :6], labels[:, None], boxes[:, 6:]], axis=1)
