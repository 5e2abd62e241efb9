"""Data sets: `build_dataset(config)` gives a `CloudSet`, `Batches` draws from it, `transforms` change batches."""

from importlib import import_module
from typing import Any

from datasets.clouds import CloudSet

__all__ = ["DATASETS", "Batch", "Batches", "CloudSet", "Samples", "build_dataset"]

_READERS = (
    "few_shot",
    "folder",
    "mixture",
    "modelnet",
    "modelnet40_c",
    "modelnet_txt",
    "scannet",
    "scanobjectnn",
    "shapenet",
    "shapenet_part",
    "shapenet_render",
    "synthetic",
)


def __getattr__(name: str) -> Any:
    """Import on demand what needs torch, so that the workers of a conversion start without it."""
    if name in _READERS:
        return import_module(f"{__name__}.{name}")
    if name in ("Batch", "Batches", "Samples"):
        return getattr(import_module(f"{__name__}.batches"), name)
    if name == "DATASETS":
        for reader in _READERS:
            import_module(f"{__name__}.{reader}")
        return import_module(f"{__name__}.registry").DATASETS
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def build_dataset(config) -> CloudSet:
    """Read the split that `config` describes, or the fraction of it: a data-set dataclass, or a mapping with `NAME`.

    Raises:
        UserError: for an unknown name or key, and for missing or damaged files.
    """
    from datasets.fractions import take_fraction

    registry = __getattr__("DATASETS")
    config = registry.config(config)
    return take_fraction(registry.build(config), config)
