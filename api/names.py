"""The names that models have for other programs: method, task and, where a method has several models for a task, the data set."""

from collections.abc import Mapping
from typing import Any

from models import MODELS
from models.base import PretrainingModel
from models.classifier import Classifier
from models.detr import Detector
from models.segmenter import PartSegmenter
from models.weights import method_of, state_dict_of
from utils.errors import UserError, suggest

TASKS = {"pretrain": PretrainingModel, "classify": Classifier, "segment": PartSegmenter, "detect": Detector}


def registered() -> dict[str, str]:
    """Return name -> registered NAME. Where a method has several models for a task, what sets their NAMEs apart is added.

    A NAME that the others begin with has nothing to add.
    """
    groups: dict[str, list[str]] = {}
    for name in MODELS.names():
        target = MODELS.entry(name).target
        groups.setdefault(f"{_method(target)}.{_task(target)}", []).append(name)
    names = {}
    for group, members in groups.items():
        for member in members:
            plain = all(other.startswith(member) for other in members)
            names[group if plain else f"{group}.{member.rpartition('_')[2].lower()}"] = member
    return names


def find(name: str) -> tuple[str, str]:
    """Return the name and the registered NAME of a model that is called by either.

    Raises:
        UserError: there is no such model; the message gives close names.
    """
    names = registered()
    if name in names:
        return name, names[name]
    if name in MODELS:
        entry = MODELS.entry(name)
        return next((short, full) for short, full in names.items() if MODELS.entry(full) is entry)
    raise UserError(f"model {name!r} is unknown; {suggest(name, names)}")


def check_task(where: str, checkpoint: Mapping[str, Any], name: str) -> None:
    """Check that a checkpoint was trained for a task that a model starts from: its own, or pre-training.

    Args:
        name: the registered NAME of the model.

    Raises:
        UserError: it was not; the message says what it is.
    """
    saved = saved_name(checkpoint)
    wanted = _task(MODELS.entry(name).target)
    if saved is not None and saved in MODELS:
        what, task = find(saved)[0], _task(MODELS.entry(saved).target)
    else:
        task = _task_of_keys(checkpoint)
        what = f"{(method_of(checkpoint) or 'a').replace('-', '_')} model to {task}"
    if task not in (wanted, "pretrain"):
        raise UserError(
            f"{where}: is a checkpoint of {what}, and {find(name)[0]} is a model to {wanted}; "
            "build that model, or give a checkpoint of pre-training"
        )


def saved_name(checkpoint: Mapping[str, Any]) -> str | None:
    """Return the NAME of the model in the configuration of a checkpoint of ours, else None."""
    config = checkpoint.get("config")
    model = config.get("model") if isinstance(config, Mapping) else None
    name = model.get("NAME") if isinstance(model, Mapping) else None
    return name if isinstance(name, str) else None


def _method(target: Any) -> str:
    return str(getattr(target, "method", "other")).replace("-", "_")


def _task(target: Any) -> str:
    return next(
        (task for task, base in TASKS.items() if isinstance(target, type) and issubclass(target, base)), "other"
    )


def _task_of_keys(checkpoint: Mapping[str, Any]) -> str:
    """Return the task of a checkpoint without a configuration, by the head that its keys show."""
    keys = list(state_dict_of(checkpoint))
    for task in ("classify", "segment"):
        targets: list[Any] = [target for target in MODELS.targets() if _task(target) == task]
        heads = {head for target in targets for head in target.HEAD}
        if any(key.startswith(tuple(heads)) for key in keys):
            return task
    return "pretrain"
