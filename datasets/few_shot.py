"""Few-shot folds of ModelNet40 in their published layout, and how such folds are drawn from any labelled set.

Legend: P stored points of a cloud.
"""

import pickle
from collections.abc import Sequence
from dataclasses import dataclass
from os.path import isfile
from pathlib import Path

import numpy as np
import torch

from datasets.cache import Recipe, cached
from datasets.clouds import CloudSet, check_subset
from datasets.formats.points import to_single
from datasets.formats.safe_pickle import read_arrays
from datasets.modelnet import CLASS_NAMES, read_class_names
from datasets.modelnet40_c import CLASSES
from datasets.paths import missing, require
from datasets.registry import DATASETS
from datasets.transforms import normalize_unit_sphere
from utils.errors import UserError
from utils.files import explain_write, write_atomic
from utils.seed import generator

TEST_CLOUDS = 20  # of each class in a fold, as published
REMEDY = "Copy or download it again, or draw folds with python -m datasets.prepare few-shot"
EXPECTED = "{'train': [...], 'test': [...]} with items (points (P, 3 or 6), label, original class)"


@dataclass
class ModelNetFewShotConfig:
    """Keys of ModelNetFewShot: one fold of one setting. Training clouds come in random point order, as those of ModelNet."""

    NAME: str = "ModelNetFewShot"
    DATA_PATH: str = "data/ModelNetFewshot"
    N_POINTS: int = 8192  # at most this many points of each stored cloud are kept
    NUM_CATEGORY: int = 40  # of the set that folds were drawn from
    USE_NORMALS: bool = False  # the models take coordinates alone; True is an error
    UP_AXIS: str = "y"
    subset: str = "train"
    way: int = 5  # --way, --shot and --fold set these
    shot: int = 10
    fold: int = 0
    npoints: int = 0  # points a sample; 0 = all that are kept
    sampling: str = ""  # random | first | all; empty = random for training, first for test
    bs: int = 0  # batch of this loader; 0 = the recipe's


@DATASETS.register("ModelNetFewShot", config=ModelNetFewShotConfig)
def read_few_shot(config: ModelNetFewShotConfig) -> CloudSet:
    """Read one split of one fold, `<way>way_<shot>shot/<fold>.pkl`; labels are 0 to way - 1.

    Folders without the underscore are found as well: the published program and its documentation disagree. Clouds are centred and
    scaled to the unit sphere as a whole.

    Raises:
        UserError: naming file, cloud and remedy for anything missing, damaged or out of range.
    """
    check_subset(config.subset, config.NAME)
    if config.USE_NORMALS:
        raise UserError(f"{config.NAME}: USE_NORMALS is true, but the models take coordinates alone; set it to false")
    if config.way > config.NUM_CATEGORY:
        raise UserError(
            f"{config.NAME}: {config.way} ways are more than the {config.NUM_CATEGORY} classes; lower --way or raise NUM_CATEGORY"
        )
    path = fold_file(config)
    points, labels, originals = _read(path, config)
    arrays = cached(
        Recipe(
            name=f"ModelNetFewShot-{config.way}way-{config.shot}shot-{config.fold}-{config.subset}",
            key={"points": points.shape[1]},
            sources=[path],
            fields={"points": ("<f4", points.shape[1:])},
            count=len(points),
            chunks=lambda: iter([{"points": normalize_unit_sphere(torch.from_numpy(points)).numpy()}]),
        )
    )
    return CloudSet(
        points=arrays["points"],
        labels=labels,
        class_names=_class_names(path, originals, config),
        names=[f"{path.name}:{config.subset}[{row}]" for row in range(len(labels))],
        name=config.NAME,
        subset=config.subset,
        source=str(path),
        up_axis=config.UP_AXIS,
        npoints=config.npoints or points.shape[1],
        sampling=config.sampling or ("random" if config.subset == "train" else "first"),
    )


def fold_file(config: ModelNetFewShotConfig) -> Path:
    """Return the file of a fold.

    Raises:
        UserError: there is none.
    """
    layout = f"{config.way}way_{config.shot}shot/{config.fold}.pkl, as published for 5 and 10 ways, 10 and 20 shots, folds 0 to 9"
    root = require(Path(config.DATA_PATH), layout)
    for folder in (f"{config.way}way_{config.shot}shot", f"{config.way}way{config.shot}shot"):
        path = root / folder / f"{config.fold}.pkl"
        if isfile(path):
            return path
    raise missing(root / f"{config.way}way_{config.shot}shot" / f"{config.fold}.pkl", EXPECTED)


def _class_names(path: Path, originals: dict[int, int], config: ModelNetFewShotConfig) -> list[str]:
    """Name the classes of a fold by the list in its folder or the folder above, else by that of ModelNet40, else by number."""
    known = read_class_names(path.parent) or read_class_names(path.parent.parent)
    known = known or (CLASSES if len(CLASSES) == config.NUM_CATEGORY else [])
    original = (originals[label] for label in range(config.way))
    return [known[one] if 0 <= one < len(known) else f"class {one} of {config.NUM_CATEGORY}" for one in original]


