"""Synthetic: a built-in data set of procedural objects with parts and normals; needs no files."""

from datasets.synthetic.categories import CATEGORIES, PART_IDS, PART_NAMES
from datasets.synthetic.reader import SyntheticConfig, read_synthetic

__all__ = ["CATEGORIES", "PART_IDS", "PART_NAMES", "SyntheticConfig", "read_synthetic"]
