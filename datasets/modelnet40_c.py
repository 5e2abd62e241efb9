"""ModelNet40-C (Sun et al. 2022): the test set of ModelNet40 under 15 corruptions at 5 severities, one NumPy file each.

Legend: M clouds, P points that a file stores of each; P differs between corruptions.
"""

from dataclasses import dataclass
from os.path import isfile
from pathlib import Path

import numpy as np

from datasets.clouds import CloudSet, check_labels
from datasets.formats.arrays import load_npy
from datasets.formats.points import to_single
from datasets.modelnet import read_class_names
from datasets.paths import missing, require
from datasets.registry import DATASETS
from utils.errors import UserError, suggest

# The three families of the benchmark.
FAMILIES = {
    "density": ("occlusion", "lidar", "density_inc", "density", "cutout"),
    "noise": ("uniform", "gaussian", "impulse", "upsampling", "background"),
    "transformation": ("rotation", "shear", "distortion", "distortion_rbf", "distortion_rbf_inv"),
}
CORRUPTIONS = tuple(corruption for family in FAMILIES.values() for corruption in family)
SEVERITIES = (1, 2, 3, 4, 5)
# Classes of ModelNet40 by label, in the order of its published list.
CLASSES = [
    "airplane", "bathtub", "bed", "bench", "bookshelf", "bottle", "bowl", "car", "chair", "cone", "cup", "curtain", "desk",
    "door", "dresser", "flower_pot", "glass_box", "guitar", "keyboard", "lamp", "laptop", "mantel", "monitor", "night_stand",
    "person", "piano", "plant", "radio", "range_hood", "sink", "sofa", "stairs", "stool", "table", "tent", "toilet", "tv_stand",
    "vase", "wardrobe", "xbox",
]  # fmt: skip
LAYOUT = (
    "label.npy (M,) and data_<corruption>_<severity>.npy (M, P, 3), with the severities 1 to 5 and the corruptions "
    + ", ".join(CORRUPTIONS)
)
CHUNK = 256  # clouds that are checked at a time


@dataclass
class ModelNet40CConfig:
    """Keys of ModelNet40_C. Clouds are taken as stored."""

    NAME: str = "ModelNet40_C"
    DATA_PATH: str = "data/modelnet40_c"
    UP_AXIS: str = "y"
    corruption: str = ""  # one of CORRUPTIONS
    severity: int = 0  # 1 to 5
    subset: str = "test"  # there is no other
    npoints: int = 0  # points a sample; 0 = all that the file stores
    sampling: str = "first"  # random | first | all
    normalize: bool = False  # centre and scale to the unit sphere, after sampling
    bs: int = 0  # batch of this loader; 0 = the recipe's


@DATASETS.register("ModelNet40_C", config=ModelNet40CConfig)
def read_modelnet40_c(config: ModelNet40CConfig) -> CloudSet:
    """Read one corruption at one severity, memory-mapped; classes from `shape_names.txt` if there, else those of ModelNet40.

    Raises:
        UserError: naming file, cloud and remedy for anything missing, damaged or out of range.
    """
    if config.subset != "test":
        raise UserError(
            f"{config.NAME}: subset {config.subset!r} is unknown; it is a test set only, train on ModelNet40"
        )
    if config.corruption not in CORRUPTIONS:
        raise UserError(
            f"{config.NAME}: corruption {config.corruption!r} is unknown; {suggest(config.corruption, CORRUPTIONS)}"
        )
    if config.severity not in SEVERITIES:
        raise UserError(f"{config.NAME}: severity {config.severity} is unknown; choose 1 to 5")
    folder = require(Path(config.DATA_PATH), LAYOUT)
    path = file_of(folder, config.corruption, config.severity)
    if not isfile(path):
        raise missing(path, LAYOUT)
    class_names = read_class_names(folder) or list(CLASSES)
    labels = _read_labels(folder / "label.npy", len(class_names))
    points = _read_points(path, len(labels))
    return CloudSet(
        points=points,
        labels=labels,
        class_names=class_names,
        names=[f"{path.name}[{row}]" for row in range(len(labels))],
        name=f"{config.NAME} {config.corruption} {config.severity}",
        subset=config.subset,
        source=str(path),
        up_axis=config.UP_AXIS,
        npoints=config.npoints,
        sampling=config.sampling,
        normalize=config.normalize,
    )


def file_of(folder: Path, corruption: str, severity: int) -> Path:
    """Return the file of a corruption at a severity."""
    return folder / f"data_{corruption}_{severity}.npy"


def present(folder: Path) -> tuple[list[tuple[str, int]], list[str]]:
    """Return (corruption, severity) of the files in a folder, in the order of the benchmark, and the names of those it lacks.

    Raises:
        UserError: there is no such folder, or no file of the benchmark in it.
    """
    require(folder, LAYOUT)
    found, lost = [], []
    for corruption in CORRUPTIONS:
        for severity in SEVERITIES:
            path = file_of(folder, corruption, severity)
            if isfile(path):
                found.append((corruption, severity))
            else:
                lost.append(path.name)
    if not found:
        raise missing(folder / lost[0], LAYOUT)
    return found, lost


def _read_labels(path: Path, classes: int) -> np.ndarray:
    if not isfile(path):
        raise missing(path, LAYOUT)
    labels = load_npy(path)
    if labels.dtype.kind not in "iuf" or labels.size == 0:
        raise UserError(f"{path}: holds {labels.shape} {labels.dtype}; expected one class id a cloud")
    return check_labels(labels, classes, str(path))


def _read_points(path: Path, count: int) -> np.ndarray:
    """Return (M, P, 3) float32, mapped where the file stores it so."""
    points = load_npy(path, mapped=True)
    if points.ndim != 3 or points.shape[2] != 3 or points.dtype.kind != "f" or 0 in points.shape:
        raise UserError(f"{path}: holds {points.shape} {points.dtype}; expected clouds (M, P, 3) of floating point")
    if len(points) != count:
        raise UserError(
            f"{path}: holds {len(points)} clouds, and label.npy next to it {count} labels; the files are of different releases "
            "or cut short, copy or download them again"
        )
    checked = [to_single(points[first : first + CHUNK], path, first=first) for first in range(0, count, CHUNK)]
    if (
        points.dtype == np.float32
        and points.flags.c_contiguous
        and all(np.shares_memory(part, points) for part in checked)
    ):
        return points  # as stored
    return np.concatenate(checked)
