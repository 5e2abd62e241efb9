"""Own data: a folder of classes, or a flat folder of clouds without labels, in any format of `cloud_files`.

Legend: M clouds, P points that are kept of each.
"""

import logging
import os
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from datasets.cache import Recipe, cached
from datasets.clouds import SUBSETS, CloudSet, check_subset
from datasets.formats.cloud_files import cloud_files, has_format, is_cloud, read_cloud, resample
from datasets.formats.points import Notes
from datasets.paths import require
from datasets.registry import DATASETS
from utils.errors import UserError, printable
from utils.reading import reading
from utils.seed import generator

LAYOUT = "train/<class>/<cloud> and test/<class>/<cloud>, <class>/{train,test}/<cloud>, <class>/<cloud>, or <cloud> without classes"
CHUNK = 64  # clouds in memory at once while the cache is written
_LOG = logging.getLogger("m2ae.data")


@dataclass
class FolderConfig:
    """Keys of Folder."""

    NAME: str = "Folder"
    DATA_PATH: str = "data/own"
    N_POINTS: int = (
        2048  # points kept of each cloud: a random subset of more, repetitions of fewer, the surface of a mesh
    )
    TEST_SHARE: float = (
        0.2  # where the folder has no split: share of each class that is the test set; 0 = both sets have all
    )
    UP_AXIS: str = "y"
    subset: str = "train"
    npoints: int = 0  # points a sample; 0 = N_POINTS
    sampling: str = ""  # random | first | all; empty = random for training, first for test
    normalize: bool = True  # centre and scale to the unit sphere, after sampling
    bs: int = 0  # batch of this loader; 0 = the recipe's

    def __post_init__(self):
        if self.N_POINTS < 1:
            raise ValueError(f"N_POINTS: is {self.N_POINTS}; it must be at least 1")
        if not 0 <= self.TEST_SHARE < 1:
            raise ValueError(f"TEST_SHARE: is {self.TEST_SHARE}; it must be at least 0 and below 1")


@DATASETS.register("Folder", config=FolderConfig)
def read_folder(config: FolderConfig) -> CloudSet:
    """Read one split of a folder; classes are its folders in the order of their names.

    Raises:
        UserError: no such folder, a class without clouds, splits that disagree about the classes, or a cloud that cannot be read.
    """
    check_subset(config.subset, config.NAME)
    root = require(Path(config.DATA_PATH), LAYOUT)
    classes, files = find_files(root, config)
    paths = [path for group in files for path in group]
    names = [path.relative_to(root).as_posix() for path in paths]
    labels = np.repeat(np.arange(len(files)), [len(group) for group in files]).astype(np.int64)
    arrays = cached(
        Recipe(
            name=f"Folder-{config.subset}",
            key={"points": config.N_POINTS, "root": str(root.resolve()), "files": names},
            sources=paths,
            fields={"points": ("<f4", (config.N_POINTS, 3))},
            count=len(paths),
            chunks=lambda: _chunks(paths, names, config.N_POINTS, f"{root} ({config.subset})"),
        )
    )
    return CloudSet(
        points=arrays["points"],
        labels=labels if classes else None,
        class_names=classes,
        names=[printable(name) for name in names],
        name=config.NAME,
        subset=config.subset,
        source=str(root),
        up_axis=config.UP_AXIS,
        npoints=config.npoints or config.N_POINTS,
        sampling=config.sampling or ("random" if config.subset == "train" else "first"),
        normalize=config.normalize,
    )


def find_files(root: Path, config: FolderConfig) -> tuple[list[str] | None, list[list[Path]]]:
    """Return class names (None without classes) and the files of each class in this split.

    Raises:
        UserError: as `read_folder`, for what can be seen without reading clouds.
    """
    folders = _folders(root)
    if {folder.name for folder in folders} >= set(SUBSETS):
        return _split_above(root, config.subset)
    if not folders:
        return None, [_part(cloud_files(root, what="DATA_PATH"), config, root)]
    stray = [path for path in root.iterdir() if has_format(path) and path.is_file() and is_cloud(path)]
    if stray:
        raise UserError(
            f"{root}: has class folders and also clouds, such as {printable(stray[0].name)}; expected {LAYOUT}"
        )
    if all((folder / subset).is_dir() for folder in folders for subset in SUBSETS):
        files = [_clouds(folder / config.subset) for folder in folders]
    else:
        files = [_part(_clouds(folder), config, folder) for folder in folders]
    return [folder.name for folder in folders], files


def _split_above(root: Path, subset: str) -> tuple[list[str], list[list[Path]]]:
    names = {part: [folder.name for folder in _folders(root / part)] for part in SUBSETS}
    if names["train"] != names["test"]:
        odd = sorted(set(names["train"]) ^ set(names["test"]))
        raise UserError(
            f"{root}: train and test must have the same class folders; {odd[0]!r} is in one of them only "
            f"({len(names['train'])} and {len(names['test'])} classes)"
        )
    if not names[subset]:
        raise UserError(f"{root / subset}: has no class folders; expected {LAYOUT}")
    return names[subset], [_clouds(root / subset / name) for name in names[subset]]


def _folders(root: Path) -> list[Path]:
    with reading(root, "a folder"):
        return sorted(entry for entry in root.iterdir() if entry.is_dir() and not entry.name.startswith("."))


def _clouds(folder: Path) -> list[Path]:
    return cloud_files(folder, what="class folder")


def _part(files: list[Path], config: FolderConfig, folder: Path) -> list[Path]:
    """Take this split's share of files, drawn from the name of their folder."""
    if config.TEST_SHARE == 0:
        return files
    held_out = max(1, round(config.TEST_SHARE * len(files)))
    if held_out >= len(files):
        raise UserError(
            f"{folder}: its {len(files)} clouds cannot be split into train and test; add clouds, or set TEST_SHARE to 0 and use one split"
        )
    order = torch.randperm(len(files), generator=generator(0, 0, 0, f"split {folder.name}")).tolist()
    chosen = order[:held_out] if config.subset == "test" else order[held_out:]
    return [files[i] for i in sorted(chosen)]


def _chunks(paths: list[Path], names: list[str], points: int, what: str) -> Iterator[dict[str, np.ndarray]]:
    """Yield chunks (n, P, 3), with a line in the log every so often. What is drawn of a cloud depends on its name alone."""
    _LOG.info("%s: preparing %d clouds once, for the cache", what, len(paths))
    notes = Notes()
    for begin in range(0, len(paths), CHUNK):
        clouds = []
        for path, name in zip(paths[begin : begin + CHUNK], names[begin : begin + CHUNK], strict=True):
            seed = zlib.crc32(os.fsencode(name))
            cloud = read_cloud(path, surface_points=points, seed=seed, notes=notes)
            # In double precision: map coordinates are large, and single precision would round their differences.
            clouds.append(resample(cloud - cloud.mean(axis=0), points, seed=seed))
        yield {"points": np.stack(clouds).astype(np.float32)}
        _LOG.info("%s: %d of %d clouds", what, begin + len(clouds), len(paths))
    notes.tell()
