"""ShapeNet-55: one `.npy` a cloud, and lists of file names."""

from collections.abc import Iterator
from dataclasses import dataclass
from os.path import isfile
from pathlib import Path

import numpy as np

from datasets.cache import Recipe, cached
from datasets.clouds import CloudSet, check_subset
from datasets.formats.arrays import load_npy
from datasets.formats.points import to_single
from datasets.fractions import FractionKeys
from datasets.paths import missing, require
from datasets.registry import DATASETS
from utils.errors import UserError
from utils.reading import read_text

CHUNK = 64  # clouds in memory at once while the cache is written
LAYOUT = "train.txt and test.txt, one file name <taxonomy>-<model>.npy a line"


@dataclass
class ShapeNetConfig(FractionKeys):
    """Keys of ShapeNet. A sample is `npoints` random points, then centred and scaled to the unit sphere."""

    NAME: str = "ShapeNet"
    DATA_PATH: str = "data/ShapeNet55-34/ShapeNet-55"  # holds the lists
    PC_PATH: str = "data/ShapeNet55-34/shapenet_pc"  # holds the clouds
    N_POINTS: int = 8192  # points of every stored cloud
    UP_AXIS: str = "y"
    subset: str = "train"
    npoints: int = 2048
    whole: bool = False  # add the clouds of the test list
    sampling: str = "random"
    normalize: bool = True
    bs: int = 0  # batch of this loader; 0 = the recipe's


@DATASETS.register("ShapeNet", config=ShapeNetConfig)
def read_shapenet(config: ShapeNetConfig) -> CloudSet:
    """Read the clouds that `<subset>.txt` lists. Labels number the taxonomy ids of both lists in sorted order.

    Raises:
        UserError: naming list, line, file and remedy for anything missing or malformed.
    """
    check_subset(config.subset, config.NAME)
    lists = require(Path(config.DATA_PATH), LAYOUT)
    clouds = require(Path(config.PC_PATH), f"the listed clouds, float arrays of shape ({config.N_POINTS}, 3)")
    files = _read_list(lists / f"{config.subset}.txt")
    if config.whole:
        # Published order: the test list stands first when it is added.
        files = _read_list(lists / "test.txt") + (files if config.subset == "train" else [])
    paths = [clouds / name for name in files]
    for path in paths:
        if not isfile(path):
            raise missing(path, f"a cloud that {lists / (config.subset + '.txt')} lists")
    taxonomies = [name.split("-")[0] for name in files]
    class_names = sorted(set(taxonomies) | _taxonomies(lists))
    number = {name: label for label, name in enumerate(class_names)}
    arrays = cached(
        Recipe(
            name=f"ShapeNet-{config.subset}{'-whole' if config.whole else ''}",
            key={"points": config.N_POINTS},
            sources=paths,
            fields={"points": ("<f4", (config.N_POINTS, 3))},
            count=len(paths),
            chunks=lambda: _read_clouds(paths, config.N_POINTS),
        )
    )
    return CloudSet(
        points=arrays["points"],
        labels=np.array([number[name] for name in taxonomies], dtype=np.int64),
        class_names=class_names,
        names=[name.removesuffix(".npy") for name in files],
        name=config.NAME,
        subset=config.subset,
        source=str(clouds),
        up_axis=config.UP_AXIS,
        npoints=config.npoints,
        sampling=config.sampling,
        normalize=config.normalize,
    )


def _read_list(path: Path) -> list[str]:
    require(path, LAYOUT, "file")
    names = read_text(path, "surrogateescape").split()
    if not names:
        raise UserError(f"{path}: the list is empty; expected {LAYOUT}. See README, section Data")
    first: dict[str, int] = {}
    for line, name in enumerate(names, start=1):
        if first.setdefault(name, line) != line:
            raise UserError(f"{path}: entry {line}, {name}, is entry {first[name]} already; remove one of them")
        if not name.endswith(".npy") or "-" not in name or Path(name).name != name:
            raise UserError(f"{path}: entry {line} is {name!r}; expected a file name <taxonomy>-<model>.npy")
    return names


def _taxonomies(lists: Path) -> set[str]:
    """Collect the taxonomy ids of both lists, so that train and test number their classes alike."""
    found = [lists / f"{subset}.txt" for subset in ("train", "test")]
    return {name.split("-")[0] for path in found if isfile(path) for name in _read_list(path)}


def _read_clouds(paths: list[Path], points: int) -> Iterator[dict[str, np.ndarray]]:
    for begin in range(0, len(paths), CHUNK):
        yield {"points": np.stack([_read_cloud(path, points) for path in paths[begin : begin + CHUNK]])}


def _read_cloud(path: Path, points: int) -> np.ndarray:
    """Read and check one (points, 3) file; columns after x, y, z are left out."""
    array = load_npy(path)
    if array.dtype.kind not in "fiu":
        raise UserError(f"{path}: holds no array of numbers; expected floats of shape ({points}, 3)")
    if array.ndim != 2 or len(array) != points or array.shape[1] < 3:
        raise UserError(f"{path}: has shape {array.shape}; expected ({points}, 3). N_POINTS gives the stored points")
    return to_single(array[None, :, :3], path)[0]
