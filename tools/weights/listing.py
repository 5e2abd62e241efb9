"""Print the table of published weights."""

import dataclasses
import json

from tools.weights.names import entry_of
from tools.weights.table import MINI, PACKAGED, entries
from utils.errors import UserError, suggest


def as_table(words: list[str]) -> str:
    """Return the names of the table, one a line: all, or those in whose name, method, task or system every word occurs.

    Raises:
        UserError: there is none.
    """
    words = [word.lower() for word in words]
    chosen = [
        entry for entry in entries().values() if _holds(words, entry.name, entry.method, entry.task, entry.system)
    ]
    rows = [("name", "task", "published, %", "sha256", "here")]
    rows += [
        (name, "pretrain", "docs/weights.md", "-", _here((PACKAGED / f"{name}.safetensors").is_file()))
        for name in MINI
        if _holds(words, name, "pretrain")
    ]
    rows += [
        (
            entry.name,
            entry.task,
            entry.published or "-",
            "stated" if entry.sha256 else "-",
            _here(entry.place.is_file()),
        )
        for entry in chosen
    ]
    if len(rows) == 1:
        hint = suggest(" ".join(words), {entry.method for entry in entries().values()}, what="methods")
        raise UserError(f"{' '.join(words)}: is in no name, method, task or system of the table; {hint}")
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join([*lines, "", "python -m tools.weights list NAME says more, fetch NAME fetches it"])


def _here(there: bool) -> str:
    return "yes" if there else "no"


def _holds(words: list[str], *texts: str) -> bool:
    return all(word in " ".join(texts).lower() for word in words)


def in_full(name: str) -> str:
    """Return all that is known of one name.

    Raises:
        UserError: it is not in the table.
    """
    if name in MINI:
        place = PACKAGED / f"{name}.safetensors"
        keys = {"method": MINI[name], "task": "pretrain", "recipe": f"pre-training/{MINI[name]}/mini.yaml"}
        keys["card"] = str(PACKAGED / "README.md")
    else:
        entry = entry_of(name)
        place, keys = entry.place, dataclasses.asdict(entry) | {"address": entry.source.link}
        del keys["name"]
    keys["place"] = str(place) + ("" if place.is_file() else " (not there)")
    if keys["recipe"]:
        keys["recipe"] = f"cfgs/{keys['recipe']}"
    keys = {key: value for key, value in keys.items() if value}
    width = max(map(len, keys))
    return "\n".join([name, *(f"  {key:<{width}}  {value}" for key, value in keys.items())])


def as_json() -> str:
    """Return the whole table as JSON, by name."""
    return json.dumps({name: dataclasses.asdict(entry) for name, entry in entries().items()}, indent=1)
