"""Several data sets as one, for pre-training on more than one of them."""

from dataclasses import dataclass, field

import numpy as np

from datasets.clouds import CloudSet, check_subset
from datasets.fractions import FractionKeys
from datasets.registry import DATASETS
from utils.errors import UserError


@dataclass
class MixtureConfig(FractionKeys):
    """Keys of Mixture. All clouds come to stand along `UP_AXIS`; several sets lose their labels, as their classes differ."""

    NAME: str = "Mixture"
    sets: list[dict] = field(default_factory=list)  # each a data set: NAME and its keys
    subset: str = "train"  # of all sets that do not state their own
    npoints: int = 1024  # points a sample
    UP_AXIS: str = "y"
    sampling: str = "random"  # random | first | all
    normalize: bool = False
    bs: int = 0  # batch of this loader; 0 = the recipe's


@DATASETS.register("Mixture", config=MixtureConfig)
def read_mixture(config: MixtureConfig) -> CloudSet:
    """Read the sets and put their clouds one after the other, in memory.

    Of each cloud the first P stored points are kept, P being the fewest of any of the sets.

    Raises:
        UserError: no sets, a set that cannot be read, or one that holds fewer points than `npoints`.
    """
    check_subset(config.subset, config.NAME)
    if not config.sets:
        raise UserError(f"{config.NAME}: sets is empty; list at least one data set, each with NAME and its keys")
    parts = [DATASETS.build({"subset": config.subset, **keys, "sampling": "all"}) for keys in config.sets]
    stored = min(part.points.shape[1] for part in parts)
    for part in parts:
        if part.points.shape[1] < config.npoints:
            raise UserError(
                f"{config.NAME}: {config.npoints} points a sample are asked, but the clouds of {part.name} hold "
                f"{part.points.shape[1]}; set npoints to {stored} or less"
            )
    only = parts[0] if len(parts) == 1 else None
    points = [_turn(np.asarray(part.points[:, :stored]), part.up_axis, config.UP_AXIS) for part in parts]
    return CloudSet(
        points=np.concatenate(points),
        names=[f"{part.name}/{name}" for part in parts for name in part.names or map(str, range(len(part)))],
        labels=only.labels if only else None,
        class_names=only.class_names if only else None,
        name=only.name if only else config.NAME,
        subset=config.subset,
        source=", ".join(dict.fromkeys(part.source or part.name for part in parts)),
        up_axis=config.UP_AXIS,
        npoints=config.npoints,
        sampling=config.sampling,
        normalize=config.normalize,
    )


def _turn(points: np.ndarray, from_axis: str, to_axis: str) -> np.ndarray:
    """Rotate (M, P, 3) so that what points along `from_axis` points along `to_axis`: axes change places in a cycle."""
    return np.roll(points, "xyz".index(to_axis) - "xyz".index(from_axis), axis=2)
