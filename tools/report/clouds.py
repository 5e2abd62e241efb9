"""What a gallery shows: named clouds side by side in one frame, with optional values per point."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

MAX_POINTS = 8192  # of one cloud of a page with many; more are thinned at random and the caption says so
PAGE_POINTS = 1 << 20  # of all clouds of a page with few; each takes 8 bytes, so this is a page of 8 MB

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
        frames: cloud name -> (label, (n,) values) pairs, of which a slider shows one at a time, for example the difficulty after
            each epoch; a cloud that is not in `values` starts with its last frame.
        dense: clouds that have more points than the first on purpose; "equal point counts" leaves them whole.
        pictures: name -> (h, w) in [0, 1], drawn in grey, or (h, w, 3) uint8; they stand in front of the clouds.
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
    frames: Mapping[str, Sequence[tuple[str, np.ndarray]]] | None = None
    dense: Sequence[str] = ()
    pictures: Mapping[str, np.ndarray] | None = None


@dataclass(frozen=True)
class Cloud:
    """A cloud ready to be drawn: `points` (n, 3) float32, y up, the first cloud of the item inside the unit sphere.

    `values` are (n,) uint8: category indices, or 0-255 between the item's lowest and highest value; so are those of each label in
    `frames`. `total` counts the points given, `dropped` those of them that were not finite. Points are in random order: a prefix is
    a fair sample.
    """

    name: str
    points: np.ndarray
    values: np.ndarray | None
    total: int
    dropped: int
    frames: dict[str, np.ndarray] = field(default_factory=dict)
    dense: bool = False


@dataclass(frozen=True)
class Row:
    """A gallery item ready to be drawn.

    `value_range` is (lowest, highest) of continuous values, else None; `height_range` that of the heights of the first cloud, in the
    unit that it was given in; `fit` the zoom at which nearly all points of all its clouds
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
    height_range: tuple[float, float] = (-1.0, 1.0)
    pictures: dict[str, np.ndarray] = field(default_factory=dict)  # uint8

    @property
    def has_values(self) -> bool:
        """Whether a cloud of the row has values."""
        return any(cloud.values is not None for cloud in self.clouds)


def prepare_all(items: Sequence[GalleryItem]) -> list[Row]:
    """Prepare the items of one page: the fewer points they have together, the more of large clouds are kept; raises as `prepare`."""
    sizes = np.array([len(cloud) for item in items for cloud in item.clouds.values()])
    large = sizes > MAX_POINTS
    limit = (PAGE_POINTS - int(sizes[~large].sum())) // max(int(large.sum()), 1)
    return [prepare(item, max(MAX_POINTS, limit)) for item in items]


def prepare(item: GalleryItem, limit: int = MAX_POINTS) -> Row:
    """Check `item` and bring its clouds, of at most `limit` points each, into the common frame.

    Raises:
        ValueError: for an unknown axis, a cloud that is not (n, 3), values that do not match their cloud or legend.
    """
    where = f"gallery item {item.name!r}"
    if item.up_axis not in TO_SCREEN:
        raise ValueError(f"{where}: up_axis={item.up_axis!r} is not one of 'x', 'y', 'z'")
    points, finite = {}, {}
    for name, cloud in item.clouds.items():
        cloud = np.asarray(cloud, np.float32)
        if cloud.ndim != 2 or cloud.shape[1] != 3:
            raise ValueError(f"{where}: cloud {name!r} has shape {cloud.shape}, expected (n, 3)")
        finite[name] = np.isfinite(cloud).all(axis=1)
        points[name] = cloud
    shades, value_range = _quantise(_value_sets(item, points, where), item.legend, where)
    center, radius = _frame([points[name][finite[name]] for name in points])
    clouds = []
    for name, cloud in points.items():
        order = np.flatnonzero(finite[name])
        order = np.random.default_rng(0).permutation(order)[:limit]
        turned = ((cloud[order].astype(np.float64) - center) / radius) @ TO_SCREEN[item.up_axis].T
        turned = np.clip(turned, -FAR, FAR).astype(np.float32)
        own = {label: shade[order] for label, shade in shades.get(name, {}).items()}
        shade = own.pop(None, list(own.values())[-1] if own else None)
        clouds.append(Cloud(name, turned, shade, len(cloud), int((~finite[name]).sum()), own, name in item.dense))
    legend = [str(entry) for entry in item.legend] if item.legend is not None else None
    heights = _heights(clouds) * radius + float(TO_SCREEN[item.up_axis][1] @ center)
    return Row(
        str(item.name),
        item.note,
        clouds,
        legend,
        value_range,
        item.value_name,
        _fit(clouds),
        item.pair,
        tuple(heights.tolist()),
        {name: _pixels(image) for name, image in (item.pictures or {}).items()},
    )


