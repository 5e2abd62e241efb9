"""Parts of a training set: few labels, few clouds, and a part that is held out to select on."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from datasets.clouds import CloudSet
from utils.errors import UserError

FRACTIONS = ("label_fraction", "cloud_fraction", "first_fraction")


@dataclass
class FractionKeys:
    """Keys of every set that can be trained on: how much of it is taken. The test split is always whole.

    A smaller fraction is a part of a larger one of the same seed.
    """

    NAME: str = ""
    label_fraction: float = 1.0  # of the clouds of each class, at least one of each
    cloud_fraction: float = 1.0  # of all clouds, whatever their class, as for pre-training
    first_fraction: float = 1.0  # of all clouds, the first ones in stored order: --rate, as published for PCP-MAE
    fraction_seed: int = 0  # of the draw; it does not follow the seed of the run

    def __post_init__(self):
        for key in FRACTIONS:
            value = getattr(self, key)
            if not 0 < value <= 1:
                raise ValueError(f"{key}: is {value}; it must lie above 0 and not above 1, for example 0.1")
            if value < 1 and getattr(self, "subset", "") == "test":
                raise ValueError(
                    f"{key}: is {value}, but subset is test; a test set is taken whole, set it in dataset.train"
                )
        given = [key for key in FRACTIONS if getattr(self, key) < 1]
        if len(given) > 1:
            raise ValueError(f"{given[0]}: does not go with {given[1]}; give one of them")
        if self.fraction_seed < 0:
            raise ValueError(f"fraction_seed: is {self.fraction_seed}; it must not be negative")


def take_fraction(clouds: CloudSet, keys: Any) -> CloudSet:
    """Return the part of a set that the keys of its reader ask for, in stored order; the set itself where that is all of it.

    Raises:
        UserError: `label_fraction` of a set without labels.
    """
    if getattr(keys, "first_fraction", 1.0) < 1:
        return clouds.select(np.arange(max(1, int(keys.first_fraction * len(clouds)))))
    if getattr(keys, "cloud_fraction", 1.0) < 1:
        count = max(1, round(keys.cloud_fraction * len(clouds)))
        return clouds.select(np.sort(_shuffled(len(clouds), keys.fraction_seed, "cloud fraction")[:count]))
    if getattr(keys, "label_fraction", 1.0) < 1:
        if clouds.labels is None:
            raise UserError(
                f"label_fraction: {keys.label_fraction}, but {clouds.name} ({clouds.subset}) has no labels; use cloud_fraction"
            )
        rows = [
            shuffled[: max(1, round(keys.label_fraction * len(shuffled)))]
            for _, shuffled in _classes(clouds, keys.fraction_seed, "label fraction")
        ]
        return clouds.select(np.sort(np.concatenate(rows)))
    return clouds


def split_held_out(clouds: CloudSet, share: float, seed: int) -> tuple[CloudSet, CloudSet]:
    """Return what is left of a training set and the part that is held out of it, `share` of each class, both in stored order.

    Raises:
        UserError: as `held_out_rows`.
    """
    held_out = held_out_rows(clouds, share, seed)
    return clouds.select(np.flatnonzero(~held_out)), clouds.select(np.flatnonzero(held_out))


def held_out_rows(clouds: CloudSet, share: float, seed: int) -> np.ndarray:
    """Say of each cloud whether it is held out, bool (M,); the draw depends on the seed and the size of each class alone.

    Raises:
        UserError: the set has no labels, or one of the two parts would have no cloud of some class.
    """
    where = f"held_out: {share:g} of {clouds.name} ({clouds.subset})"
    if clouds.labels is None:
        raise UserError(f"{where}: it has no labels, and a held-out part has some of each class; use a labelled set")
    chosen = []
    for label, shuffled in _classes(clouds, seed, "held out"):
        count = round(share * len(shuffled))
        if not 0 < count < len(shuffled):
            raise UserError(f"{where}: {_empty(clouds, label, len(shuffled), count)}")
        chosen.append(shuffled[:count])
    held_out = np.zeros(len(clouds), dtype=bool)
    held_out[np.concatenate(chosen)] = True
    return held_out


def _empty(clouds: CloudSet, label: int, size: int, count: int) -> str:
    """Say which class one of the two parts would lack, and what helps."""
    name = clouds.class_names[label] if clouds.class_names else label
    if size == 1:
        return f"class {name} has one cloud, which cannot be in both parts; add clouds, or leave out --select held_out"
    part, low, high = "held-out" if count == 0 else "training", 0.5 / size, 1 - 0.5 / size
    return (
        f"class {name} has {size} clouds, and the {part} part would have none of them; choose a share above {low:.3g} "
        f"and below {high:.3g}"
    )


def _classes(clouds: CloudSet, seed: int, stream: str) -> list[tuple[int, np.ndarray]]:
    """Return (label, positions of its clouds in random order) of each class."""
    found = []
    for label in np.unique(clouds.labels):
        rows = np.flatnonzero(clouds.labels == label)
        found.append((int(label), rows[_shuffled(len(rows), seed, f"{stream} {label}")]))
    return found


def _shuffled(count: int, seed: int, stream: str) -> np.ndarray:
    # Here, because the workers of conversions do without torch.
    import torch

    from utils.seed import generator

    return torch.randperm(count, generator=generator(seed, 0, 0, stream)).numpy()
