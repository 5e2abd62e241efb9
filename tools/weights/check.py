"""Say what a file of weights is: by its hash, by its own configuration, or by its keys; and whether it loads."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from models import MODELS, build_model, load_weights
from models.images.clip_layout import find_clip
from models.pyg_layout import is_converted
from models.weights import method_of, state_dict_of
from tools.launch import load_recipe
from tools.published.paths import recipe_path
from tools.weights.table import Entry, entries
from utils import ROOT
from utils.checkpoints import find_weights
from utils.errors import UserError
from utils.files import read_checkpoint

HEADS = ("cls_head_finetune.", "cls_head.")
# Width of the last layer of a classifier -> the data set whose recipe fits, and what else it may be.
CLASSES = {40: ("modelnet40", "ModelNet40"), 15: ("scan_pb", "ScanObjectNN, one of its three variants")}
LAST = ("cls_head_finetune.8.weight", "cls_head_finetune.weight", "cls_head.weight")


@dataclass(frozen=True)
class Found:
    """What a file turned out to be.

    Args:
        lines: what to print.
        loads: a model of this program takes it.
    """

    lines: list[str]
    loads: bool


def check(path: Path, entry: Entry | None = None) -> Found:
    """Recognise a file of weights, and load it into the model that it is for.

    Args:
        entry: what the table says about it; None = found by its hash, if it is.

    Raises:
        UserError: it is no checkpoint.
    """
    import pooch

    checkpoint = read_checkpoint(path)
    weights = state_dict_of(checkpoint)
    digest = pooch.file_hash(str(path))
    same = next((each for each in entries().values() if each.sha256 == digest), None)
    entry = entry or same
    lines = [f"{path}: {len(weights)} tensors, {sum(value.numel() for value in weights.values()):,} values"]
    lines.append(f"sha256 {digest}" + (f": {same.name}, as stated by {same.stated_by}" if same else ""))
    if entry and entry.note:
        lines.append(f"note: {entry.note}")
    if is_converted(find_weights(checkpoint)):
        lines.append("keys of torch-pointcloud, which every command brings back to the published ones")
    if method_of({"base_model": weights}) is None and find_clip(weights):
        return Found([*lines, "CLIP, an image teacher: --set model.teacher.weights=FILE (docs/image-teacher.md)"], True)
    return _loaded(lines, weights, _config_of(checkpoint, weights, entry))


def _config_of(checkpoint: Mapping, weights: Mapping[str, Tensor], entry: Entry | None) -> tuple[Any, str]:
    """Return the configuration of the model that weights are for, or None, and what says so."""
    saved = checkpoint.get("config")
    model = saved.get("model") if isinstance(saved, Mapping) else None
    if isinstance(model, Mapping) and model.get("NAME") in MODELS:
        epoch = f", epoch {checkpoint['epoch']}" if isinstance(checkpoint.get("epoch"), int) else ""
        return dict(model), f"a checkpoint of this program: {model['NAME']}{epoch}"
    if entry and entry.recipe:
        return load_recipe(
            ROOT / "cfgs" / entry.recipe
        ).model, f"{entry.method}, {entry.task}; recipe cfgs/{entry.recipe}"
    method = method_of({"base_model": weights})
    if method is None:
        return None, "of no method that is known here, by its keys"
    task, data, said = _task(weights)
    recipe = recipe_path(task, method, data)
    if not (ROOT / recipe).is_file():
        return None, f"{method}, {said}; there is no recipe for it"
    return load_recipe(ROOT / recipe).model, f"{method}, {said}, by its keys; recipe {recipe.as_posix()}"


def _task(weights: Mapping[str, Tensor]) -> tuple[str, str | None, str]:
    """Return the task and the data set of a recipe that fits, by keys, and what a person is to read."""
    if any(key.startswith(("label_conv.", "convs1.")) for key in weights):
        return "segmentation", "shapenet_part", "part segmentation"
    if not any(key.startswith(HEADS) for key in weights):
        return "pre-training", None, "pre-training"
    classes = next((weights[key].shape[0] for key in LAST if key in weights), 0)
    data, meaning = CLASSES.get(classes, ("modelnet40", "a data set of its own"))
    return "fine-tuning", data, f"a classifier of {classes} classes ({meaning})"


def _loaded(lines: list[str], weights: Mapping[str, Tensor], known: tuple[Any, str]) -> Found:
    config, said = known
    lines = [*lines, said]
    if config is None:
        return Found([*lines, "does not load into a model of this program"], False)
    try:
        report = load_weights(build_model(config), {"base_model": dict(weights)})
    except UserError as error:
        return Found([*lines, f"does not load: {error}"], False)
    return Found([*lines, f"loads: {report}"], True)