def _pixels(image: np.ndarray) -> np.ndarray:
    """Return uint8; grey pictures keep their scale, 0 is black and 1 white."""
    return image if image.ndim == 3 else np.rint(255 * np.clip(image, 0, 1)).astype(np.uint8)


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


def _heights(clouds: list[Cloud]) -> np.ndarray:
    """Return the lowest and the highest y of the first cloud, (-1, 1) where it has none."""
    heights = clouds[0].points[:, 1] if clouds else np.empty(0)
    return np.array([heights.min(), heights.max()] if len(heights) else [-1.0, 1.0], np.float64)


def _value_sets(item: GalleryItem, points: Mapping[str, np.ndarray], where: str) -> dict[str, dict]:
    """Return the values of each cloud: label of a frame -> (n,), under None those of `values`."""
    sets: dict[str, dict] = {}
    for name, values in (item.values or {}).items():
        sets[name] = {None: np.asarray(values)}
    for name, frames in (item.frames or {}).items():
        sets.setdefault(name, {}).update({str(label): np.asarray(values) for label, values in frames})
    for name, own in sets.items():
        if name not in points:
            raise ValueError(f"{where}: values for {name!r}, which is not among its clouds: {', '.join(points)}")
        for label, values in own.items():
            if values.shape != points[name].shape[:1]:
                frame = "" if label is None else f" in frame {label!r}"
                raise ValueError(
                    f"{where}: {values.shape} values for the {len(points[name])} points of {name!r}{frame}"
                )
    return sets


def _quantise(sets: dict[str, dict], legend: Sequence[str] | None, where: str) -> tuple[dict[str, dict], tuple | None]:
    """Return the same sets as uint8, and the range that 0 to 255 stand for (None for categories)."""
    arrays = [values for own in sets.values() for values in own.values()]
    if not arrays:
        return {}, None
    if legend is not None:
        for name, own in sets.items():
            if any(v.size and not (v.min() >= 0 and v.max() < min(len(legend), 256)) for v in own.values()):
                raise ValueError(f"{where}: values of {name!r} must be indices into the {len(legend)} legend names")
        return {name: {label: v.astype(np.uint8) for label, v in own.items()} for name, own in sets.items()}, None
    known = np.concatenate([array[np.isfinite(array)].astype(np.float64) for array in arrays])
    low, high = (float(known.min()), float(known.max())) if known.size else (0.0, 0.0)

    def shades(values: np.ndarray) -> np.ndarray:
        shares = np.nan_to_num((values - low) / (high - low or 1.0), nan=0.0)
        return np.clip(shares * 255, 0, 255).astype(np.uint8)

    return {name: {label: shades(v) for label, v in own.items()} for name, own in sets.items()}, (low, high)


def equal_count(row: Row) -> int:
    """Return how many points the first cloud has: rebuilt patches overlap and would look denser than their input."""
    return len(row.clouds[0].points) if row.clouds else 0


def scale_colors(anchors: Sequence[str], positions: np.ndarray) -> np.ndarray:
    """Return (n, 3) float RGB in 0-255 at `positions` (n,) in 0-1 along a colour scale."""
    table = np.array([[int(color[i : i + 2], 16) for i in (1, 3, 5)] for color in anchors], np.float32)
    at = np.clip(positions, 0, 1) * (len(table) - 1)
    return np.stack([np.interp(at, np.arange(len(table)), table[:, channel]) for channel in range(3)], axis=1)
