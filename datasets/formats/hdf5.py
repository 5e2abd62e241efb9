"""Read and check HDF5 files of point clouds with the datasets `data` (n, P, >=3) and `label` (n,) or (n, 1).

Columns after x, y, z are left out. What is in other files (links, virtual and external data) is not read.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from datasets.clouds import check_labels
from datasets.formats.points import to_single
from utils.errors import UserError
from utils.reading import check_file, check_room, reading, reason

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
        UserError: if it is no HDF5 file, is cut short, lacks a dataset or some of its values, or the shapes are wrong or differ.
    """
    with _open(path) as file, reading(path, "HDF5", REDOWNLOAD):
        for key in ("data", "label"):
            _check_there(path, file, key)
        data, label = file["data"], file["label"]
        shape, labels = data.shape, label.shape
        if len(shape) == 3 and shape[1] == 3 < shape[2]:
            raise UserError(
                f"{path}: 'data' has shape {shape}: points and coordinates look exchanged; transpose it to (clouds, points, 3)"
            )
        if len(shape) != 3 or shape[2] < 3 or data.dtype.kind not in "fiu":
            raise UserError(
                f"{path}: 'data' has shape {shape} and type {data.dtype}; expected numbers of shape "
                f"(clouds, points, 3 or more). {REDOWNLOAD}"
            )
        if shape[0] == 0 or shape[1] == 0:
            raise UserError(f"{path}: 'data' is empty (shape {shape}); expected at least one cloud. {REDOWNLOAD}")
        if labels not in ((shape[0],), (shape[0], 1)) or label.dtype.kind not in "fiu":
            raise UserError(
                f"{path}: 'label' has shape {labels} and type {label.dtype} for {shape[0]} clouds in 'data'; "
                f"expected one number a cloud. {REDOWNLOAD}"
            )
        for key in ("data", "label"):
            _check_written(path, key, file[key])
        check_room(path, shape[0] * 8, "has labels of")
        check_room(path, min(ROWS, shape[0]) * shape[1] * shape[2] * data.dtype.itemsize, "has clouds of")
    return Shape(path, shape[0], shape[1])


def _check_there(path: Path, file, key: str) -> None:
    import h5py

    if key not in file or not hasattr(file[key], "shape"):
        present = ", ".join(sorted(file)[:8]) or "nothing"
        raise UserError(f"{path}: dataset '{key}' is missing (the file holds {present}). {REDOWNLOAD}")
    link = file.get(key, getlink=True)
    if isinstance(link, h5py.ExternalLink) or file[key].is_virtual or file[key].external:
        raise UserError(
            f"{path}: the values of '{key}' are in another file, which is not read; copy them into this one"
        )


def _check_written(path: Path, key: str, values) -> None:
    """Refuse values that were never written: they would be read as zeros."""
    if values.chunks is None:
        whole = values.id.get_storage_size() >= values.size * values.dtype.itemsize
    else:
        wanted = math.prod(-(-size // chunk) for size, chunk in zip(values.shape, values.chunks, strict=True))
        whole = values.id.get_num_chunks() == wanted
    if not whole:
        raise UserError(f"{path}: some values of '{key}' were never written. {REDOWNLOAD}")


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
    with _open(path) as file, reading(path, "HDF5 labels", REDOWNLOAD):
        return np.asarray(file["label"])


def _read_rows(file, path: Path, begin: int, end: int, points: int) -> np.ndarray:
    with reading(path, f"HDF5, clouds {begin} to {end - 1}", REDOWNLOAD):
        rows = file["data"][begin:end, :points, :3]
    return to_single(rows, path, first=begin)


def _open(path: Path):
    import h5py

    check_file(path)
    with reading(path, "HDF5", REDOWNLOAD):
        try:
            return h5py.File(path, "r", locking=False)  # some network drives have no locks, and reading needs none
        except OSError as error:
            raise UserError(f"{path}: cannot be opened as HDF5 ({reason(error)}). {REDOWNLOAD}") from error
