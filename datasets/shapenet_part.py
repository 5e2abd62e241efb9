"""ShapeNetPart, and any set in its layout: one text file a cloud, with normals and the part of each point.

Legend: M clouds, P stored points a cloud, n points of a file.
"""

import io
import logging
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from os.path import isfile
from pathlib import Path, PurePosixPath

import numpy as np

from datasets.cache import Recipe, cached
from datasets.clouds import CloudSet
from datasets.formats.points import to_single
from datasets.fractions import FractionKeys
from datasets.part_table import LARGEST_PART, PartTable, owned_parts, read_table, shapenet_table, table_of_labels
from datasets.paths import missing, require
from datasets.registry import DATASETS
from utils.errors import UserError, suggest
from utils.reading import read_json, read_text

COLUMNS = 7
CHUNK = 64  # clouds in memory at once while the cache is written
CATEGORY_FILE = "synsetoffset2category.txt"
SPLITS = {"train": ("train",), "val": ("val",), "trainval": ("train", "val"), "test": ("test",)}
RARELY_ABSENT = 1e-3  # share of listed clouds that may have no file
LAYOUT = (
    f"{CATEGORY_FILE}, train_test_split/shuffled_{{train,val,test}}_file_list.json and <folder>/<id>.txt "
    "with lines of x y z nx ny nz part"
)
_LOG = logging.getLogger("m2ae.data")


@dataclass
class ShapeNetPartConfig(FractionKeys):
    """Keys of ShapeNetPart. Whole clouds are centred and scaled to the unit sphere, then points are drawn."""

    NAME: str = "ShapeNetPart"
    ROOT: str = "data/shapenetcore_partanno_segmentation_benchmark_v0_normal"
    UP_AXIS: str = "y"
    subset: str = "trainval"  # train | val | trainval, which is what published models train on | test
    npoints: int = 2048  # points a sample
    sampling: str = "replacement"  # as published, in training and in tests; random = without, first, all
    normalize: bool = True
    bs: int = 0  # batch of this loader; 0 = the recipe's


@dataclass(frozen=True)
class _Listed:
    """The clouds of a split, and their categories."""

    paths: list[Path]
    labels: np.ndarray
    names: list[str]


@DATASETS.register("ShapeNetPart", config=ShapeNetPartConfig)
def read_shapenet_part(config: ShapeNetPartConfig) -> CloudSet:
    """Read one split. Labels number the categories in the order of their file; shorter clouds are repeated to a common length.

    The parts of a category are those of `parts.json` where that is there, of the published table for the sixteen published
    categories, else those of the training labels.

    Raises:
        UserError: naming file and line for anything missing or malformed, and for a part that its category does not have.
    """
    if config.subset not in SPLITS:
        raise UserError(f"{config.NAME}: subset {config.subset!r} is unknown; choose one of {', '.join(SPLITS)}")
    root = require(Path(config.ROOT), LAYOUT)
    folders = _read_categories(root / CATEGORY_FILE)
    listed = _read_split(root, config.subset, folders)
    counts, arrays = _arrays(listed, config)
    table = _table(root, list(folders), config)
    _check_parts(listed, arrays["part_labels"], list(folders), table)
    return CloudSet(
        points=arrays["points"],
        labels=listed.labels,
        class_names=list(folders),
        names=listed.names,
        part_labels=arrays["part_labels"],
        part_names=table.names,
        category_parts=table.category_parts,
        normals=arrays["normals"],
        counts=counts,
        name=config.NAME,
        subset=config.subset,
        source=str(root),
        up_axis=config.UP_AXIS,
        npoints=config.npoints,
        sampling=config.sampling,
    )


def _read_categories(path: Path) -> dict[str, str]:
    """Read category -> folder, in the order of the file."""
    require(path, "one category and its folder a line", "file")
    folders: dict[str, str] = {}
    for number, line in enumerate(read_text(path).splitlines(), start=1):
        words = line.split()
        if not words:
            continue
        if len(words) != 2 or words[0] in folders or words[1] in folders.values():
            raise UserError(
                f"{path}, line {number}: is {line.strip()[:60]!r}; expected a category and its folder, each of them once"
            )
        folders[words[0]] = words[1]
    if not folders:
        raise UserError(f"{path}: is empty; expected one category and its folder a line")
    return folders


