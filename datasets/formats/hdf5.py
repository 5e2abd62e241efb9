"""Read and check HDF5 files of point clouds with the datasets `data` (n, P, >=3) and `label` (n,) or (n, 1)."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from datasets.clouds import check_finite, check_labels
from utils.errors import UserError

ROWS = 512  # clouds read at once
REDOWNLOAD = "The file is damaged or of another kind: download or convert it again; see README, section Data"


@dataclass(frozen=True)
class Shape:
    """What the header of one file promises."""

    path: Path
    count: int
    points: int


def inspect(path: Path) -> Shape:
    """Check the header of one file.

    Raises:
        UserError: if it is no HDF5 file, is cut short, lacks a dataset, or the shapes are wrong or differ.
    """
    with _open(path) as file:
        for key in ("data", "label"):
            if key not in file or not hasattr(file[key], "shape"):
                present = ", ".join(sorted(file)) or "nothing"
                raise UserError(f"{path}: dataset '{key}' is missing (the file holds {present}). {REDOWNLOAD}")
        shape, labels = file["data"].shape, file["label"].shape
        if len(shape) != 3 or shape[2] != 3 or file["data"].dtype.kind not in "fiu":
            raise UserError(
                f"{path}: 'data' has shape {shape} and type {file['data'].dtype}; expected numbers of shape "
                f"(clouds, points, 3). {REDOWNLOAD}"
            )
        if shape[0] == 0 or shape[1] == 0:
            raise UserError(f"{path}: 'data' is empty (shape {shape}); expected at least one cloud. {REDOWNLOAD}")
        if labels not in ((shape[0],), (shape[0], 1)) or file["label"].dtype.kind not in "fiu":
            raise UserError(
                f"{path}: 'label' has shape {labels} and type {file['label'].dtype} for {shape[0]} clouds in 'data'; "
                f"expected one number a cloud. {REDOWNLOAD}"
            )
    return Shape(path, shape[0], shape[1])


def read_chunks(shapes: list[Shape], points: int, classes: int) -> Iterator[dict[str, np.ndarray]]:
    """Yield {"points": (m, points, 3), "labels": (m,)} of all files in order, checked.

    Raises:
        UserError: naming file and cloud for NaN, infinities, labels out of range and unreadable data.
    """
    for shape in shapes:
        labels = check_labels(read_labels(shape.path), classes, str(shape.path))
        with _open(shape.path) as file:
            for begin in range(0, shape.count, ROWS):
                end = min(begin + ROWS, shape.count)
                yield {"points": _read_rows(file, shape.path, begin, end, points), "labels": labels[begin:end]}


def read_labels(path: Path) -> np.ndarray:
    """Return `label` as stored.

    Raises:
        UserError: it cannot be read.
    """
    with _open(path) as file:
        try:
            return np.asarray(file["label"])
        except OSError as error:
            raise UserError(f"{path}: 'label' cannot be read ({error}). {REDOWNLOAD}") from error


def _read_rows(file, path: Path, begin: int, end: int, points: int) -> np.ndarray:
    try:
        rows = np.asarray(file["data"][begin:end, :points], dtype=np.float32)
    except OSError as error:
        raise UserError(f"{path}: clouds {begin} to {end - 1} cannot be read ({error}). {REDOWNLOAD}") from error
    check_finite(rows, str(path), first=begin)
    return rows


def _open(path: Path):
    import h5py

    try:
        return h5py.File(path, "r")
    except OSError as error:
        raise UserError(f"{path}: cannot be opened as HDF5 ({error}). {REDOWNLOAD}") from error
