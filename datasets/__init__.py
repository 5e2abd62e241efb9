"""Data sets: `build_dataset(config)` gives a `CloudSet`, `Batches` draws from it, `transforms` change batches."""

from datasets import (
    few_shot,
    folder,
    modelnet,
    modelnet40_c,
    modelnet_txt,
    scanobjectnn,
    shapenet,
    shapenet_part,
    shapenet_render,
    synthetic,
)
from datasets.batches import Batch, Batches
from datasets.clouds import CloudSet
from datasets.registry import DATASETS

__all__ = [
    "DATASETS",
    "Batch",
    "Batches",
    "CloudSet",
    "build_dataset",
    "few_shot",
    "folder",
    "modelnet",
    "modelnet40_c",
    "modelnet_txt",
    "scanobjectnn",
    "shapenet",
    "shapenet_part",
    "shapenet_render",
    "synthetic",
]


def build_dataset(config) -> CloudSet:
    """Read the split that `config` describes: a data-set dataclass, or a mapping with `NAME`.

    Raises:
        UserError: for an unknown name or key, and for missing or damaged files.
    """
    return DATASETS.build(config)