def _read_split(root: Path, subset: str, folders: dict[str, str]) -> _Listed:
    """Read the lists of a split, one after the other, in their order.

    Note:
        Nine of the 14,007 entries that the published lists of train and val have are of no file, and published programs leave them
        out. So does this reader, where they are as rare as that; it says so.
    """
    number = {folder: label for label, folder in enumerate(folders.values())}
    categories = list(folders)
    paths, labels, names, absent = [], [], [], []
    for split in SPLITS[subset]:
        listing = root / "train_test_split" / f"shuffled_{split}_file_list.json"
        for position, entry in enumerate(_read_list(listing), start=1):
            folder, name = entry
            if folder not in number:
                raise UserError(
                    f"{listing}, entry {position}: category {folder!r} is not in {root / CATEGORY_FILE}; {suggest(folder, number)}"
                )
            path = root / folder / f"{name}.txt"
            if not isfile(path):
                absent.append((path, f"the cloud that {listing}, entry {position}, lists"))
                continue
            paths.append(path)
            labels.append(number[folder])
            names.append(f"{categories[labels[-1]]}/{name}")
    if len(absent) > RARELY_ABSENT * len(paths):
        raise missing(*absent[0])
    if absent:
        _LOG.warning(
            "%s (%s): %d listed files are missing and left out, such as %s", root, subset, len(absent), absent[0][0]
        )
    return _Listed(paths, np.array(labels, np.int64), names)


def _read_list(path: Path) -> list[tuple[str, str]]:
    """Read the (folder, id) of each entry."""
    layout = 'a JSON list of "shape_data/<folder>/<id>"'
    require(path, layout, "file")
    entries = read_json(path, layout)
    if not isinstance(entries, list) or not entries:
        raise UserError(f"{path}: lists no clouds; expected {layout}")
    found: dict[tuple[str, str], int] = {}
    for position, entry in enumerate(entries, start=1):
        parts = PurePosixPath(entry).parts if isinstance(entry, str) else ()
        if len(parts) < 2 or ".." in parts:
            raise UserError(f"{path}, entry {position}: is {entry!r}; expected {layout}")
        key = (parts[-2], parts[-1].removesuffix(".txt"))
        if found.setdefault(key, position) != position:
            raise UserError(f"{path}, entry {position}: {entry} is entry {found[key]} already; remove one of them")
    return list(found)


def _arrays(listed: _Listed, config: ShapeNetPartConfig) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Return how many points each cloud has, and the arrays of all clouds, both from the cache."""
    name = f"ShapeNetPart-{config.subset}"
    sizes = cached(
        Recipe(
            name=f"{name}-sizes",
            key={},
            sources=listed.paths,
            fields={"counts": ("<i8", ())},
            count=len(listed.paths),
            chunks=lambda: iter([{"counts": np.array([_count_lines(path) for path in listed.paths])}]),
        )
    )
    counts = np.asarray(sizes["counts"])
    most = int(counts.max())
    fields = {"points": ("<f4", (most, 3)), "normals": ("<f4", (most, 3)), "part_labels": ("<i2", (most,))}
    arrays = cached(
        Recipe(
            name=name,
            key={"normalize": config.normalize},
            sources=listed.paths,
            fields=fields,
            count=len(listed.paths),
            chunks=lambda: _chunks(listed.paths, most, normalize=config.normalize),
        )
    )
    return counts, arrays


def _count_lines(path: Path) -> int:
    count = sum(1 for line in read_text(path).split("\n") if line.strip())
    if not count:
        raise UserError(f"{path}: is empty; expected lines of {COLUMNS} numbers, x y z nx ny nz part")
    return count


def _chunks(paths: Sequence[Path], most: int, *, normalize: bool) -> Iterator[dict[str, np.ndarray]]:
    for begin in range(0, len(paths), CHUNK):
        tables = [_read_table(path) for path in paths[begin : begin + CHUNK]]
        points = [_to_unit_sphere(table[:, :3]) if normalize else table[:, :3] for table in tables]
        points = [
            to_single(cloud[None], path)[0] for cloud, path in zip(points, paths[begin : begin + CHUNK], strict=True)
        ]
        yield {
            "points": np.stack([np.resize(cloud, (most, 3)) for cloud in points]),
            "normals": np.stack([np.resize(table[:, 3:6], (most, 3)) for table in tables]).astype(np.float32),
            "part_labels": np.stack([np.resize(table[:, 6], most) for table in tables]).astype(np.int16),
        }


def _to_unit_sphere(points: np.ndarray) -> np.ndarray:
    """Centre (n, 3) and divide by the largest norm; equal points become zeros."""
    centred = points - points.mean(axis=0)
    largest = np.sqrt((centred**2).sum(axis=1).max())
    return centred / largest if largest > 0 else centred


def _read_table(path: Path) -> np.ndarray:
    """Read and check one file, (n, 7) float64."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of an empty file; its shape says it
            table = np.loadtxt(io.StringIO(read_text(path)), dtype=np.float64, comments=None, ndmin=2)
    except ValueError as error:
        raise _bad_line(path, str(error)) from error
    parts = table[:, -1]
    if table.shape[1] != COLUMNS or not np.isfinite(table).all() or not _are_parts(parts):
        raise _bad_line(path, f"table of shape {table.shape}")
    return table


