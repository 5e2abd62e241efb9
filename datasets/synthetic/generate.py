"""Draw labelled clouds: shape, pose, surface sampling, noise."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from datasets.synthetic.categories import CATEGORIES, PART_IDS
from datasets.synthetic.sketch import Sketch, turn

CHUNK = 64
STREAMS = {"train": 0, "test": 1}


@dataclass(frozen=True)
class Style:
    """How shapes are posed and sampled."""

    points: int
    rotate: bool  # any angle about the up axis
    tilt: float  # largest lean about each horizontal axis, radians
    stretch: float  # each axis is scaled by exp(U[-stretch, stretch])
    jitter: float  # standard deviation of the noise, in units of the unit sphere


def draw_cloud(seed: int, subset: str, index: int, category: str, style: Style):
    """Draw cloud `index` of a split; it depends on the arguments alone.

    Returns:
        points (P, 3) float32 within the unit sphere with their mean at the origin, normals (P, 3) float32,
        global part ids (P,) int16.
    """
    rng = np.random.Generator(np.random.SFC64([seed, STREAMS[subset], index]))
    sketch = Sketch()
    CATEGORIES[category].draw(sketch, rng)
    pose = np.diag(np.exp(rng.uniform(-style.stretch, style.stretch, 3)))
    # The stretch acts in the frame of the object: a turned shape is still a whole one.
    pose = turn("x", rng.uniform(-style.tilt, style.tilt)) @ turn("z", rng.uniform(-style.tilt, style.tilt)) @ pose
    if style.rotate:
        pose = turn("y", rng.uniform(0, 2 * np.pi)) @ pose
    points, normals, parts = sketch.sample(style.points, PART_IDS[category], pose, rng)
    points = points - points.mean(0)
    points /= np.sqrt(np.einsum("ij,ij->i", points, points).max())
    if style.jitter > 0:
        points += rng.normal(0.0, style.jitter, points.shape)
        points -= points.mean(0)
        points /= np.sqrt(np.einsum("ij,ij->i", points, points).max())
    # Rounding to float32 must not push the outermost point out of the sphere.
    return (points * (1 - 1e-6)).astype(np.float32), normals.astype(np.float32), parts


def draw_chunks(seed: int, subset: str, count: int, categories: list[str], style: Style) -> Iterator[dict]:
    """Yield the arrays of `count` clouds piece by piece; cloud i belongs to category i modulo their number."""
    for begin in range(0, count, CHUNK):
        indices = range(begin, min(begin + CHUNK, count))
        clouds = [draw_cloud(seed, subset, i, categories[i % len(categories)], style) for i in indices]
        points, normals, parts = (np.stack(arrays) for arrays in zip(*clouds, strict=True))
        yield {"points": points, "normals": normals, "part_labels": parts}


def source_version() -> str:
    """Hash of this package's code, so that a cache made by other code is not taken for this one's."""
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]
