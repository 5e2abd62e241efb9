"""SyntheticScenes: rooms of built-in objects as a scan would have them, with a box around each object; needs no files.

A room has a floor, four walls and furniture that stands on the floor, some of it along the walls. Points that no position of a simulated
scanner reaches are left out, so objects lack what is hidden behind them; what is left has the noise of a scan. Boxes hold the scanned
points of their objects, as those of ScanNet do.

Legend: n candidate points of a scene, P stored points.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import NamedTuple

import numpy as np

from datasets.cache import Recipe, cached
from datasets.clouds import CloudSet, check_subset
from datasets.registry import DATASETS
from datasets.scenes import MOST_BOXES
from datasets.synthetic.categories import CATEGORIES, PART_IDS
from datasets.synthetic.generate import STREAMS, source_version
from datasets.synthetic.sketch import Sketch, turn
from utils.errors import UserError

DEFAULT_SCENES = {"train": 300, "test": 60}
CHUNK = 8
# Furniture -> least and greatest height and greatest length along the floor, in metres, and whether it stands with its back to a wall.
FURNITURE = {
    "bathtub": (0.5, 0.65, 1.8, True), "bed": (0.6, 1.0, 2.2, True), "bench": (0.45, 0.9, 1.6, False),
    "chair": (0.75, 1.05, 0.8, False), "desk": (0.7, 1.1, 1.8, True), "lamp": (1.2, 1.8, 0.9, False),
    "shelf": (1.1, 2.0, 1.6, True), "sofa": (0.7, 0.95, 2.2, True), "stool": (0.45, 0.75, 0.6, False),
    "table": (0.6, 0.8, 1.8, False), "toilet": (0.65, 0.85, 0.9, True), "vase": (0.3, 0.7, 0.5, False),
}  # fmt: skip
SURPLUS = 2.6  # candidates for each stored point: many are hidden
LEAST_POINTS = 30  # of an object that has a box
TRIES = 25  # places tried for each piece of furniture
GAP = 0.08  # metres between pieces


@dataclass
class SyntheticScenesConfig:
    """Keys of SyntheticScenes. Metres, z up."""

    NAME: str = "SyntheticScenes"
    N_POINTS: int = 50000  # points stored for each scene, as many as ScanNet's scans have at most
    subset: str = "train"
    npoints: int = 40000  # points a sample
    scenes: int = 0  # in this split; 0 = 300 for train, 60 for test
    seed: int = 0  # of the data, not of the run
    least_objects: int = 5  # tried in a scene; some may find no place
    most_objects: int = 12
    noise: float = 0.005  # standard deviation of the points, metres
    UP_AXIS: str = "z"  # fixed
    sampling: str = "scene"
    bs: int = 0  # batch of this loader; 0 = the recipe's


@DATASETS.register("SyntheticScenes", config=SyntheticScenesConfig)
def read_scenes(config: SyntheticScenesConfig) -> CloudSet:
    """Generate one split, or map it from the cache.

    Raises:
        UserError: for values out of range.
    """
    _check(config)
    count = config.scenes or DEFAULT_SCENES[config.subset]
    style = Style(config.N_POINTS, config.least_objects, config.most_objects, config.noise)
    arrays = cached(
        Recipe(
            name=f"SyntheticScenes-{config.subset}",
            key={"seed": config.seed, "scenes": count, **asdict(style)},
            sources=[],
            fields={
                "points": ("<f4", (style.points, 3)),
                "colors": ("|u1", (style.points, 3)),
                "counts": ("<i8", ()),
                "boxes": ("<f8", (MOST_BOXES, 8)),
                "box_counts": ("<i8", ()),
            },
            count=count,
            chunks=lambda: draw_scenes(config.seed, config.subset, count, style),
            version=source_version(),
        )
    )
    return CloudSet(
        points=arrays["points"],
        colors=arrays["colors"],
        counts=np.asarray(arrays["counts"]),
        boxes=arrays["boxes"],
        box_counts=np.asarray(arrays["box_counts"]),
        class_names=list(FURNITURE),
        names=[f"{config.subset}/room_{row:05d}" for row in range(count)],
        name=config.NAME,
        subset=config.subset,
        up_axis="z",
        npoints=config.npoints,
        sampling=config.sampling,
    )


def _check(config: SyntheticScenesConfig) -> None:
    check_subset(config.subset, config.NAME)
    if config.UP_AXIS != "z":
        raise UserError(f"{config.NAME}: UP_AXIS {config.UP_AXIS!r} is not possible; these rooms stand along z")
    lowest = {"N_POINTS": 500, "npoints": 1, "scenes": 0, "seed": 0, "least_objects": 1, "noise": 0.0}
    for key, low in {**lowest, "most_objects": config.least_objects}.items():
        if getattr(config, key) < low:
            raise UserError(f"{config.NAME}: {key} is {getattr(config, key)}; it must be at least {low}")
    if config.most_objects > MOST_BOXES:
        raise UserError(f"{config.NAME}: most_objects is {config.most_objects}; it must be at most {MOST_BOXES}")


@dataclass(frozen=True)
class Style:
    """What scenes are made like."""

    points: int
    least_objects: int
    most_objects: int
    noise: float


class Piece(NamedTuple):
    """A surface before it is scanned: its points (n, 3), z up, where it stands on the floor, and its label, -1 = no object."""

    points: np.ndarray
    low: np.ndarray  # (2,) of its footprint
    high: np.ndarray
    label: int


def draw_scenes(seed: int, subset: str, count: int, style: Style) -> Iterator[dict[str, np.ndarray]]:
    """Yield the arrays of `count` scenes, chunk by chunk."""
    for begin in range(0, count, CHUNK):
        scenes = [draw_scene(seed, subset, row, style) for row in range(begin, min(begin + CHUNK, count))]
        yield {key: np.stack([scene[key] for scene in scenes]) for key in scenes[0]}


def draw_scene(seed: int, subset: str, index: int, style: Style) -> dict[str, np.ndarray]:
    """Draw scene `index` of a split; it depends on the arguments alone.

    Returns:
        points (P, 3) float32 and colors (P, 3) uint8, of which the first `counts` follow no other, boxes (64, 8) and `box_counts`.
    """
    rng = np.random.Generator(np.random.SFC64([seed, STREAMS[subset], index, 1]))
    size = np.array([rng.uniform(3.5, 6.5), rng.uniform(3.5, 6.5), rng.uniform(2.3, 2.9)])
    pieces = _furnish(size, style, rng)
    points, labels, owners = _surfaces(size, pieces, style, rng)
    seen = _scanned(points, size, pieces, style, rng)
    chosen = rng.permutation(np.flatnonzero(seen))
    points = points[chosen] + rng.normal(0.0, style.noise, (len(chosen), 3))
    points[:, :2] -= size[:2] / 2  # the origin is on the floor in the middle, as in ScanNet's scans
    points, owners = points.astype(np.float32), owners[chosen]
    boxes = np.zeros((MOST_BOXES, 8))
    count = 0
    for owner, label in enumerate(labels):
        own = points[owners == owner]
        if len(own) >= LEAST_POINTS:
            low, high = own.min(axis=0).astype(np.float64), own.max(axis=0).astype(np.float64)
            boxes[count] = [*(low + high) / 2, *np.maximum(high - low, 1e-3), label, label]
            count += 1
    paint = rng.integers(40, 220, (len(labels) + 1, 3))[owners]  # the last one is that of floor and walls
    colors = np.clip(paint + rng.normal(0, 12, paint.shape), 0, 255).astype(np.uint8)
    return {
        "points": np.resize(points[: style.points], (style.points, 3)),
        "colors": np.resize(colors[: style.points], (style.points, 3)),
        "counts": np.int64(min(len(points), style.points)),
        "boxes": boxes,
        "box_counts": np.int64(count),
    }


def _furnish(size: np.ndarray, style: Style, rng: np.random.Generator) -> list[Piece]:
    """Draw furniture, and a place for each where it overlaps no other; what finds none is left out."""
    names, placed = list(FURNITURE), []
    most = int(style.points * SURPLUS / 4)
    for label in rng.integers(0, len(names), rng.integers(style.least_objects, style.most_objects + 1)):
        points = _object(names[label], most, rng)
        for _ in range(TRIES):
            moved = _placed(points, size, FURNITURE[names[label]][3], rng)
            low, high = moved[:, :2].min(axis=0), moved[:, :2].max(axis=0)
            inside = (low >= 0.02).all() and (high <= size[:2] - 0.02).all()
            if inside and all((low > other.high + GAP).any() or (high < other.low - GAP).any() for other in placed):
                placed.append(Piece(moved, low, high, int(label)))
                break
    return placed


def _object(name: str, count: int, rng: np.random.Generator) -> np.ndarray:
    """Draw a shape of a category in metres, standing on z = 0 with its front towards -y: (count, 3), in random order."""
    sketch = Sketch()
    CATEGORIES[name].draw(sketch, rng)
    points, _, _ = sketch.sample(count, PART_IDS[name], np.diag(np.exp(rng.uniform(-0.15, 0.15, 3))), rng)
    points = np.stack([points[:, 0], -points[:, 2], points[:, 1]], axis=1)
    low, high = points.min(axis=0), points.max(axis=0)
    least, most, longest, _ = FURNITURE[name]
    scale = min(rng.uniform(least, most) / (high - low)[2], longest / (high - low)[:2].max())
    return (points - np.append((low + high)[:2] / 2, low[2])) * scale


def _placed(points: np.ndarray, size: np.ndarray, at_wall: bool, rng: np.random.Generator) -> np.ndarray:
    """Turn an object by quarter turns, not quite exact, and move it: to a wall, with its back towards it, or anywhere."""
    quarter = rng.integers(4)
    angle = quarter * np.pi / 2 + np.clip(rng.normal(0, 0.05), -0.15, 0.15)
    points = points @ turn("z", angle).T
    half = (points[:, :2].max(axis=0) - points[:, :2].min(axis=0)) / 2
    middle = (points[:, :2].max(axis=0) + points[:, :2].min(axis=0)) / 2
    place = rng.uniform(half, np.maximum(size[:2] - half, half + 1e-6))
    if at_wall:
        axis, far = [(1, True), (0, False), (1, False), (0, True)][quarter]  # where +y, its back, points after the turn
        gap = rng.uniform(0.03, 0.08)
        place[axis] = size[axis] - half[axis] - gap if far else half[axis] + gap
    return points + np.append(place - middle, 0.0)


def _surfaces(
    size: np.ndarray, pieces: list[Piece], style: Style, rng: np.random.Generator
) -> tuple[np.ndarray, list[int], np.ndarray]:
    """Return candidate points (n, 3) of furniture, floor and walls, the labels of the pieces, and whose each point is, -1 = the room."""
    areas = np.array([1.1 * _box_area(piece.points.max(axis=0) - piece.points.min(axis=0)) for piece in pieces])
    x, y, z = size
    faces = np.array([x * y, x * z, x * z, y * z, y * z])
    total = int(style.points * SURPLUS)
    density = total / (areas.sum() + faces.sum())
    parts = [piece.points[: max(int(area * density), LEAST_POINTS)] for piece, area in zip(pieces, areas, strict=True)]
    owners = [np.full(len(part), row) for row, part in enumerate(parts)]
    for face, area in enumerate(faces):
        flat = rng.random((int(area * density), 3)) * size
        axis, place = [(2, 0.0), (1, 0.0), (1, y), (0, 0.0), (0, x)][face]
        flat[:, axis] = place
        parts.append(flat)
        owners.append(np.full(len(flat), -1))
    return np.concatenate(parts), [piece.label for piece in pieces], np.concatenate(owners)


def _box_area(extent: np.ndarray) -> float:
    x, y, z = extent
    return 2 * (x * y + y * z + x * z)


def _scanned(
    points: np.ndarray, size: np.ndarray, pieces: list[Piece], style: Style, rng: np.random.Generator
) -> np.ndarray:
    """Return which points (n, 3) some position of a scanner sees: nothing nearer lies in the same direction. (n,) bool."""
    spacing = np.sqrt(2 * (size[0] * size[1] + size[2] * size[:2].sum()) / len(points))
    pixel = 2.2 * spacing / 2.0  # radians; at two metres about five points of a surface share a direction
    seen = np.zeros(len(points), bool)
    for _ in range(rng.integers(3, 6)):
        for _ in range(TRIES):
            eye = np.array([*rng.uniform(0.4, size[:2] - 0.4), rng.uniform(1.2, 1.7)])
            if all((eye[:2] < piece.low).any() or (eye[:2] > piece.high).any() for piece in pieces):
                break
        way = points - eye
        far = np.linalg.norm(way, axis=1)
        turned = np.arctan2(way[:, 1], way[:, 0])
        raised = np.arcsin(np.clip(way[:, 2] / np.maximum(far, 1e-9), -1, 1))
        # Rows of directions at a height have as many cells as fit around.
        row = np.floor((raised + np.pi / 2) / pixel).astype(np.int64)
        around = np.maximum(np.floor(2 * np.pi * np.cos((row + 0.5) * pixel - np.pi / 2) / pixel), 1)
        cell = row * 100_000 + np.floor((turned + np.pi) / (2 * np.pi) * around).astype(np.int64)
        order = np.lexsort((far, cell))
        first = np.flatnonzero(np.diff(cell[order], prepend=-1))
        nearest = np.repeat(far[order][first], np.diff(np.append(first, len(order))))
        seen[order] |= far[order] <= nearest + 0.04 + 0.04 * nearest
    return seen