def _are_parts(values: np.ndarray) -> bool:
    return bool(((values >= 0) & (values <= LARGEST_PART) & (values == np.floor(values))).all())


def _bad_line(path: Path, reason: str) -> UserError:
    """Build the error for a malformed file; finds the first bad line."""
    for number, text in _numbered(path):
        words = text.split()
        try:
            values = np.array([float(word) for word in words])
        except ValueError:
            values = np.array([np.nan])
        if len(words) == COLUMNS and np.isfinite(values).all() and _are_parts(values[-1:]):
            continue
        shown = text.strip()
        problem = f"has {len(words)} values" if len(words) != COLUMNS else "holds what is no finite number or no part"
        reason = f"line {number}, {shown[:60]!r}{' ...' if len(shown) > 60 else ''}, {problem}"
        break
    return UserError(
        f"{path}: {reason}; expected {COLUMNS} finite numbers a line, x y z nx ny nz part. Copy or download the file again"
    )


def _numbered(path: Path) -> list[tuple[int, str]]:
    """Return number and text of the lines that are not blank."""
    lines = read_text(path).split("\n")
    return [(number, line) for number, line in enumerate(lines, start=1) if line.strip()]


def _table(root: Path, categories: list[str], config: ShapeNetPartConfig) -> PartTable:
    path = root / "parts.json"
    if path.exists():
        return read_table(path, categories)
    published = shapenet_table(categories)
    if published is not None:
        return published
    listed = _read_split(root, "trainval", dict(_read_categories(root / CATEGORY_FILE)))
    _, arrays = _arrays(listed, ShapeNetPartConfig(subset="trainval", normalize=config.normalize))
    return table_of_labels(listed.labels, arrays["part_labels"], categories, str(root))


def _check_parts(listed: _Listed, part_labels: np.ndarray, categories: list[str], table: PartTable) -> None:
    """Raise for the first cloud with a part that its category does not have."""
    owned = owned_parts(table.category_parts, categories, LARGEST_PART + 1)
    for begin in range(0, len(listed.paths), CHUNK):
        labels = listed.labels[begin : begin + CHUNK]
        wrong = ~owned[labels[:, None], part_labels[begin : begin + CHUNK]]
        if wrong.any():
            row, point = np.argwhere(wrong)[0]
            path, category = listed.paths[begin + row], categories[labels[row]]
            line = _numbered(path)[point][0]
            parts = ", ".join(map(str, table.category_parts[category]))
            raise UserError(
                f"{path}, line {line}: part {part_labels[begin + row, point]} is none of category {category}, which has {parts} "
                f"({table.source}); correct the line, or the table in parts.json"
            )
