"""Weights by name: the table of published weights (`tools.weights`), the small ones of this package, and files."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from api.names import find
from models import MODELS
from tools.weights import resolve
from tools.weights.table import Entry, entries, weights_folder
from utils import ROOT
from utils.config.load import read_recipe
from utils.errors import UserError

ANY = "published"  # what stands for whatever is published for a model


class Located(NamedTuple):
    """Weights that are on this machine.

    Args:
        path: their file.
        recipe: the recipe that builds their model, where they are published ones of the table.
    """

    path: Path
    recipe: Path | None


def locate(weights: str | Path, model: str | None = None) -> Located:
    """Return the file that a path or a name stands for; nothing is downloaded.

    Args:
        weights: a path; "published", "mini", or a name of the table.
        model: name of the model that takes them.

    Raises:
        UserError: the name is unknown, is of weights that the model does not start from, or stands for several; or the file is not
            here, with the command that fetches it.
    """
    if weights == ANY:
        weights = _published_for(model)
    entry = entries().get(weights) if isinstance(weights, str) else None
    if entry is not None and model is not None:
        _check_fits(entry, model)
    path = resolve(weights, model=model)
    if entry is None and path.parent == weights_folder():
        entry = entries().get(path.stem)
    return Located(path, _recipe(entry) if entry is not None and entry.recipe else None)


def _published_for(model: str | None) -> str:
    """Return the name of the published weights of a model; of files of one task, one that is here, else the first."""
    if model is None:
        raise UserError(f"{ANY}: of which model? Give its name, or one that m2ae weights list shows")
    short, _ = find(model)
    fitting: dict[str, list[Entry]] = {}
    for entry in _of_models():
        if _model_of(entry) == short:
            fitting.setdefault(entry.task, []).append(entry)
    if not fitting:
        known = sorted({_model_of(entry) for entry in _of_models()})
        raise UserError(f"{short}: no weights of it are published; there are some of {', '.join(known)}")
    if len(fitting) > 1:
        names = ", ".join(entry.name for group in fitting.values() for entry in group)
        raise UserError(f"{short}: several published weights fit; choose one of {names}")
    (group,) = fitting.values()
    return next((entry.name for entry in group if entry.place.is_file()), group[0].name)


def _check_fits(entry: Entry, model: str) -> None:
    """Raise where weights of the table are for another method, or for a task that the model does not start from."""
    short, registered = find(model)
    theirs = _model_of(entry) if entry.recipe else f"{entry.method} ({entry.task}), which no model here reads"
    target: Any = MODELS.entry(registered).target
    methods = {target.method, *target.starts_from}
    if theirs == short or (theirs.endswith(".pretrain") and entry.method in methods):
        return
    fits = [other.name for other in _of_models() if _model_of(other) == short]
    remedy = f"for {short} there is {', '.join(fits)}" if fits else f"none of {short} are published"
    raise UserError(f"{entry.name}: weights of {theirs}, and {short} was asked for; {remedy}")


def _of_models() -> Iterator[Entry]:
    return (entry for entry in entries().values() if entry.recipe)


def _recipe(entry: Entry) -> Path:
    return ROOT / "cfgs" / entry.recipe


def _model_of(entry: Entry) -> str:
    return find(read_recipe(_recipe(entry))["model"]["NAME"])[0]
