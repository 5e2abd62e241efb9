"""ModelNet in the layout of `modelnet40_ply_hdf5_2048`: ModelNet40 for the linear SVM, and ModelNet10."""

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from datasets.cache import Recipe, cached
from datasets.clouds import CloudSet, check_subset
from datasets.formats.hdf5 import inspect, read_chunks
from datasets.fractions import FractionKeys
from datasets.paths import missing, require
from datasets.registry import DATASETS
from utils.errors import UserError
from utils.reading import read_text

FOLDER = "modelnet40_ply_hdf5_2048"
CLASS_NAMES = "shape_names.txt"


@dataclass
class ModelNet40SVMConfig(FractionKeys):
    """Keys of ModelNet40_SVM. Clouds are taken as stored: the first `num_points` points, not normalised."""

    NAME: str = "ModelNet40_SVM"
    DATA_DIR: str = "data/"  # contains modelnet40_ply_hdf5_2048, or is that folder
    N_POINTS: int = 8192  # at most this many points of each stored cloud are kept
    NUM_CATEGORY: int = 40
    USE_NORMALS: bool = False  # the files hold none; True is an error
    UP_AXIS: str = "y"
    subset: str = "train"
    num_points: int = 1024
    npoints: int = 0  # points a sample; 0 = num_points
    sampling: str = "first"  # random | first | all
    normalize: bool = False
    bs: int = 0  # batch of this loader; 0 = the recipe's


@dataclass
class ModelNet10Config(ModelNet40SVMConfig):
    """Keys of ModelNet10: the same reader with z up and 1,024 stored points."""

    NAME: str = "ModelNet10"
    DATA_DIR: str = "data/modelnet10_hdf5_1024"
    N_POINTS: int = 1024
    NUM_CATEGORY: int = 10
    UP_AXIS: str = "z"


@DATASETS.register("ModelNet40_SVM", config=ModelNet40SVMConfig)
@DATASETS.register("ModelNet10", config=ModelNet10Config)
def read_modelnet(config: ModelNet40SVMConfig) -> CloudSet:
    """Read one split: `ply_data_<subset>*.h5` in order of their number, classes from `shape_names.txt` if there.

    Raises:
        UserError: naming file, cloud and remedy for anything missing, damaged or out of range.
    """
    check_subset(config.subset, config.NAME)
    if config.USE_NORMALS:
        raise UserError(f"{config.NAME}: USE_NORMALS is true, but this layout holds no normals; set it to false")
    folder = _folder(Path(config.DATA_DIR), config.subset)
    shapes = [inspect(path) for path in _files(folder, config.subset)]
    stored = {shape.points for shape in shapes}
    if len(stored) > 1:
        listing = ", ".join(f"{shape.path.name}: {shape.points}" for shape in shapes)
        raise UserError(f"{folder}: the files hold different numbers of points ({listing}); use one number for all")
    points = min(config.N_POINTS, stored.pop()) if config.N_POINTS > 0 else stored.pop()
    class_names = read_class_names(folder)
    classes = len(class_names) if class_names else config.NUM_CATEGORY
    count = sum(shape.count for shape in shapes)
    arrays = cached(
        Recipe(
            name=f"{config.NAME}-{config.subset}",
            key={"points": points, "classes": classes},
            sources=[shape.path for shape in shapes],
            fields={"points": ("<f4", (points, 3)), "labels": ("<i8", ())},
            count=count,
            chunks=lambda: read_chunks(shapes, points, classes),
        )
    )
    return CloudSet(
        points=arrays["points"],
        labels=np.asarray(arrays["labels"]),
        class_names=class_names,
        names=_names(folder, config.subset, shapes, count),
        name=config.NAME,
        subset=config.subset,
        source=str(folder),
        up_axis=config.UP_AXIS,
        npoints=config.npoints or config.num_points,
        sampling=config.sampling,
        normalize=config.normalize,
    )


def _folder(given: Path, subset: str) -> Path:
    """Accept the folder that contains the published one, or the folder itself."""
    layout = f"a folder {FOLDER}/ with ply_data_{subset}*.h5, or these files themselves"
    require(given, layout)
    for folder in (given, given / FOLDER):
        if any(folder.glob(f"ply_data_{subset}*.h5")):
            return folder
    raise missing(given / f"ply_data_{subset}0.h5", layout)


def _files(folder: Path, subset: str) -> list[Path]:
    def number(path: Path) -> tuple[int, str]:
        digits = re.findall(r"\d+", path.stem)
        return (int(digits[-1]) if digits else -1, path.name)

    return sorted(folder.glob(f"ply_data_{subset}*.h5"), key=number)


def read_class_names(folder: Path) -> list[str] | None:
    """Read `shape_names.txt`, one class name a line; None where there is none."""
    path = folder / CLASS_NAMES
    if not path.is_file():
        return None
    names = [line.strip() for line in read_text(path).splitlines() if line.strip()]
    if not names:
        raise UserError(f"{path}: is empty; expected one class name a line, or no such file at all")
    return names


def _names(folder: Path, subset: str, shapes: list, count: int) -> list[str]:
    """Name clouds by `<subset>_ids.txt` when it lists them all, else by file and row."""
    path = folder / f"{subset}_ids.txt"
    if path.is_file():
        lines = read_text(path).split()
        if len(lines) == count:
            return lines
    return [f"{shape.path.name}[{row}]" for shape in shapes for row in range(shape.count)]
