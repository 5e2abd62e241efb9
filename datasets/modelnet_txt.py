"""ModelNet in the layout of `modelnet40_normal_resampled`: one text file a cloud, or the published cache next to them.

Legend: P points that are kept of each cloud.
"""

import io
import logging
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from os.path import isfile
from pathlib import Path

import numpy as np
import torch

from datasets.cache import Recipe, cached
from datasets.clouds import CloudSet, check_labels, check_subset
from datasets.formats.points import to_single
from datasets.formats.safe_pickle import read_arrays
from datasets.fractions import FractionKeys
from datasets.modelnet40_c import CLASSES
from datasets.paths import missing, require
from datasets.registry import DATASETS
from datasets.transforms import normalize_unit_sphere
from extensions import fps
from utils.errors import UserError, suggest
from utils.reading import read_text
from utils.seed import generator

CHUNK = 32  # clouds in memory at once while the cache is written
COLUMNS = 6  # coordinates and normals
WIDTHS = (3, COLUMNS)  # of a line: normals may be absent
DAT_REMEDY = "Copy or download it again, or delete it to use the text files"
_LOG = logging.getLogger("m2ae.data")


@dataclass
class ModelNetConfig(FractionKeys):
    """Keys of ModelNet. Training clouds come in random point order, test clouds in the order of farthest point sampling."""

    NAME: str = "ModelNet"
    DATA_PATH: str = "data/ModelNet/modelnet40_normal_resampled"
    N_POINTS: int = 8192  # points kept of each cloud, by farthest point sampling
    NUM_CATEGORY: int = 40  # 10 reads the lists modelnet10_*, anything else modelnet40_*
    USE_NORMALS: bool = False  # the models take coordinates alone; True is an error
    UP_AXIS: str = "y"
    subset: str = "train"
    npoints: int = 0  # points a sample; 0 = N_POINTS
    sampling: str = ""  # random | first | all; empty = random for training, first for test
    bs: int = 0  # batch of this loader; 0 = the recipe's


@DATASETS.register("ModelNet", config=ModelNetConfig)
def read_modelnet_txt(config: ModelNetConfig) -> CloudSet:
    """Read one split: clouds in the order of its list, labels by the line of their class in the list of names.

    A published cache `modelnet40_<subset>_<N_POINTS>pts_fps.dat` in the folder is read instead of the text files. Clouds are
    centred and scaled to the unit sphere as a whole, before any sampling.

    Raises:
        UserError: naming list, file, line and remedy for anything missing, malformed or out of range.
    """
    _check_keys(config)
    prefix = "modelnet10" if config.NUM_CATEGORY == 10 else "modelnet40"
    files = {part: f"{prefix}_{part}.txt" for part in ("shape_names", config.subset)}
    folder = require(Path(config.DATA_PATH), f"{' and '.join(files.values())}, and <class>/<id>.txt")
    names_path, list_path = (folder / name for name in files.values())
    dat = folder / f"{prefix}_{config.subset}_{config.N_POINTS}pts_fps.dat"
    lists = [names_path, list_path]
    if isfile(dat) and not any(path.exists() for path in lists):
        lists = []
        ids, labels, class_names = _labels_of_dat(dat, config)
    else:
        class_names = _read_lines(names_path, "one class name a line")
        ids = _read_lines(list_path, "one id a line, such as airplane_0001")
        labels = _labels(ids, class_names, list_path, names_path, config.NUM_CATEGORY)
    paths = [] if isfile(dat) else _cloud_paths(folder, ids, list_path)

    def chunks() -> Iterator[dict[str, np.ndarray]]:
        clouds = _read_texts(paths, config.N_POINTS) if paths else _read_dat(dat, labels, config.N_POINTS, list_path)
        return _normalised(clouds, len(ids), f"{config.NAME} {config.subset} from {folder if paths else dat}")

    arrays = cached(
        Recipe(
            name=f"ModelNet-{config.subset}",
            key={"points": config.N_POINTS},
            sources=[*lists, *(paths or [dat])],
            fields={"points": ("<f4", (config.N_POINTS, 3))},
            count=len(ids),
            chunks=chunks,
        )
    )
    return CloudSet(
        points=arrays["points"],
        labels=labels,
        class_names=class_names,
        names=ids,
        name=config.NAME,
        subset=config.subset,
        source=str(folder),
        up_axis=config.UP_AXIS,
        npoints=config.npoints or config.N_POINTS,
        sampling=config.sampling or ("random" if config.subset == "train" else "first"),
    )


