"""The reader of the built-in set: keys, cache and `CloudSet`."""

import difflib
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field

import numpy as np

from datasets.cache import Recipe, cached
from datasets.clouds import UP_AXES, CloudSet, check_subset
from datasets.fractions import FractionKeys
from datasets.registry import DATASETS
from datasets.synthetic.categories import CATEGORIES, PART_IDS, PART_NAMES
from datasets.synthetic.generate import Style, draw_chunks, source_version
from utils.errors import UserError

MOST_POINTS = 20_000_000_000  # of a split, half a terabyte
DEFAULT_CLOUDS = {"train": 4000, "test": 1000}
# Rotations from up along y to up along another axis.
TURNS = {
    "x": ((0, 1, 0), (-1, 0, 0), (0, 0, 1)),
    "y": ((1, 0, 0), (0, 1, 0), (0, 0, 1)),
    "z": ((1, 0, 0), (0, 0, -1), (0, 1, 0)),
}


@dataclass
class SyntheticConfig(FractionKeys):
    """Keys of Synthetic. Clouds lie in the unit sphere, their mean at the origin."""

    NAME: str = "Synthetic"
    N_POINTS: int = 2048  # points stored for each cloud
    subset: str = "train"
    npoints: int = 0  # points a sample; 0 = all stored ones
    num_points: int = 0  # another name of npoints, used by SVM recipes
    clouds: int = 0  # clouds in this split; 0 = 4000 for train, 1000 for test
    seed: int = 0  # of the data, not of the run
    categories: list[str] = field(default_factory=list)  # empty = all
    rotate: bool = True  # turn each shape by any angle about the up axis
    tilt: float = 0.1  # largest lean about the horizontal axes, radians
    stretch: float = 0.25  # axes are scaled by exp(U[-stretch, stretch])
    jitter: float = 0.01  # standard deviation of the noise on the points
    UP_AXIS: str = "y"  # x and z: the same shapes, turned upright along that axis
    sampling: str = "random"  # random | first | all; stored points are in random order
    normalize: bool = False
    bs: int = 0  # batch of this loader; 0 = the recipe's


@DATASETS.register("Synthetic", config=SyntheticConfig)
def read_synthetic(config: SyntheticConfig) -> CloudSet:
    """Generate one split, or map it from the cache.

    Raises:
        UserError: for unknown categories and values out of range.
    """
    _check(config)
    categories = [name for name in CATEGORIES if not config.categories or name in config.categories]
    count = config.clouds or DEFAULT_CLOUDS[config.subset]
    points = config.N_POINTS
    style = Style(points, config.rotate, config.tilt, config.stretch, config.jitter)
    arrays = cached(
        Recipe(
            name=f"Synthetic-{config.subset}",
            key={
                "seed": config.seed,
                "categories": categories,
                "clouds": count,
                **asdict(style),
                **({} if config.UP_AXIS == "y" else {"up": config.UP_AXIS}),
            },
            sources=[],
            fields={"points": ("<f4", (points, 3)), "normals": ("<f4", (points, 3)), "part_labels": ("<i2", (points,))},
            count=count,
            chunks=lambda: _turned(draw_chunks(config.seed, config.subset, count, categories, style), config.UP_AXIS),
            version=source_version(),
        )
    )
    labels = np.arange(count, dtype=np.int64) % len(categories)
    return CloudSet(
        points=arrays["points"],
        labels=labels,
        class_names=categories,
        names=[f"{config.subset}/{categories[label]}_{i:05d}" for i, label in enumerate(labels)],
        part_labels=arrays["part_labels"],
        part_names=list(PART_NAMES),
        category_parts={name: sorted(PART_IDS[name].values()) for name in categories},
        normals=arrays["normals"],
        name=config.NAME,
        subset=config.subset,
        up_axis=config.UP_AXIS,
        npoints=config.npoints or config.num_points,
        sampling=config.sampling,
        normalize=config.normalize,
    )


def _turned(chunks: Iterator[dict[str, np.ndarray]], up: str) -> Iterator[dict[str, np.ndarray]]:
    """Turn points and normals of shapes that stand along y by a right angle, so that they stand along another axis."""
    turn = np.array(TURNS[up], np.float32)
    for chunk in chunks:
        yield chunk if up == "y" else {**chunk, **{key: chunk[key] @ turn.T for key in ("points", "normals")}}


def _check(config: SyntheticConfig) -> None:
    check_subset(config.subset, config.NAME)
    if config.UP_AXIS not in UP_AXES:
        raise UserError(f"{config.NAME}: UP_AXIS {config.UP_AXIS!r} is unknown; choose one of {', '.join(UP_AXES)}")
    for name in config.categories:
        if name not in CATEGORIES:
            close = difflib.get_close_matches(name, CATEGORIES, 3) or list(CATEGORIES)
            raise UserError(f"{config.NAME}: category {name!r} is unknown; did you mean {', '.join(close)}?")
    for key, low in {"N_POINTS": 1, "clouds": 0, "seed": 0, "tilt": 0.0, "stretch": 0.0, "jitter": 0.0}.items():
        if getattr(config, key) < low:
            raise UserError(f"{config.NAME}: {key} is {getattr(config, key)}; it must be at least {low}")
    numbers = (config.clouds or DEFAULT_CLOUDS[config.subset]) * config.N_POINTS
    if numbers > MOST_POINTS:
        raise UserError(
            f"{config.NAME}: {config.clouds} clouds of {config.N_POINTS} points are more than the {MOST_POINTS:,} points that a split may "
            "have; ask for fewer"
        )
    classes = len(config.categories) or len(CATEGORIES)
    if 0 < config.clouds < classes:
        raise UserError(f"{config.NAME}: {config.clouds} clouds cannot hold {classes} categories; ask for more clouds")
