"""Models with weights for other programs; an installation has this package as `m2ae`, and `m2ae.transforms` with it.

>>> model = m2ae.create_model("point_m2ae.pretrain", weights="ckpts/pre-train.pth")
>>> with torch.inference_mode():
...     features = model.encode(points)  # (B, N, 3), unit sphere, y up -> (B, C)
...     tokens = model.patch_tokens(points)  # (B, G, C), one a coarsest group
...     clouds = model.reconstruct(points).clouds  # a part hidden and rebuilt
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from utils import __version__

if TYPE_CHECKING:
    from models.base import PointModel

__all__ = ["__version__", "create_model", "list_models"]


def list_models() -> list[str]:
    """Return the names that `create_model` takes: method, task and, where a method has several models for it, the data set."""
    return sorted(_registered())


def create_model(name: str, weights: str | Path | None = None, **overrides: Any) -> "PointModel":
    """Build a model in evaluation mode.

    Args:
        name: one of `list_models()`, or the `NAME` of a recipe.
        weights: path of a checkpoint, ours or a published one; None = random weights. A checkpoint of ours says its size;
            a classifier or segmenter takes the encoder of a pre-training one, and its head starts untrained.
        overrides: keys of the model, over those of the checkpoint and the published ones, for example `mask_ratio=0.6`.

    Raises:
        ValueError: the name or a key is unknown, with close ones; the checkpoint cannot be read, or is of another method or task.
    """
    from models import MODELS, build_model, load_weights
    from utils.errors import UserError, suggest
    from utils.files import read_checkpoint

    names = _registered()
    registered = names.get(name, name)
    if registered not in MODELS:
        raise UserError(f"model {name!r} is unknown; {suggest(name, names)}")
    checkpoint = None if weights is None else read_checkpoint(weights)
    saved = {} if checkpoint is None else _saved_keys(checkpoint, registered)
    if checkpoint is not None:
        _check_task(str(weights), checkpoint, registered)
    model = build_model({**saved, "NAME": registered, **overrides})
    if weights is not None:
        load_weights(model, weights)
    return model.eval()


def _registered() -> dict[str, str]:
    """Return name -> registered NAME. Where a method has several models for a task, what sets their NAMEs apart is added."""
    from models import MODELS

    groups: dict[str, list[str]] = {}
    for name in MODELS.names():
        target = MODELS.entry(name).target
        groups.setdefault(f"{target.method.replace('-', '_')}.{_task(target)}", []).append(name)
    names = {}
    for group, members in groups.items():
        for member in members:
            names[group if len(members) == 1 else f"{group}.{member.rpartition('_')[2].lower()}"] = member
    return names


def _task(target: Any) -> str:
    from models.base import MaskedAutoencoder
    from models.classifier import Classifier
    from models.segmenter import PartSegmenter

    tasks = {MaskedAutoencoder: "pretrain", Classifier: "classify", PartSegmenter: "segment"}
    return next(
        (task for base, task in tasks.items() if isinstance(target, type) and issubclass(target, base)), "other"
    )


def _saved_name(checkpoint: dict) -> str | None:
    config = checkpoint.get("config")
    model = config.get("model") if isinstance(config, dict) else None
    return model.get("NAME") if isinstance(model, dict) else None


def _saved_keys(checkpoint: dict, name: str) -> dict:
    """Return the model keys of a checkpoint of ours: all where it is of this very model, else those of its encoder."""
    from models import MODELS
    from tools.checkpoint_model import model_of_checkpoint
    from utils.config.merge import to_dict

    saved = checkpoint["config"]["model"] if _saved_name(checkpoint) is not None else None
    if saved is None:
        return {}
    if saved["NAME"] == name:
        return dict(saved)
    model = MODELS.config({"NAME": name})
    return to_dict(model_of_checkpoint(model, saved, whole=False, recipe_keys=(), flag_keys=())[0])


def _check_task(where: str, checkpoint: dict, name: str) -> None:
    """Raise where a checkpoint of ours was trained for a task that the model does not start from."""
    from models import MODELS
    from utils.errors import UserError

    saved = _saved_name(checkpoint)
    if saved not in MODELS:
        return
    task, wanted = (_task(MODELS.entry(each).target) for each in (saved, name))
    if task not in (wanted, "pretrain"):
        names = {registered: short for short, registered in _registered().items()}
        raise UserError(
            f"{where}: is a checkpoint of {names.get(saved, saved)}, and {names.get(name, name)} is a model to {wanted}; "
            "build that model, or give a checkpoint of pre-training"
        )
