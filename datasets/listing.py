"""Lists of clouds: a table that says of each file where it is, which class it has and which split it belongs to."""

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from datasets.clouds import SUBSETS
from datasets.formats.cloud_files import FORMATS
from utils.errors import UserError, printable, suggest
from utils.reading import read_text

COLUMNS = {
    "path": ("path", "file", "filename", "name"),
    "class": ("class", "label", "category"),
    "split": ("split", "subset", "set"),
}
SPLITS = {"train": "train", "training": "train", "test": "test", "testing": "test"}
EXPECTED = "a table with the columns path, class and split (train or test), the last two of which may be missing"


@dataclass(frozen=True)
class Listed:
    """One line of a list."""

    path: Path
    name: str  # of its class; empty without classes
    split: str  # "train", "test", or empty where the list has no splits


def read_listing(path: Path, root: Path) -> list[Listed]:
    """Read a list of the clouds below `root`: values separated by commas, semicolons or tabs, with or without a head line.

    Without a head line the columns are path, class, split. Empty lines, and lines that begin with #, are passed over.

    Raises:
        UserError: the list is malformed, names a file twice, or one that is not there, of no known format, or outside `root`.
    """
    shown = printable(path)
    lines = [(number, line) for number, line in enumerate(read_text(path).splitlines(), start=1) if line.strip()]
    lines = [(number, line) for number, line in lines if not line.lstrip().startswith("#")]
    if not lines:
        raise UserError(f"{shown}: lists no cloud; expected {EXPECTED}")
    separator = next((mark for mark in "\t;," if mark in lines[0][1]), ",")
    rows = [[cell.strip() for cell in next(csv.reader([line], delimiter=separator))] for _, line in lines]
    places = _places(rows[0])
    head = places is not None
    places = places or {"path": 0, "class": 1, "split": 2}
    entries, first = [], {}
    for (number, _), row in list(zip(lines, rows, strict=True))[1 if head else 0 :]:
        where = f"{shown}, line {number}"
        values = {name: row[at] if at < len(row) else "" for name, at in places.items()}
        if len(row) > (len(rows[0]) if head else 3) or not values["path"]:
            raise UserError(f"{where}: has {len(row)} values; expected {EXPECTED}")
        entry = Listed(
            _file(root, values["path"], where), values.get("class", ""), _split(values.get("split", ""), where)
        )
        if entry.path in first:
            raise UserError(
                f"{where}: {printable(values['path'])} stands in line {first[entry.path]} already; remove one"
            )
        first[entry.path] = number
        entries.append(entry)
    for what, given in (("class", [entry.name for entry in entries]), ("split", [entry.split for entry in entries])):
        if any(given) and not all(given):
            number = list(first.values())[given.index("")]
            raise UserError(
                f"{shown}, line {number}: has no {what}, and other lines have one; give it in all lines or none"
            )
    return entries


def _places(head: Sequence[str]) -> dict[str, int] | None:
    """Return the column of each value by the names in a head line; None where the line is none."""
    names = [cell.lower() for cell in head]
    places = {
        column: names.index(known)
        for column, spellings in COLUMNS.items()
        for known in reversed(spellings)
        if known in names
    }
    return places if "path" in places else None


def _file(root: Path, name: str, where: str) -> Path:
    path = root / name.replace("\\", "/")
    if not path.resolve().is_relative_to(root.resolve()):
        raise UserError(f"{where}: {printable(name)} leads out of {printable(root)}; list files below it only")
    if path.suffix.lower() not in FORMATS:
        raise UserError(
            f"{where}: {printable(name)} is of no format that can be read, such as {', '.join(FORMATS[:4])}"
        )
    if not path.is_file():
        raise UserError(f"{where}: {printable(name)} is no file below {printable(root)}; correct the path")
    return path


def _split(name: str, where: str) -> str:
    if name and name.lower() not in SPLITS:
        raise UserError(f"{where}: split {name!r} is unknown; {suggest(name, SUBSETS)}")
    return SPLITS.get(name.lower(), "")