def _check_keys(config: ModelNetConfig) -> None:
    check_subset(config.subset, config.NAME)
    if config.USE_NORMALS:
        raise UserError(f"{config.NAME}: USE_NORMALS is true, but the models take coordinates alone; set it to false")
    if config.N_POINTS < 1:
        raise UserError(f"{config.NAME}: N_POINTS {config.N_POINTS} must be at least 1; published is 8192")


def _read_lines(path: Path, layout: str) -> list[str]:
    """Read a list; it may not be empty, have blank lines or say anything twice."""
    require(path, layout, "file")
    lines = [line.strip() for line in read_text(path).rstrip().splitlines()]
    if not lines:
        raise UserError(f"{path}: is empty; expected {layout}. See README, section Data")
    seen: dict[str, int] = {}
    for number, line in enumerate(lines, start=1):
        if not line or Path(line).name != line or line in ("..", "."):
            raise UserError(f"{path}, line {number}: is {line!r}; expected {layout}")
        if line in seen:
            raise UserError(f"{path}, line {number}: {line} is line {seen[line]} already; remove one of them")
        seen[line] = number
    return lines


def _labels(ids: list[str], class_names: list[str], listed: Path, names: Path, classes: int) -> np.ndarray:
    """Number the clouds by the class in their id: what stands before the last `_`."""
    number = {name: label for label, name in enumerate(class_names)}
    labels = np.empty(len(ids), dtype=np.int64)
    for row, entry in enumerate(ids):
        name = entry.rpartition("_")[0]
        if name not in number:
            raise UserError(
                f"{listed}, line {row + 1}: class {name!r} of {entry!r} is not in {names}; {suggest(name, number)}"
            )
        if number[name] >= classes:
            raise UserError(
                f"{listed}, line {row + 1}: label {number[name]} of {entry} is out of range 0 to {classes - 1}; "
                f"{names.name} lists {len(class_names)} classes, so set NUM_CATEGORY to {len(class_names)} or correct the list"
            )
        labels[row] = number[name]
    return labels


def _cloud_paths(folder: Path, ids: list[str], listed: Path) -> list[Path]:
    paths = [folder / entry.rpartition("_")[0] / f"{entry}.txt" for entry in ids]
    for row, path in enumerate(paths):
        if not isfile(path):
            raise missing(path, f"the cloud that {listed}, line {row + 1}, lists")
    return paths


