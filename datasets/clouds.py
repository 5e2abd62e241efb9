"""The one form in which every data set reaches the rest of the program.

Legend: M clouds, P stored points a cloud.
"""

from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from utils.errors import UserError

SAMPLINGS = ("random", "replacement", "scene", "first", "all")
UP_AXES = ("x", "y", "z")
SUBSETS = ("train", "test")
_COLUMNS = ("labels", "part_labels", "normals", "counts", "boxes", "box_counts", "colors")  # arrays with a row a cloud


@dataclass(frozen=True, eq=False)
class CloudSet:
    """One split of a data set: contiguous arrays, usually memory-mapped, plus how a sample is taken from them."""

    points: np.ndarray = field(repr=False)  # (M, P, 3) float32
    name: str
    subset: str
    source: str = ""  # file or folder it was read from, for messages
    up_axis: str = "y"
    npoints: int = 0  # points that a sample takes; 0 = all stored ones
    sampling: str = "all"
    normalize: bool = False  # centre and divide by the largest norm, after sampling
    labels: np.ndarray | None = field(default=None, repr=False)  # (M,) int64
    class_names: list[str] | None = None
    names: list[str] = field(default_factory=list, repr=False)  # one a cloud, for messages
    part_labels: np.ndarray | None = field(default=None, repr=False)  # (M, P) int16, global part ids
    part_names: list[str] | None = None  # "<category> <part>" by global id
    category_parts: dict[str, list[int]] | None = None  # category -> its global part ids
    normals: np.ndarray | None = field(default=None, repr=False)  # (M, P, 3) float32, unit length
    counts: np.ndarray | None = field(
        default=None, repr=False
    )  # (M,) int64, points of each cloud that follow no other; then they repeat
    view_files: list[list[Path]] | None = field(
        default=None, repr=False
    )  # pictures of each cloud, where the set has any
    boxes: np.ndarray | None = field(default=None, repr=False)  # (M, 64, 8) float64 of objects, see datasets/scenes.py
    box_counts: np.ndarray | None = field(default=None, repr=False)  # (M,) int64, how many of the rows are boxes
    colors: np.ndarray | None = field(default=None, repr=False)  # (M, P, 3) uint8

    def __post_init__(self) -> None:
        """Check what later code trusts.

        Raises:
            UserError: for an empty set, more points asked than stored, or an unknown sampling or axis.
        """
        where = f"{self.name} ({self.subset})" + (f" in {self.source}" if self.source else "")
        if self.points.ndim != 3 or self.points.shape[2] != 3 or self.points.dtype != np.float32:
            raise UserError(f"{where}: points are {self.points.shape} {self.points.dtype}; expected (M, P, 3) float32")
        count, stored, _ = self.points.shape
        if count == 0 or stored == 0:
            raise UserError(f"{where}: holds no points (shape {self.points.shape}); check the files of this split")
        if self.sampling not in SAMPLINGS:
            raise UserError(f"{where}: sampling {self.sampling!r} is unknown; choose one of {', '.join(SAMPLINGS)}")
        if self.up_axis not in UP_AXES:
            raise UserError(f"{where}: UP_AXIS {self.up_axis!r} is unknown; choose one of {', '.join(UP_AXES)}")
        if self.sampling == "all" or self.npoints == 0:
            object.__setattr__(self, "npoints", stored)
        most = self.npoints if self.sampling in ("replacement", "scene") else stored
        if not 0 < self.npoints <= most:
            raise UserError(
                f"{where}: {self.npoints} points a sample are asked, but its clouds hold {stored}; "
                f"set npoints to {stored} or less"
            )
        self._check_lengths(where, count)

    def _check_lengths(self, where: str, count: int) -> None:
        for key in (*_COLUMNS, "names", "view_files"):
            value = getattr(self, key)
            if value is not None and len(value) not in (count, 0 if key == "names" else count):
                raise UserError(f"{where}: {len(value)} {key} for {count} clouds; the counts must be equal")

    def __len__(self) -> int:
        return len(self.points)

    def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
        """Return a cloud as it is stored, (P, 3) float32, and its label, -1 in sets without labels; `Samples` draws and scales."""
        return np.array(self.points[index]), -1 if self.labels is None else int(self.labels[index])

    def select(self, indices) -> "CloudSet":
        """Return the set of the clouds at `indices` (any order, copied into memory)."""
        indices = np.asarray(indices, dtype=np.int64)
        taken = {
            key: None if getattr(self, key) is None else np.ascontiguousarray(getattr(self, key)[indices])
            for key in ("points", *_COLUMNS)
        }
        names = [self.names[i] for i in indices] if self.names else []
        views = None if self.view_files is None else [self.view_files[i] for i in indices]
        return replace(self, names=names, view_files=views, **taken)


def check_subset(subset: str, name: str) -> None:
    """Raise `UserError` for a split that the data set `name` does not have."""
    if subset not in SUBSETS:
        raise UserError(f"{name}: subset {subset!r} is unknown; choose one of {', '.join(SUBSETS)}")


def check_labels(labels: np.ndarray, classes: int, where: str) -> np.ndarray:
    """Return `labels` as (M,) int64.

    Raises:
        UserError: for a label that is no integer, negative, or not below `classes`; names file and cloud.
    """
    flat = np.asarray(labels).reshape(-1)
    whole = flat.astype(np.int64) if np.isfinite(flat.astype(np.float64)).all() else None
    if whole is None or not np.array_equal(whole, flat):
        raise UserError(f"{where}: labels are not whole numbers; expected class ids 0 to {classes - 1}")
    wrong = np.flatnonzero((whole < 0) | (whole >= classes))
    if len(wrong):
        raise UserError(
            f"{where}: label {whole[wrong[0]]} of cloud {wrong[0]} is out of range 0 to {classes - 1} "
            f"({len(wrong)} of {len(whole)} labels are); check the labels, shape_names.txt and NUM_CATEGORY"
        )
    return whole


def check_finite(points: np.ndarray, where: str, *, first: int = 0) -> None:
    """Raise `UserError` naming the first cloud of `points` (M, P, 3) that holds NaN or an infinity.

    `first` is the index of points[0] in its file.
    """
    bad = np.flatnonzero(~np.isfinite(points).all(axis=(1, 2)))
    if len(bad):
        raise UserError(
            f"{where}: cloud {first + bad[0]} holds NaN or infinite coordinates "
            f"({len(bad)} of the {len(points)} clouds from {first} on do); repair or remove these clouds"
        )
