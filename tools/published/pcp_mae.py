"""What PCP-MAE's own fine-tuning files leave to its program: they repeat the name of Point-MAE's classifier."""

from collections.abc import Mapping
from pathlib import Path

from tools.published.keys import OLD_NAMES
from tools.published.paths import below_cfgs
from utils.config.load import read_recipe
from utils.config.yaml import read_yaml
from utils.errors import UserError

METHOD, PUBLISHED_NAME = "pcp-mae", "PointTransformer"
# Published model.type -> settings. A frozen encoder is in training mode there.
TYPES = {
    "full": (),
    "mlp3": ("transfer=mlp3", "frozen_mode=training"),
    "linear": ("model.head=linear", "transfer=linear", "frozen_mode=training"),
}


def settings(file: Path, method: str | None) -> list[str]:
    """Return "key.path=value" each that a file of PCP-MAE's needs here; none for recipes and for files of other methods.

    Args:
        method: what `--method` says, or the checkpoint; the file does not.

    Raises:
        UserError: a `model.type` that its program does not know.
    """
    if method != METHOD or below_cfgs(file) is not None:
        return []
    tree = read_recipe(file, OLD_NAMES)
    model = tree.get("model") or {}
    if model.get("NAME") != PUBLISHED_NAME:
        return []
    kind = model.get("type", "full")
    if kind not in TYPES:
        raise UserError(f"{file}: model.type: is {kind!r}; choose one of {', '.join(TYPES)}")
    shifted = _name((tree.get("dataset") or {}).get("train") or {}) == "ModelNet"  # as published, by the exact name
    augmentation = [] if "augmentation" in tree else [f"augmentation={'scale_translate' if shifted else 'rotate'}"]
    return ["model.NAME=PCP_MAE_Classifier", "optimizer.head_scale=10", *augmentation, *TYPES[kind]]


def _name(entry: Mapping) -> str | None:
    """Return the NAME of a data-set entry, its own or that of its base."""
    base = entry.get("_base_") or {}
    return entry.get("NAME") or (base if isinstance(base, Mapping) else read_yaml(base)).get("NAME")
