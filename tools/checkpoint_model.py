"""Checkpoints bring their model: what their own configuration says of it stands over the recipe."""

from collections.abc import Collection, Mapping
from typing import Any

from models import MODELS
from utils.config.merge import to_dict
from utils.errors import UserError

# What tells a task and not the encoder: the recipe says it, although encoders of pre-training have such keys too.
TASK_KEYS = ("NAME", "drop_path_rate", "legacy", "tune")
# How clouds are grouped. No weight depends on it, and published recipes of one encoder differ in it: the checkpoint's counts where it is
# not the published one of its method, which recipes are made for, and the recipe does not say its own.
GROUPING = ("num_group", "num_groups", "group_size", "group_sizes", "local_radius")
INNER = "transformer_config"  # keys of the encoder, in models of pre-training of one scale


def model_of_checkpoint(
    model: Any, saved: Any, *, whole: bool, recipe_keys: Collection[str], flag_keys: Collection[str]
) -> tuple[Any, str]:
    """Return the configuration of a model as a checkpoint has it, and one line that says what differs from the recipe, or "".

    Args:
        model: dataclass of the model, as the recipe and the flags say.
        saved: configuration of the model in the checkpoint, a mapping; None, or what is none of ours, changes nothing.
        whole: the checkpoint is to be evaluated: a model of the same NAME is taken as it was trained. Else only its encoder.
        recipe_keys: keys of the model that the recipe itself has.
        flag_keys: keys that `--set` has; these stand.

    Raises:
        UserError: the encoder of the checkpoint cannot be one of this model.
    """
    trained = _trained(saved)
    if trained is None or not _fits(model, trained):
        return model, ""
    tree, theirs = to_dict(model), to_dict(trained)
    if whole and model.NAME == trained.NAME:
        found = _leaves(theirs)
    else:
        task_keys = (*TASK_KEYS, *getattr(model, "task_keys", ()))
        found = _encoder(theirs, to_dict(type(trained)()), recipe_keys, _leaves(tree), task_keys)
    own = _leaves(tree)
    changed, kept = {}, []
    for key, value in found.items():
        if key not in own or own[key][1] == value[1] or key in TASK_KEYS[:1]:
            continue
        if key in flag_keys:
            kept.append(key)
            continue
        holder = tree
        for step in own[key][0]:
            holder = holder[step]
        holder[key] = changed[key] = value[1]
    if "taps" in tree and "depth" in changed and "taps" not in flag_keys:
        tree["taps"] = changed["taps"] = _spread(len(tree["taps"]), tree["depth"])
    parts = [f"{key} {value}" for key, value in changed.items()]
    lines = [f"its own configuration says {', '.join(parts)}; --set model.KEY=VALUE changes that"] if parts else []
    lines += [f"--set stands over its own configuration for {', '.join(kept)}"] if kept else []
    return (MODELS.config(tree, "model of the checkpoint") if changed else model), "; ".join(lines)


def _trained(saved: Any) -> Any:
    """Return the dataclass of a saved configuration, or None where it is not one of a model that is known."""
    if not isinstance(saved, Mapping) or saved.get("NAME") not in MODELS:
        return None
    try:
        return MODELS.config(saved)
    except UserError:  # of another version: the recipe says what is built
        return None


def _fits(model: Any, trained: Any) -> bool:
    """Say whether both are of one method, or of one whose encoder is the same: such have the same keys."""
    own, theirs = _leaves(to_dict(model)), _leaves(to_dict(trained))
    widths = {"encoder_dims", "trans_dim"}
    return widths & set(own) == widths & set(theirs)


def _encoder(
    theirs: dict, published: dict, recipe_keys: Collection[str], own: Mapping, task_keys: Collection[str]
) -> dict[str, tuple]:
    usual = _leaves(published)
    found = {}
    for key, value in _leaves(theirs).items():
        if key in task_keys or key not in own:
            continue
        if key in GROUPING and (key in recipe_keys or usual.get(key, (None, None))[1] == value[1]):
            continue
        found[key] = value
    return found


def _leaves(tree: Mapping) -> dict[str, tuple[tuple[str, ...], Any]]:
    """Return key -> (where it is, value) of a model's own keys and those of its encoder."""
    found = {key: ((), value) for key, value in tree.items() if key != INNER}
    found |= {key: ((INNER,), value) for key, value in (tree.get(INNER) or {}).items()}
    return found


def _spread(count: int, depth: int) -> list[int]:
    """Return up to `count` blocks of `depth`, evenly spaced, the last one among them."""
    return sorted({(number + 1) * depth // count - 1 for number in range(count) if (number + 1) * depth >= count})