def _normalised(clouds: Iterator[np.ndarray], count: int, what: str) -> Iterator[dict[str, np.ndarray]]:
    """Centre and scale chunks (n, P, 3), with a line in the log at each twentieth of `count`."""
    _LOG.info("%s: preparing %d clouds once, for the cache", what, count)
    done = 0
    for chunk in clouds:
        yield {"points": normalize_unit_sphere(torch.from_numpy(chunk)).numpy()}
        before, done = done, done + len(chunk)
        if done * 20 // count > before * 20 // count:
            _LOG.info("%s: %d of %d clouds (%d%%)", what, done, count, done * 100 // count)


def _read_texts(paths: Sequence[Path], points: int) -> Iterator[np.ndarray]:
    """Yield chunks (n, P, 3) of the text files, sampled."""
    for begin in range(0, len(paths), CHUNK):
        batch = paths[begin : begin + CHUNK]
        clouds = [_from_random_start(_read_text(path, points), path.stem) for path in batch]
        # Files of one length, as the published ones are, are sampled together.
        for _, group in groupby(clouds, key=len):
            stacked = torch.from_numpy(np.stack(list(group)))  # (n, rows, 3)
            idx = fps(stacked, points)
            yield stacked.gather(1, idx.unsqueeze(-1).expand(-1, -1, 3)).numpy()


def _from_random_start(cloud: np.ndarray, name: str) -> np.ndarray:
    """Bring another point to the front, drawn from the cloud's name, so that sampling starts there.

    Note: published sampling starts at a point that NumPy's global generator draws; which one is not reproducible.
    """
    start = int(torch.randint(len(cloud), (), generator=generator(0, 0, 0, f"fps start {name}")))
    return np.roll(cloud, -start, axis=0)


def _read_text(path: Path, points: int) -> np.ndarray:
    """Read and check the coordinates of one file, (rows, 3) float32 with at least `points` rows.

    Published lines have six numbers separated by commas; blanks, and lines of coordinates alone, are read too.
    """
    text = read_text(path)
    delimiter = "," if "," in text[:1000] else None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of an empty file; its shape says it
            table = np.loadtxt(io.StringIO(text), dtype=np.float64, delimiter=delimiter, comments=None, ndmin=2)
    except ValueError as error:
        raise _bad_text(path, text, delimiter, str(error)) from error
    if table.size and (table.shape[1] not in WIDTHS or not (np.abs(table) <= np.finfo(np.float32).max).all()):
        raise _bad_text(path, text, delimiter, f"table of shape {table.shape}")
    if len(table) < points or not table.size:
        rows = len(table) if table.size else 0
        raise UserError(
            f"{path}: has {rows} points, N_POINTS {points} are asked; lower N_POINTS or copy the file again"
        )
    return to_single(table[None, :, :3], path)[0]


def _bad_text(path: Path, text: str, delimiter: str | None, reason: str) -> UserError:
    """Build the error for a malformed file; finds the first bad line."""
    where, problem, width = str(path), reason, None
    for number, line in enumerate(text.split("\n"), start=1):
        values = line.split(delimiter) if line.strip() else []
        width = width or (len(values) if len(values) in WIDTHS else COLUMNS if values else None)
        if values and (len(values) != width or not all(_is_finite(value) for value in values)):
            shown = line.strip()
            where = f"{path}, line {number}"
            problem = f"{shown[:60]!r}{' ...' if len(shown) > 60 else ''} has {len(values)} values"
            break
    return UserError(
        f"{where}: {problem}; expected {width or COLUMNS} finite numbers a line, separated by commas or blanks. "
        "Copy or download the file again"
    )


def _is_finite(text: str) -> bool:
    """Say whether a text is a number that float32 can hold."""
    try:
        return abs(float(text)) <= float(np.finfo(np.float32).max)
    except ValueError:
        return False


def _labels_of_dat(path: Path, config: ModelNetConfig) -> tuple[list[str], np.ndarray, list[str]]:
    """Return names, labels and class names of a published cache that lies there without the lists."""
    clouds, stored = _dat_content(path, config.N_POINTS)
    labels = check_labels(
        np.array([_single(path, row, label) for row, label in enumerate(stored)]), config.NUM_CATEGORY, str(path)
    )
    known = (
        CLASSES if len(CLASSES) == config.NUM_CATEGORY else [f"class {label}" for label in range(config.NUM_CATEGORY)]
    )
    return [f"{path.name}[{row}]" for row in range(len(clouds))], labels, list(known)


def _single(path: Path, row: int, label: object) -> float:
    if np.shape(label) not in ((), (1,)) or np.asarray(label).dtype.kind not in "fiu":
        raise UserError(f"{path}: label {str(label)[:40]} of cloud {row} is no number. {DAT_REMEDY}")
    return float(np.ravel(label)[0])


def _read_dat(path: Path, labels: np.ndarray, points: int, listed: Path) -> Iterator[np.ndarray]:
    """Yield chunks (n, P, 3) of the published cache; its labels must be those of the list."""
    remedy = DAT_REMEDY
    clouds, stored = _dat_content(path, points)
    if not len(clouds) == len(stored) == len(labels):
        raise UserError(
            f"{path}: holds {len(clouds)} clouds and {len(stored)} labels, {listed.name} lists {len(labels)}. {remedy}"
        )
    for row, label in enumerate(stored):
        if np.shape(label) not in ((), (1,)) or not np.array_equal(np.ravel(label), labels[row : row + 1]):
            raise UserError(
                f"{path}: label {np.ravel(label)[:3].tolist()} of cloud {row} is not {labels[row]}, as in {listed.name}, "
                f"line {row + 1}; the two do not belong together. {remedy}"
            )
    for begin in range(0, len(clouds), CHUNK):
        yield to_single(np.stack([cloud[:, :3] for cloud in clouds[begin : begin + CHUNK]]), path, first=begin)


def _dat_content(path: Path, points: int) -> tuple[list[np.ndarray], list]:
    """Return the clouds (points, 6) and the labels of a published cache."""
    expected = f"a list of float arrays ({points}, {COLUMNS}) and a list of labels"
    content = read_arrays(path, expected)
    if (
        not isinstance(content, list | tuple)
        or len(content) != 2
        or not all(isinstance(part, list) for part in content)
    ):
        raise UserError(f"{path}: does not hold two lists; expected {expected}. {DAT_REMEDY}")
    clouds, labels = content
    if not clouds or len(clouds) != len(labels):
        raise UserError(
            f"{path}: holds {len(clouds)} clouds and {len(labels)} labels; expected {expected}. {DAT_REMEDY}"
        )
    for row, cloud in enumerate(clouds):
        if not isinstance(cloud, np.ndarray) or cloud.shape != (points, COLUMNS) or cloud.dtype.kind != "f":
            shape = getattr(cloud, "shape", type(cloud).__name__)
            raise UserError(f"{path}: cloud {row} is {shape}; expected {expected}. {DAT_REMEDY}")
    return clouds, labels
