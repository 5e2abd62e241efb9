"""Models with weights for other programs; an installation has this package as `m2ae`, and `m2ae.transforms` with it.

>>> model = m2ae.create_model("point_m2ae.pretrain", weights="mini")
>>> points = m2ae.transforms.for_checkpoint("mini", model="point_m2ae.pretrain")(clouds, up="z")
>>> with torch.inference_mode():
...     features = model.encode(points)  # (B, N, 3) -> (B, C)
...     tokens = model.patch_tokens(points)  # (B, G, C), one a coarsest group
...     clouds = model.reconstruct(points).clouds  # a part hidden and rebuilt
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from utils import __version__

if TYPE_CHECKING:
    from models.base import PointModel

__all__ = ["__version__", "create_model", "list_models", "transforms"]


def list_models() -> list[str]:
    """Return the names that `create_model` takes: method, task and, where a method has several models for it, the data set."""
    from api.names import registered

    return sorted(registered())


def create_model(
    name: str, weights: str | Path | None = None, *, base: str | Path | None = None, **overrides: Any
) -> "PointModel":
    """Build a model in evaluation mode.

    Args:
        name: one of `list_models()`, or the `NAME` of a recipe.
        weights: path of a checkpoint, ours or a published one; "published", or a name that `m2ae weights list` shows; None = random
            weights. A checkpoint of ours says its size; a classifier or segmenter takes the encoder of a pre-training one, and its
            head starts untrained.
        base: of weights that hold only what tuning trained: where their base is, if not where it was.
        overrides: keys of the model, over those of the checkpoint and the published ones, for example `mask_ratio=0.6`.

    Raises:
        ValueError: the name or a key is unknown, with close ones; the checkpoint cannot be read, or is of another method or task.
    """
    from api.names import check_task, find, saved_name
    from api.published import locate
    from models import build_model, load_weights
    from utils.config.load import read_recipe
    from utils.files import read_checkpoint

    short, registered = find(name)
    if weights is None:
        untrained: PointModel = build_model({"NAME": registered, **overrides})
        return untrained.eval()
    path, recipe = locate(weights, short)
    checkpoint = read_checkpoint(path)
    check_task(str(path), checkpoint, registered)
    keys: dict[str, Any] = {}
    if saved_name(checkpoint) is not None:
        keys = _keys_for(registered, checkpoint["config"]["model"])
    elif recipe is not None:
        keys = _keys_for(registered, read_recipe(recipe)["model"])
    model: PointModel = build_model({**keys, "NAME": registered, **overrides})
    load_weights(model, path, base=base)
    return model.eval()


def _keys_for(name: str, saved: dict[str, Any]) -> dict[str, Any]:
    """Return the keys of a model that takes weights of the configuration `saved`: all of this very model, else those of its encoder."""
    from models import MODELS
    from tools.checkpoint_model import model_of_checkpoint
    from utils.config.merge import to_dict

    if saved["NAME"] == name:
        return dict(saved)
    model = MODELS.config({"NAME": name})
    return dict(to_dict(model_of_checkpoint(model, saved, whole=False, recipe_keys=(), flag_keys=())[0]))


def __getattr__(name: str) -> Any:
    """Import `transforms` when it is first asked for: it needs PyTorch, and the command line answers without."""
    if name == "transforms":
        from importlib import import_module

        return import_module(f"{__name__}.transforms")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
