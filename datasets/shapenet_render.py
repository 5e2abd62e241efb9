"""ShapeNet with renderings, as CrossPoint packs it: one PLY file a cloud, one folder of PNG files for each."""

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from datasets.cache import Recipe, cached
from datasets.clouds import CloudSet, check_subset
from datasets.formats.cloud_files import read_cloud
from datasets.fractions import FractionKeys
from datasets.paths import missing, require
from datasets.registry import DATASETS
from utils.errors import UserError

CHUNK = 64  # clouds in memory at once while the cache is written
LAYOUT = "ShapeNet/<synset>/<model>.ply and ShapeNetRendering/<synset>/<model>/rendering/*.png"

_LOG = logging.getLogger("m2ae.data")


@dataclass
class ShapeNetRenderConfig(FractionKeys):
    """Keys of ShapeNetRender. A sample is `npoints` random ones of the stored points, then centred and scaled to the unit sphere.

    As published, training and test set are the same: all clouds.
    """

    NAME: str = "ShapeNetRender"
    DATA_PATH: str = "data/ShapeNetRender"  # holds ShapeNet/ and ShapeNetRendering/
    PC_PATH: str = ""  # the clouds, where they lie elsewhere; empty = <DATA_PATH>/ShapeNet
    N_POINTS: int = 2048  # points kept of every cloud, the first ones
    UP_AXIS: str = "y"
    subset: str = "train"
    npoints: int = 1024
    sampling: str = "random"
    normalize: bool = True
    bs: int = 0  # batch of this loader; 0 = the recipe's


@DATASETS.register("ShapeNetRender", config=ShapeNetRenderConfig)
def read_shapenet_render(config: ShapeNetRenderConfig) -> CloudSet:
    """Read all clouds, in the order of their paths, and find their pictures. Labels number the synsets in sorted order.

    Raises:
        UserError: naming shape, file and remedy for a shape without pictures, and for anything missing or malformed.
    """
    check_subset(config.subset, config.NAME)
    root = require(Path(config.DATA_PATH), LAYOUT)
    clouds = require(Path(config.PC_PATH) if config.PC_PATH else root / "ShapeNet", "<synset>/<model>.ply")
    pictures = require(root / "ShapeNetRendering", "<synset>/<model>/rendering/*.png")
    paths = sorted(clouds.glob("*/*.ply"))
    if not paths:
        raise missing(clouds, "<synset>/<model>.ply", "file")
    names = [f"{path.parent.name}/{path.stem}" for path in paths]
    views = [find_views(pictures, name, path) for name, path in zip(names, paths, strict=True)]
    _note_left_over(pictures, names)
    synsets = sorted({path.parent.name for path in paths})
    number = {name: label for label, name in enumerate(synsets)}
    arrays = cached(
        Recipe(
            name=config.NAME,
            key={"points": config.N_POINTS},
            sources=paths,
            fields={"points": ("<f4", (config.N_POINTS, 3))},
            count=len(paths),
            chunks=lambda: _read_clouds(paths, config.N_POINTS),
        )
    )
    return CloudSet(
        points=arrays["points"],
        labels=np.array([number[path.parent.name] for path in paths], dtype=np.int64),
        class_names=synsets,
        names=names,
        view_files=views,
        name=config.NAME,
        subset=config.subset,
        source=str(clouds),
        up_axis=config.UP_AXIS,
        npoints=config.npoints,
        sampling=config.sampling,
        normalize=config.normalize,
    )


def find_views(pictures: Path, name: str, cloud: Path) -> list[Path]:
    """Return the pictures of the shape `name`, sorted.

    Raises:
        UserError: there is none.
    """
    folder = pictures / name / "rendering"
    found = sorted(folder.glob("*.png"))
    if not found:
        raise UserError(
            f"{folder}: the shape {name} has no renderings, and its cloud is {cloud}; expected {LAYOUT}. "
            "Unpack the renderings again, draw them with python -m datasets.prepare render, or remove the cloud"
        )
    return found


def _note_left_over(pictures: Path, names: list[str]) -> None:
    """Say that there are renderings without a cloud: more were published than the clouds that this set takes."""
    known = set(names)
    left = [f"{folder.parent.name}/{folder.name}" for folder in sorted(pictures.glob("*/*")) if folder.is_dir()]
    left = [name for name in left if name not in known]
    if left:
        _LOG.warning("%s: %d shapes have no cloud and are left out, such as %s", pictures, len(left), left[0])


def _read_clouds(paths: list[Path], points: int) -> Iterator[dict[str, np.ndarray]]:
    for begin in range(0, len(paths), CHUNK):
        yield {"points": np.stack([_read_points(path, points) for path in paths[begin : begin + CHUNK]])}


def _read_points(path: Path, points: int) -> np.ndarray:
    cloud = read_cloud(path)
    if len(cloud) < points:
        raise UserError(
            f"{path}: holds {len(cloud)} points, N_POINTS {points} are asked; lower N_POINTS or copy the file again"
        )
    return cloud[:points].astype(np.float32)
