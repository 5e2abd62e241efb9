"""What a gallery shows: named clouds side by side in one frame, with optional values per point."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

MAX_POINTS = 8192  # of one cloud in the report; more are thinned at random and the caption says so

INSIDE, MOST_REACH = 0.995, 1.6  # share of the points that a view holds, if they are not farther out than so many radii
FAR = 32.0  # radii; what lies farther out is outside any view and would only cost resolution

# Rows of a rotation that brings the up axis to the screen's y, keeping right-handedness: x' = first row, and so on.
TO_SCREEN = {
    "x": np.array([[0, 1, 0], [1, 0, 0], [0, 0, -1]], np.float32),
    "y": np.eye(3, dtype=np.float32),
    "z": np.array([[1, 0, 0], [0, 0, 1], [0, -1, 0]], np.float32),
}

# Anchors of the colour scales, low to high, and the colours of categories (they repeat after the last).
HEIGHT_SCALE = ("#3f4fb5", "#2f86b8", "#2fae9b", "#9cc35b", "#efb94f", "#e5723f")
VALUE_SCALE = ("#440154", "#3b528b", "#21918c", "#5ec962", "#fde725")
CATEGORIES = (
    "#4c78a8", "#f58518", "#54a24b", "#e45756", "#9d6bbf", "#72b7b2", "#eeca3b", "#d67195", "#9d755d", "#7f8794",
)  # fmt: skip
COLUMN_COLORS = ("#8a94a6", "#3c83c8", "#e07b39", "#3fa37c", "#a46cc0", "#c9a227")


@dataclass(frozen=True)
class GalleryItem:
    """One row of the gallery.

    Args:
        name: the title of the row, for example the class and the index of the cloud.
        clouds: cloud name -> (n, 3) points, in order; all share one frame, that of the first cloud. Points that are not
            finite are left out, and counted in the caption.
        up_axis: "x", "y" or "z", drawn upwards.
        note: one line under the title.
        values: cloud name -> (n,) one value a point (complexity, saliency, part); clouds may be missing.
        legend: names of the categories; the values are then indices into it.
        value_name: what the values are.
        pair: true and predicted class of a cloud that was classified; the confusion matrix links to it.
    """

    name: str
    clouds: Mapping[str, np.ndarray]
    up_axis: str = "y"
    note: str | None = None
    values: Mapping[str, np.ndarray] | None = None
    legend: Sequence[str] | None = None
    value_name: str = "value"
    pair: tuple[str, str] | None = None


@dataclass(frozen=True)
class Cloud:
    """A cloud ready to be drawn: `points` (n, 3) float32, y up, the first cloud of the item inside the unit sphere.

    `values` are (n,) uint8: category indices, or 0-255 between the item's lowest and highest value. `total` counts the
    points given, `dropped` those of them that were not finite. Points are in random order: a prefix is a fair sample.
    """

    name: str
    points: np.ndarray
    values: np.ndarray | None
    total: int
    dropped: int


@dataclass(frozen=True)
class Row:
    """A gallery item ready to be drawn.

    `value_range` is (lowest, highest) of continuous values, else None; `fit` the zoom at which nearly all points of all its clouds
    are inside the view.
    """

    name: str
    note: str | None
    clouds: list[Cloud]
    legend: list[str] | None
    value_range: tuple[float, float] | None
    value_name: str = "value"
    fit: float = 1.0
    pair: tuple[str, str] | None = None

    @property
    def has_values(self) -> bool:
        """Whether a cloud of the row has values."""
        return any(cloud.values is not None for cloud in self.clouds)


def prepare(item: GalleryItem) -> Row:
    """Check `item` and bring its clouds into the common frame.

    Raises:
        ValueError: for an unknown axis, a cloud that is not (n, 3), values that do not match their cloud or legend.
    """
    where = f"gallery item {item.name!r}"
    if item.up_axis not in TO_SCREEN:
        raise ValueError(f"{where}: up_axis={item.up_axis!r} is not one of 'x', 'y', 'z'")
    for name in item.values or {}:
        if name not in item.clouds:
            raise ValueError(f"{where}: values for {name!r}, which is not among its clouds: {', '.join(item.clouds)}")
    points, values, finite = {}, {}, {}
    for name, cloud in item.clouds.items():
        cloud = np.asarray(cloud, np.float32)
        if cloud.ndim != 2 or cloud.shape[1] != 3:
            raise ValueError(f"{where}: cloud {name!r} has shape {cloud.shape}, expected (n, 3)")
        finite[name] = np.isfinite(cloud).all(axis=1)
        points[name] = cloud
        if item.values and name in item.values:
            values[name] = np.asarray(item.values[name])
            if values[name].shape != cloud.shape[:1]:
                raise ValueError(f"{where}: {values[name].shape} values for the {len(cloud)} points of {name!r}")
    shades, value_range = _quantise(values, item.legend, where)
    center, radius = _frame([points[name][finite[name]] for name in points])
    clouds = []
    for name, cloud in points.items():
        order = np.flatnonzero(finite[name])
        order = np.random.default_rng(0).permutation(order)[:MAX_POINTS]
        turned = ((cloud[order].astype(np.float64) - center) / radius) @ TO_SCREEN[item.up_axis].T
        turned = np.clip(turned, -FAR, FAR)
        shade = shades[name][order] if name in shades else None
        clouds.append(Cloud(name, turned.astype(np.float32), shade, len(cloud), int((~finite[name]).sum())))
    legend = [str(entry) for entry in item.legend] if item.legend is not None else None
    return Row(str(item.name), item.note, clouds, legend, value_range, item.value_name, _fit(clouds), item.pair)


def unit_frame(points: np.ndarray, frame: np.ndarray, up_axis: str) -> np.ndarray:
    """Return points (n, 3) with y up, where the cloud `frame` (m, 3) is inside the unit sphere: (n, 3) float32."""
    center, radius = _frame([frame])
    return (((points.astype(np.float64) - center) / radius) @ TO_SCREEN[up_axis].T).astype(np.float32)


def _fit(clouds: list[Cloud]) -> float:
    """Return the zoom that shows all but the outermost points; 1 where they lie in the sphere of the first cloud."""
    reach = [np.quantile(np.linalg.norm(cloud.points, axis=1), INSIDE) for cloud in clouds if len(cloud.points)]
    return 1 / min(max([1.0, *map(float, reach)]), MOST_REACH)


def _frame(clouds: list[np.ndarray]) -> tuple[np.ndarray, float]:
    """Return centre and radius of the first cloud with points, so that an outlier of a later one does not shrink it."""
    reference = next((cloud.astype(np.float64) for cloud in clouds if len(cloud)), None)
    if reference is None:
        return np.zeros(3), 1.0
    center = (reference.min(axis=0) + reference.max(axis=0)) / 2
    radius = float(np.linalg.norm(reference - center, axis=1).max())
    return center, radius if radius > 0 else 1.0


def _quantise(values: dict[str, np.ndarray], legend: Sequence[str] | None, where: str) -> tuple[dict, tuple | None]:
    """Return uint8 values per cloud and the range they stand for (None for categories)."""
    if not values:
        return {}, None
    if legend is not None:
        for name, array in values.items():
            if array.size and not (array.min() >= 0 and array.max() < min(len(legend), 256)):
                raise ValueError(f"{where}: values of {name!r} must be indices into the {len(legend)} legend names")
        return {name: array.astype(np.uint8) for name, array in values.items()}, None
    known = np.concatenate([array[np.isfinite(array)].astype(np.float64) for array in values.values()])
    low, high = (float(known.min()), float(known.max())) if known.size else (0.0, 0.0)
    width = high - low or 1.0
    shades = {
        name: np.clip(np.nan_to_num((array - low) / width, nan=0.0) * 255, 0, 255).astype(np.uint8)
        for name, array in values.items()
    }
    return shades, (low, high)


def equal_count(row: Row) -> int:
    """Return how many points the first cloud has: rebuilt patches overlap and would look denser than their input."""
    return len(row.clouds[0].points) if row.clouds else 0


def scale_colors(anchors: Sequence[str], positions: np.ndarray) -> np.ndarray:
    """Return (n, 3) float RGB in 0-255 at `positions` (n,) in 0-1 along a colour scale."""
    table = np.array([[int(color[i : i + 2], 16) for i in (1, 3, 5)] for color in anchors], np.float32)
    at = np.clip(positions, 0, 1) * (len(table) - 1)
    return np.stack([np.interp(at, np.arange(len(table)), table[:, channel]) for channel in range(3)], axis=1)
