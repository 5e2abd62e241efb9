"""Which parts a category has: of ShapeNetPart, of `parts.json`, or of the labels that are there.

Legend: C categories, P parts of all categories together.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from utils.errors import UserError
from utils.reading import read_json

# Published parts of ShapeNetPart: category -> its first part and how many there are. The set does not name them.
SHAPENET_PARTS = {
    "Airplane": (0, 4), "Bag": (4, 2), "Cap": (6, 2), "Car": (8, 4), "Chair": (12, 4), "Earphone": (16, 3),
    "Guitar": (19, 3), "Knife": (22, 2), "Lamp": (24, 4), "Laptop": (28, 2), "Motorbike": (30, 6), "Mug": (36, 2),
    "Pistol": (38, 3), "Rocket": (41, 3), "Skateboard": (44, 3), "Table": (47, 3),
}  # fmt: skip
LARGEST_PART = 4095  # a larger number is no part but a mistake in the files


@dataclass(frozen=True)
class PartTable:
    """Parts by category.

    Args:
        parts: category -> ids of its parts -> their names.
        source: where the table is from, for messages.
    """

    parts: dict[str, dict[int, str]]
    source: str

    @property
    def count(self) -> int:
        """Return P, one more than the largest id."""
        return max(max(parts) for parts in self.parts.values()) + 1

    @property
    def names(self) -> list[str]:
        """Return "<category> <part>" by id; an id that no category has is "part <id>"."""
        names = [f"part {number}" for number in range(self.count)]
        for category, parts in self.parts.items():
            for number, name in parts.items():
                names[number] = f"{category} {name}"
        return names

    @property
    def category_parts(self) -> dict[str, list[int]]:
        """Return the part ids of each category, by its name."""
        return {category: sorted(parts) for category, parts in self.parts.items()}


def owned_parts(category_parts: Mapping[str, Sequence[int]], categories: Sequence[str], count: int) -> np.ndarray:
    """Return (C, P) bool: True where the category of that row has the part."""
    owned = np.zeros((len(categories), count), bool)
    for row, category in enumerate(categories):
        owned[row, list(category_parts[category])] = True
    return owned


def shapenet_table(categories: Sequence[str]) -> PartTable | None:
    """Return the published table where these are the published categories, else None."""
    if list(categories) != list(SHAPENET_PARTS):
        return None
    parts = {
        name: {first + number: f"part {number + 1}" for number in range(count)}
        for name, (first, count) in SHAPENET_PARTS.items()
    }
    return PartTable(parts, "the published table of ShapeNetPart")


def read_table(path: Path, categories: Sequence[str]) -> PartTable:
    """Read `parts.json`: {category: {"parts": {id: name}}}.

    Raises:
        UserError: it is no such file, lacks one of the categories, or has ids that are none.
    """
    layout = 'an object {category: {"parts": {"0": "wing", ...}}, ...}'
    content = read_json(path, layout)
    parts = {}
    for category in categories:
        entry = content.get(category) if isinstance(content, dict) else None
        listed = entry.get("parts") if isinstance(entry, dict) else None
        if not isinstance(listed, dict) or not listed:
            raise UserError(f"{path}: has no parts of category {category!r}; expected {layout}")
        for key in listed:
            if not key.isdecimal() or len(key) > 9 or int(key) > LARGEST_PART:
                raise UserError(
                    f"{path}: part {key!r} of {category!r} is no number from 0 to {LARGEST_PART}; expected {layout}"
                )
        parts[category] = {int(key): str(name) for key, name in listed.items()}
    return PartTable(parts, str(path))


def table_of_labels(labels: np.ndarray, part_labels: np.ndarray, categories: Sequence[str], source: str) -> PartTable:
    """Take as parts of a category what its clouds (M, N) have; a category without clouds has part 0 of nothing else.

    Raises:
        UserError: a category has no cloud to take parts from.
    """
    parts = {}
    for number, category in enumerate(categories):
        found = np.unique(part_labels[labels == number])
        if not len(found):
            raise UserError(
                f"{source}: category {category!r} has no training cloud, so that its parts are not known; add clouds, or parts.json"
            )
        parts[category] = {int(part): f"part {rank}" for rank, part in enumerate(found, start=1)}
    return PartTable(parts, f"the training labels of {source}")