def _read(path: Path, config: ModelNetFewShotConfig) -> tuple[np.ndarray, np.ndarray, dict[int, int]]:
    """Return points (M, P, 3) float32, labels (M,) and label -> original class of one split."""
    content = read_arrays(path, EXPECTED)
    items = content.get(config.subset) if isinstance(content, dict) else None
    if not isinstance(items, list) or not items:
        raise UserError(f"{path}: has no list {config.subset!r}; expected {EXPECTED}. {REMEDY}")
    clouds, labels, originals = [], [], {}
    for row, item in enumerate(items):
        cloud, label, original = item if isinstance(item, tuple | list) and len(item) == 3 else (None, None, None)
        if not isinstance(cloud, np.ndarray) or cloud.ndim != 2 or cloud.shape[1] not in (3, 6):
            shape = getattr(cloud, "shape", type(item).__name__)
            raise UserError(f"{path}: cloud {row} of {config.subset!r} is {shape}; expected {EXPECTED}. {REMEDY}")
        if clouds and len(cloud) != len(clouds[0]):
            raise UserError(f"{path}: cloud {row} has {len(cloud)} points, the first one {len(clouds[0])}. {REMEDY}")
        label, original = (_whole(path, row, value) for value in (label, original))
        if not 0 <= label < config.way:
            raise UserError(f"{path}: label {label} of cloud {row} is out of range 0 to {config.way - 1}. {REMEDY}")
        if originals.setdefault(label, original) != original:
            raise UserError(
                f"{path}: label {label} stands for class {originals[label]} and, in cloud {row}, for {original}. {REMEDY}"
            )
        clouds.append(cloud)
        labels.append(label)
    counts = np.bincount(labels, minlength=config.way)
    if config.subset == "train" and (counts != config.shot).any():
        wrong = int(np.flatnonzero(counts != config.shot)[0])
        raise UserError(
            f"{path}: label {wrong} has {counts[wrong]} training clouds, {config.shot} shots are asked. {REMEDY}"
        )
    keep = config.N_POINTS if config.N_POINTS > 0 else None
    points = to_single(np.stack([cloud[:keep, :3] for cloud in clouds]), path)
    return points, np.asarray(labels, dtype=np.int64), originals


def _whole(path: Path, row: int, value: object) -> int:
    """Return a label, a number or an array of one."""
    flat = np.ravel(value)
    if len(flat) != 1 or flat.dtype.kind not in "fiu" or not np.isfinite(flat[0]) or int(flat[0]) != flat[0]:
        raise UserError(f"{path}: the label of cloud {row} is {str(value)[:40]!r}; expected a whole number. {REMEDY}")
    return int(flat[0])


def draw_fold(
    train_labels: np.ndarray, test_labels: np.ndarray, *, way: int, shot: int, fold: int, seed: int = 0
) -> tuple[list[int], np.ndarray, np.ndarray]:
    """Draw the classes of a fold, and the positions of its training and test clouds in their sets.

    Classes are drawn without replacement, in random order, which numbers them; of each, `shot` training clouds and twenty test
    clouds (all where the set has fewer). It depends on (seed, way, shot, fold) alone.

    Returns:
        the original classes by new label, positions (way * shot,) and (way * at most 20,).

    Raises:
        UserError: more ways than classes, or more shots than a class has training clouds.
    """
    classes = np.intersect1d(train_labels, test_labels)
    rich = [int(c) for c in classes if (train_labels == c).sum() >= shot]
    if way > len(rich):
        raise UserError(
            f"few-shot: {way} ways are asked, but of {len(classes)} classes {len(rich)} have {shot} training clouds; lower --way or --shot"
        )
    draw = generator(seed, fold, 0, f"few-shot {way} way {shot} shot")
    chosen = [rich[i] for i in torch.randperm(len(rich), generator=draw)[:way].tolist()]

    def pick(labels: np.ndarray, count: int) -> np.ndarray:
        rows = [np.flatnonzero(labels == c) for c in chosen]
        return np.concatenate([row[torch.randperm(len(row), generator=draw)[:count].numpy()] for row in rows])

    return chosen, pick(train_labels, shot), pick(test_labels, TEST_CLOUDS)


def write_folds(
    train: CloudSet, test: CloudSet, folder: Path, *, way: int, shot: int, folds: Sequence[int], seed: int = 0
) -> list[Path]:
    """Write folds drawn from a labelled set in the published layout, `<way>way_<shot>shot/<fold>.pkl`; returns their paths.

    The names of all classes of the set, where it has some, are written into the same folder. Clouds are stored whole, (P, 3) float32:
    published files hold normals as well, which no program of the family reads.
    """
    for part in (train, test):
        if part.labels is None:
            raise UserError(f"{part.name} ({part.subset}): has no labels; few-shot folds need a labelled set")
    target = folder / f"{way}way_{shot}shot"
    try:
        target.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(explain_write(target, error)) from error
    if train.class_names:
        names = "".join(f"{name}\n" for name in train.class_names)
        write_atomic(target / CLASS_NAMES, lambda file: file.write(names.encode("utf-8")))
    paths = []
    for fold in folds:
        chosen, shots, held_out = draw_fold(train.labels, test.labels, way=way, shot=shot, fold=fold, seed=seed)
        new = {original: label for label, original in enumerate(chosen)}
        content = {
            name: [(np.array(part.points[row]), new[int(part.labels[row])], int(part.labels[row])) for row in rows]
            for name, part, rows in (("train", train, shots), ("test", test, held_out))
        }
        paths.append(target / f"{fold}.pkl")
        write_atomic(paths[-1], lambda file, content=content: pickle.dump(content, file, protocol=4))
    return paths
