"""ScanObjectNN: scanned objects in HDF5, 15 classes, 2,048 points, not normalised."""

from dataclasses import dataclass
from os.path import isfile
from pathlib import Path

import numpy as np

from datasets.cache import Recipe, cached
from datasets.clouds import CloudSet, check_subset
from datasets.formats.hdf5 import inspect, read_chunks
from datasets.fractions import FractionKeys
from datasets.paths import missing, require
from datasets.registry import DATASETS
from utils.errors import UserError

CLASSES = [
    "bag", "bin", "box", "cabinet", "chair", "desk", "display", "door", "shelf", "table", "bed", "pillow", "sink",
    "sofa", "toilet",
]  # fmt: skip
PLAIN = {"train": "training_objectdataset.h5", "test": "test_objectdataset.h5"}
HARDEST = {
    "train": "training_objectdataset_augmentedrot_scale75.h5",
    "test": "test_objectdataset_augmentedrot_scale75.h5",
}
FILES = {"OBJ-BG": PLAIN, "OBJ": PLAIN, "PB": HARDEST}


@dataclass
class ScanObjectNNConfig(FractionKeys):
    """Keys of ScanObjectNN. Training clouds come in random point order, test clouds as stored."""

    NAME: str = "ScanObjectNN"
    ROOT: str = "data/ScanObjectNN/main_split"
    SPLIT: str = "OBJ-BG"  # OBJ-BG | OBJ (ROOT .../main_split_nobg) | PB
    N_POINTS: int = 2048  # at most this many points of each stored cloud are kept
    UP_AXIS: str = "y"
    subset: str = "train"
    npoints: int = 0  # points a sample; 0 = all that are kept
    sampling: str = ""  # random | first | all; empty = random for training, first for test
    normalize: bool = False
    bs: int = 0  # batch of this loader; 0 = the recipe's


@dataclass
class ScanObjectNNHardestConfig(ScanObjectNNConfig):
    """Keys of ScanObjectNN_hardest, the name that the hardest variant (PB-T50-RS) has in Point-MAE's files."""

    NAME: str = "ScanObjectNN_hardest"
    SPLIT: str = "PB"


@DATASETS.register("ScanObjectNN", config=ScanObjectNNConfig)
@DATASETS.register("ScanObjectNN_hardest", config=ScanObjectNNHardestConfig)
def read_scanobjectnn(config: ScanObjectNNConfig) -> CloudSet:
    """Read one split.

    Note: the random point order of training clouds is the set's "random" sampling of all points, drawn by `Batches`
    from the run's seed (the published loader shuffles with the worker's generator).

    Raises:
        UserError: naming file, cloud and remedy for anything missing, damaged or out of range.
    """
    check_subset(config.subset, config.NAME)
    if config.SPLIT not in FILES:
        raise UserError(f"{config.NAME}: SPLIT {config.SPLIT!r} is unknown; choose one of {', '.join(FILES)}")
    folder = require(Path(config.ROOT), f"{' and '.join(FILES[config.SPLIT].values())}")
    path = folder / FILES[config.SPLIT][config.subset]
    if not isfile(path):
        raise missing(path, "datasets 'data' (n, 2048, 3) and 'label' (n,)")
    shape = inspect(path)
    points = min(config.N_POINTS, shape.points) if config.N_POINTS > 0 else shape.points
    arrays = cached(
        Recipe(
            name=f"ScanObjectNN-{config.SPLIT}-{config.subset}",
            key={"points": points},
            sources=[path],
            fields={"points": ("<f4", (points, 3)), "labels": ("<i8", ())},
            count=shape.count,
            chunks=lambda: read_chunks([shape], points, len(CLASSES)),
        )
    )
    return CloudSet(
        points=arrays["points"],
        labels=np.asarray(arrays["labels"]),
        class_names=list(CLASSES),
        names=[f"{path.name}[{row}]" for row in range(shape.count)],
        name=config.NAME,
        subset=config.subset,
        source=str(path),
        up_axis=config.UP_AXIS,
        npoints=config.npoints or points,
        sampling=config.sampling or ("random" if config.subset == "train" else "first"),
        normalize=config.normalize,
    )
