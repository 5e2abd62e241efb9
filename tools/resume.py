"""What differs between a run and the command that resumes it."""

from collections.abc import Iterator, Mapping
from fnmatch import fnmatch
from typing import Any

from utils.errors import UserError

# Keys that may differ: results stay the same, or a run becomes longer or shorter.
HARMLESS = (
    "max_epoch",
    "log_every",
    "keep_from",
    "keep_every",
    "svm.batch_size",
    "imports",
    "dataset.*.DATA_PATH",
    "dataset.*.PC_PATH",
    "dataset.*.DATA_DIR",
    "dataset.*.ROOT",
)
# Keys that a run fills in, or that its state checks itself (the seed).
OWN = ("class_names", "part_names", "category_parts*", "*sha256", "seed")


def check_resumed(before: Any, now: Mapping, where: str, *, allowed: bool) -> list[str]:
    """Return what differs from the configuration of a checkpoint, one line each.

    Args:
        before: the configuration in the checkpoint; None where it holds none.
        now: the configuration of this command, as plain data.
        allowed: whether keys that change results may differ.

    Raises:
        UserError: they do, and may not.
    """
    if not isinstance(before, Mapping):
        return []
    lines = changes(before, now)
    serious = serious_changes(lines)
    if serious and not allowed:
        raise UserError(
            f"--resume: {where} was trained with another configuration: {'; '.join(serious)}. Resume with the recipe and the flags "
            "of that run, or add --allow_changes"
        )
    return list(lines.values())


def changes(before: Mapping, now: Mapping) -> dict[str, str]:
    """Return what differs between two configurations, path -> one line, without what a run fills in."""
    found = [(path, old, new) for path, old, new in _differences(before, now) if not _is(path, OWN)]
    return {path: f"{path} {_show(old)}, now {_show(new)}" for path, old, new in found}


def serious_changes(lines: Mapping[str, str]) -> list[str]:
    """Return those of `changes` that change results."""
    return [line for path, line in lines.items() if not _is(path, HARMLESS)]


def _is(path: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatch(path, pattern) for pattern in patterns)


def _differences(before: Mapping, now: Mapping, above: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Yield path, value before and now of keys that both have: a key that only one version of the program knows is none."""
    for key in before:
        if key not in now or before[key] == now[key]:
            continue
        if isinstance(before[key], Mapping) and isinstance(now[key], Mapping):
            yield from _differences(before[key], now[key], f"{above}{key}.")
        else:
            yield f"{above}{key}", before[key], now[key]


def _show(value: Any) -> str:
    text = "empty" if value is None else str(value)
    return text if len(text) <= 40 else text[:37] + "..."
