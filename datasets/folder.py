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

from datasets.cache import Recipe, cached
from datasets.clouds import SUBSETS, CloudSet, check_subset
from datasets.formats.cloud_files import cloud_files, has_format, is_cloud, read_cloud, resample
from datasets.formats.points import Notes
from datasets.fractions import FractionKeys
from datasets.listing import read_listing
from datasets.paths import require
from datasets.registry import DATASETS
from utils.errors import UserError, printable
from utils.reading import reading

LAYOUT = (
    "train/<class>/<cloud> and test/<class>/<cloud>, <class>/{train,test}/<cloud>, <class>/<cloud>, or <cloud> without classes; "
    "clouds may lie in folders below these"
)
CHUNK = 64  # clouds in memory at once while the cache is written
_LOG = logging.getLogger("m2ae.data")


@dataclass
class FolderConfig(FractionKeys):
    """Keys of Folder."""

    NAME: str = "Folder"
    DATA_PATH: str = "data/own"
    N_POINTS: int = (
        2048  # points kept of each cloud: a random subset of more, repetitions of fewer, the surface of a mesh
    )
    TEST_SHARE: float = (
        0.2  # where the folder has no split: share of each class that is the test set; 0 = both sets have all
    )
    LIST: str = ""  # a table of path, class and split below DATA_PATH, instead of what folders say
    LABELS: bool = True  # false: read all clouds without their classes
    COMMON_CLASSES: bool = False  # leave out classes that only one of the splits has; otherwise these are an error
    UP_AXIS: str = "y"
    subset: str = "train"
    npoints: int = 0  # points a sample; 0 = N_POINTS
    sampling: str = ""  # random | first | all; empty = random for training, first for test
    normalize: bool = True  # centre and scale to the unit sphere, after sampling
    bs: int = 0  # batch of this loader; 0 = the recipe's

    def __post_init__(self):
        super().__post_init__()
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


def find_files(root: Path, config: FolderConfig, *, uneven: bool = False) -> tuple[list[str] | None, list[list[Path]]]:
    """Return class names (None without classes) and the files of each class in this split.

    Args:
        uneven: keep classes that only the other split has, without files.

    Raises:
        UserError: as `read_folder`, for what can be seen without reading clouds.
    """
    groups = _listed(root, config.LIST) if config.LIST else _groups(root)
    odd = {name for name, splits in groups.items() if "" not in splits and set(splits) < set(SUBSETS)}
    if config.COMMON_CLASSES and odd:
        groups = {name: splits for name, splits in groups.items() if name not in odd}
        _LOG.warning("%s: classes that one split only has are left out: %s", root, ", ".join(sorted(odd)))
    elif odd and config.LABELS and not uneven:
        counts = [sum(subset in splits for splits in groups.values()) for subset in SUBSETS]
        raise UserError(
            f"{root}: train and test must have the same class folders; {min(odd)!r} is in one of them only ({counts[0]} and "
            f"{counts[1]} classes). COMMON_CLASSES: true leaves such classes out, LABELS: false reads all clouds without classes"
        )
    if not any(config.subset in splits or "" in splits for splits in groups.values()):
        raise UserError(f"{root}: has no class that its split {config.subset} has clouds of; expected {LAYOUT}")
    if not config.LABELS:
        groups = {"": _joined(groups)}
    files = [_of_split(splits, config, root / name) for name, splits in groups.items()]
    return (None if list(groups) == [""] else list(groups)), files


Splits = dict[str, Path | list[Path]]  # split, or "" where there is none -> its folder, or its files


def _groups(root: Path) -> dict[str, Splits]:
    """Return class -> its splits, as the folders say; without classes one of an empty name."""
    folders = _folders(root)
    if {folder.name for folder in folders} >= set(SUBSETS):
        classes = {subset: [folder.name for folder in _folders(root / subset)] for subset in SUBSETS}
        if not any(classes.values()):
            return {"": {subset: root / subset for subset in SUBSETS}}
        names = sorted({*classes["train"], *classes["test"]})
        return {name: {subset: root / subset / name for subset in SUBSETS if name in classes[subset]} for name in names}
    if not folders:
        return {"": {"": cloud_files(root, what="DATA_PATH")}}
    stray = [path for path in root.iterdir() if has_format(path) and path.is_file() and is_cloud(path)]
    if stray:
        raise UserError(
            f"{root}: has class folders and also clouds, such as {printable(stray[0].name)}; expected {LAYOUT}"
        )
    below = {folder.name: {name: folder / name for name in SUBSETS if (folder / name).is_dir()} for folder in folders}
    if any(len(splits) == len(SUBSETS) for splits in below.values()):
        return below
    return {folder.name: {"": folder} for folder in folders}


def has_splits(root: Path, name: str) -> bool:
    """Say whether a list says which split each cloud belongs to."""
    return not any("" in splits for splits in _listed(root, name).values())


def _listed(root: Path, name: str) -> dict[str, Splits]:
    """Return class -> its splits, as a list says."""
    path = next((path for path in (root / name, Path(name)) if path.is_file()), None)
    if path is None:
        raise UserError(f"LIST {name}: is no file, neither below {root} nor by itself; give the path of a table")
    groups: dict[str, Splits] = {}
    for entry in read_listing(path, root):
        groups.setdefault(entry.name, {}).setdefault(entry.split, []).append(entry.path)
    return dict(sorted(groups.items()))


def _joined(groups: dict[str, Splits]) -> Splits:
    """Return the files of all classes as those of one."""
    joined: Splits = {}
    for splits in groups.values():
        for split, place in splits.items():
            joined.setdefault(split, []).extend(_clouds(place))
    return joined


def _of_split(splits: Splits, config: FolderConfig, place: Path) -> list[Path]:
    """Return the files of one class and split: its own, or its share of those of the class."""
    if "" in splits:
        return _part(_clouds(splits[""]), config, place)
    return _clouds(splits[config.subset]) if config.subset in splits else []


def _folders(root: Path) -> list[Path]:
    with reading(root, "a folder"):
        return sorted(entry for entry in root.iterdir() if entry.is_dir() and not entry.name.startswith("."))


def _clouds(place: Path | list[Path]) -> list[Path]:
    return place if isinstance(place, list) else cloud_files(place, what="class folder", recursive=True)


def _part(files: list[Path], config: FolderConfig, folder: Path) -> list[Path]:
    """Take this split's share of files, drawn from the name of their folder."""
    if config.TEST_SHARE == 0:
        return files
    held_out = max(1, round(config.TEST_SHARE * len(files)))
    if held_out >= len(files):
        raise UserError(
            f"{folder}: its {len(files)} clouds cannot be split into train and test; add clouds, or set TEST_SHARE to 0 and use one split"
        )
    import torch  # Here, because the workers of conversions do without it.

    from utils.seed import generator

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
