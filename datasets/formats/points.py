"""What every reader of clouds does with coordinates: shape, missing points, extent, and the step to single precision.

Legend: n points of a file, M clouds of a set, P points of each.
"""

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from utils.errors import UserError, printable

LARGEST = 1e18  # a coordinate beyond it cannot be squared in single precision: it marks a missing point
SMALLEST = 1e-15  # an extent below it neither
FAR = 16  # times its extent: a cloud this far from the origin is centred before it is rounded to single precision
FEWEST_STEPS = 2048  # of single precision across a cloud; fewer are worth a warning
MOST_COLUMNS = 16  # of one point; more of them than rows means that rows and columns are exchanged

# Where the axes of a cloud go so that y is up; a rotation, no reflection.
_UPRIGHT = {"x": ((1, -1), (0, 1), (2, 1)), "y": ((0, 1), (1, 1), (2, 1)), "z": ((0, 1), (2, 1), (1, -1))}

_LOG = logging.getLogger("m2ae.data")


class Notes:
    """What readers had to say about files that they read all the same; told once, by kind, with the first file."""

    def __init__(self):
        self._kinds: dict[str, list[tuple[str, str]]] = {}

    def add(self, path: str | Path, kind: str, detail: str) -> None:
        """Remember a note about a file."""
        self._kinds.setdefault(kind, []).append((printable(path), detail))

    def take(self, entries: Sequence[tuple[str, str, str]]) -> None:
        """Take over entries of another process."""
        for path, kind, detail in entries:
            self.add(path, kind, detail)

    def entries(self) -> list[tuple[str, str, str]]:
        """Return (file, kind, detail) of each note."""
        return [(path, kind, detail) for kind, found in self._kinds.items() for path, detail in found]

    def lines(self) -> list[str]:
        """Return one line a kind."""
        return [
            f"{found[0][0]}: {kind} ({found[0][1]})" + (f"; so {len(found):,} files" if len(found) > 1 else "")
            for kind, found in self._kinds.items()
        ]

    def tell(self) -> None:
        """Log the lines as warnings."""
        for line in self.lines():
            _LOG.warning("%s", line)


def as_rows(array: np.ndarray) -> np.ndarray:
    """Return an array as (n, 3), the first three columns; (1, n, 3) and records with fields x, y, z pass too.

    Raises:
        ValueError: it has another shape, or rows and columns are exchanged, or it does not hold numbers.
    """
    if array.dtype.names is not None:
        lower = {name.lower(): name for name in array.dtype.names}
        if not {"x", "y", "z"} <= set(lower):
            raise ValueError(f"its records have the fields {', '.join(array.dtype.names)}; expected x, y and z")
        array = np.stack([array[lower[axis]] for axis in "xyz"], axis=-1)
    if array.dtype.kind not in "fiu":
        raise ValueError(f"has the type {array.dtype}; expected real numbers")
    shape = array.shape
    if len(shape) == 3 and shape[0] == 1:
        array = array[0]
    if array.ndim == 3:
        raise ValueError(f"has shape {shape}: {shape[0]} clouds; write one a file")
    if array.ndim != 2 or 0 in array.shape:
        raise ValueError(f"has shape {shape}; expected one row of at least x, y, z a point")
    rows, columns = array.shape
    if columns > rows and columns > 3 and (rows == 3 or columns > MOST_COLUMNS):
        raise ValueError(f"has shape {shape}: rows and columns look exchanged; transpose it to one row a point")
    if columns < 3:
        raise ValueError(f"has shape {shape}; expected one row of at least x, y, z a point")
    return array[:, :3]


def settle(path: Path, points: np.ndarray, notes: Notes) -> tuple[np.ndarray, np.ndarray | None]:
    """Return points (n, 3) in double precision without the missing ones: NaN, infinite, or beyond any coordinate (nodata).

    Returns:
        the points, and which rows they were where some are missing, (rows,) bool.

    Raises:
        UserError: nothing is left, or the points are all in one place, or their extent is too small to be squared.
    """
    points = np.ascontiguousarray(points, np.float64)
    (low, high), there = _bounds(points), None
    if not (low.min() >= -LARGEST and high.max() <= LARGEST):  # NaN as well
        there = (np.abs(points) <= LARGEST).all(axis=1)
        lost = len(points) - int(there.sum())
        if lost == len(points):
            raise UserError(
                f"{printable(path)}: none of its {lost:,} points has coordinates that are finite and below {LARGEST:g}; "
                "export the cloud again, without missing points and in metres"
            )
        notes.add(path, "points without finite coordinates were left out", f"{lost:,} of {len(points):,}")
        points = points[there]
        low, high = _bounds(points)
    _check_extent(path, points, low, high, notes)
    return points, there


