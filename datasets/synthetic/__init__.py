"""Synthetic: built-in sets of procedural objects with parts and normals, and of rooms of them; they need no files."""

from datasets.synthetic.categories import CATEGORIES, PART_IDS, PART_NAMES
from datasets.synthetic.reader import SyntheticConfig, read_synthetic
from datasets.synthetic.scenes import SyntheticScenesConfig, read_scenes

__all__ = [
    "CATEGORIES",
    "PART_IDS",
    "PART_NAMES",
    "SyntheticConfig",
    "SyntheticScenesConfig",
    "read_scenes",
    "read_synthetic",
]
