"""From what stands after `--ckpts` to a file: a path, `mini`, or a name of the table. Imports no torch; fetches nothing."""

import os
from pathlib import Path

from tools.weights.table import MINI, PACKAGED, Entry, entries
from utils.errors import UserError, suggest

SUFFIXES = (".pth", ".pt", ".ckpt", ".safetensors", ".bin", ".tar", ".npz")


def resolve(name_or_path: str | Path, *, model: str | None = None) -> Path:
    """Return the file that a path or a name of weights stands for; nothing is downloaded.

    Args:
        name_or_path: a path, which is returned as it is (a `Path` always is one); `mini`, `mini-point-m2ae`, `mini-point-mae`,
            or a name of the table.
        model: of which method `mini` is wanted: a method ("point-mae"), a name of `create_model` or a registered NAME;
            None = Point-M2AE.

    Raises:
        UserError: the name is unknown, with close ones, or its file is not on this machine, with the command that fetches it. Whether
            a path leads to a checkpoint is not checked.
    """
    name = os.fspath(name_or_path)
    if isinstance(name_or_path, Path) or _is_path(name):
        return Path(name)
    if name == "mini" or name in MINI:
        return _packaged(name if name in MINI else _mini_of(model))
    entry = entry_of(name)
    if not entry.place.is_file():
        raise UserError(
            f"{name}: is not on this machine ({entry.place}); fetch it: python -m tools.weights fetch {name}"
            + ("" if entry.via != "page" else f" says where a person gets it: {entry.source.link}")
        )
    return entry.place


def entry_of(name: str) -> Entry:
    """Return what the table says about a name.

    Raises:
        UserError: it is not in the table, with close names.
    """
    if name not in entries():
        hint = suggest(name, ["mini", *MINI, *entries()], otherwise="python -m tools.weights list names them")
        raise UserError(f"{name}: is neither a file nor the name of weights; {hint}")
    return entries()[name]


def _is_path(name: str) -> bool:
    """Say whether a text is a path, of a file that is there or not, and no name of weights."""
    return os.path.lexists(name) or "/" in name or os.sep in name or name.lower().endswith(SUFFIXES)


def _mini_of(model: str | None) -> str:
    """Return the name of the small weights of a method."""
    if model is None:
        return next(iter(MINI))
    method = _method(model)
    for name, of in MINI.items():
        if of == method:
            return name
    raise UserError(
        f"mini: there are small weights of {' and '.join(MINI.values())}, none of {method or model}; give a checkpoint of that method"
    )


def _method(model: str) -> str | None:
    """Return the method of a registered NAME, of a name of `create_model`, or of a method itself."""
    plain = model.partition(".")[0].replace("_", "-").lower()
    if plain in MINI.values():
        return plain
    from models import MODELS

    return getattr(MODELS.entry(model).target, "method", None) if model in MODELS else plain


def _packaged(name: str) -> Path:
    path = PACKAGED / f"{name}.safetensors"
    if not path.is_file():
        raise UserError(
            f"{name}: {path} is missing; this copy is without the small weights: get it again, or give a checkpoint"
        )
    return path