def _bounds(points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the smallest and largest coordinates of clouds (..., n, 3), two (..., 3) float64; NaN where there is one.

    One column after the other is nine times as fast as both at once.
    """
    columns = [points[..., axis] for axis in range(3)]
    low, high = (np.stack([pick(column, axis=-1) for column in columns], axis=-1) for pick in (np.min, np.max))
    return low.astype(np.float64), high.astype(np.float64)


def _check_extent(path: Path, points: np.ndarray, low: np.ndarray, high: np.ndarray, notes: Notes) -> None:
    span = float((high - low).max())
    reach = float(max(np.abs(low).max(), np.abs(high).max()))
    if len(points) == 1 or span <= 8 * np.spacing(reach):
        what = "holds one point" if len(points) == 1 else f"its {len(points):,} points are all in one place"
        raise UserError(f"{printable(path)}: {what}; a cloud needs points in several places, export it again")
    if span < SMALLEST:
        raise UserError(
            f"{printable(path)}: its extent is {span:g}, too small to compute with; give it in a smaller unit"
        )
    steps = span / float(np.spacing(np.float32(reach)))
    if steps < FEWEST_STEPS and np.array_equal(points[:1000], points[:1000].astype(np.float32)):
        notes.add(
            path,
            "coordinates so far from the origin were rounded when they were stored in single precision; export them in double precision, "
            "or centred",
            f"up to {reach:.6g}, {steps:.0f} steps across the cloud",
        )


def to_single(clouds: np.ndarray, where: str | Path, *, first: int = 0) -> np.ndarray:
    """Return clouds (M, P, 3) of a set as float32; those far from the origin are centred before, in double precision.

    What lies near the origin keeps its numbers: the published sets do, whatever their type.

    Args:
        where: file or folder, for messages.
        first: number of clouds[0] in it.

    Raises:
        UserError: naming the first cloud with coordinates that are not finite, or whose points are all in one place.
    """
    low, high = _bounds(clouds)  # (M, 3)
    reach = np.maximum(np.abs(low), np.abs(high)).max(axis=1)  # (M,)
    bad = np.flatnonzero(~(reach <= LARGEST))
    if len(bad):
        raise UserError(
            f"{printable(where)}: cloud {first + bad[0]} holds NaN or infinite coordinates, or some beyond {LARGEST:g} "
            f"({len(bad)} of the {len(clouds)} clouds from {first} on do); repair or remove these clouds"
        )
    span = (high - low).max(axis=1)
    flat = np.flatnonzero(span <= np.maximum(8 * np.spacing(reach), SMALLEST))
    if len(flat) and clouds.shape[1] > 1:
        raise UserError(
            f"{printable(where)}: the points of cloud {first + flat[0]} are all in one place ({len(flat)} of the {len(clouds)} clouds "
            f"from {first} on are so); the file is damaged or was never filled: copy it again, or remove these clouds"
        )
    far = np.flatnonzero(reach > FAR * span) if clouds.shape[1] > 1 else []
    if not len(far):
        return np.ascontiguousarray(clouds, np.float32)
    single = clouds.astype(np.float32)
    moved = clouds[far].astype(np.float64)
    single[far] = moved - moved.mean(axis=1, keepdims=True)
    _LOG.warning(
        "%s: %d clouds lie far from the origin, up to %.6g, and were centred; the first is cloud %d",
        printable(where), len(far), reach.max(), first + far[0],
    )  # fmt: skip
    return single


def check_up(up: str) -> None:
    """Raise `UserError` for an axis that `upright` does not know."""
    if up not in _UPRIGHT:
        raise UserError(f"--up {up}: is no axis; choose x, y or z")


def upright(points: np.ndarray, up: str) -> np.ndarray:
    """Turn points (n, 3), or normals, so that the axis `up` of theirs becomes y."""
    check_up(up)
    return points if up == "y" else np.stack([sign * points[:, axis] for axis, sign in _UPRIGHT[up]], axis=1)
