"""A checkpoint in the published layout, or as a safetensors file."""

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from models import MODELS, build_model, load_weights
from models.base import MaskedAutoencoder
from models.images.clip_layout import find_clip, with_clip
from models.images.weights import read_weights
from models.tuning import FROZEN
from models.tuning.files import is_tuned, tuned_keys
from models.weights import method_of, state_dict_of
from utils.checkpoints import check_weights
from utils.errors import UserError
from utils.files import read_checkpoint, save_checkpoint, save_tensors
from utils.provenance import recorded

PRE_TRAINED_I2P = "rec_head_3d."  # begins keys that only a pre-trained I2P-MAE has
NAME = "vit_base_patch16_clip_quickgelu_224.openai"  # where a missing file is to be had


def export(ckpts: str, out: Path, *, clip: str | None = None) -> dict[str, Tensor]:
    """Write the checkpoint `ckpts`, with the CLIP of the file `clip` inside if one is given, to `out`; returns the weights.

    Raises:
        UserError: a file cannot be read, a pre-trained I2P-MAE comes without a whole CLIP or another checkpoint with one.
    """
    saved = read_checkpoint(ckpts)
    weights = _whole(ckpts, saved, published=True)
    holds_clip = any(key.startswith(PRE_TRAINED_I2P) for key in weights)
    if clip is None and holds_clip:
        raise UserError(
            f"{ckpts}: the published layout of I2P-MAE holds CLIP; give --clip, OpenAI's ViT-B-16.pt or a published checkpoint"
        )
    if clip is not None:
        if not holds_clip:
            raise UserError(
                f"{ckpts}: is no I2P-MAE pre-training checkpoint, whose layout holds CLIP; leave out --clip"
            )
        towers = find_clip(read_weights(clip, name=NAME)[0])
        if not towers:
            raise UserError(f"{clip}: holds no CLIP; give OpenAI's ViT-B-16.pt or a published I2P-MAE checkpoint")
        weights = with_clip(weights, towers)
    kept = {key: saved[key] for key in ("epoch", "metrics", "best_metrics") if key in saved}
    save_checkpoint(out, {"base_model": {f"module.{key}": value for key, value in weights.items()}, **kept})
    return weights


def export_tensors(ckpts: str, out: Path, *, half: bool = False) -> dict[str, Tensor]:
    """Write the weights of a checkpoint, and what it says of them, as a safetensors file; returns the weights.

    Args:
        half: store matrices in half precision.

    Raises:
        UserError: the checkpoint cannot be read or used, a value is too large for half precision, or the file cannot be written.
    """
    saved = read_checkpoint(ckpts)
    weights = _whole(ckpts, saved, published=False)
    check_weights(ckpts, weights, list(weights))
    origin = saved.get("provenance") or recorded(Path(ckpts).parent)
    save_tensors(out, weights, {**saved, **({"provenance": origin} if origin else {})}, half=half)
    return weights


def _whole(ckpts: str, saved: Mapping, *, published: bool) -> dict[str, Tensor]:
    """Return the weights of a checkpoint; of one that tuning trained with those of its base.

    Args:
        published: updates of LoRA are merged into the weights; other inserted parts are an error, as no published program has them.
    """
    if not is_tuned(saved):
        return state_dict_of(saved)
    keys = tuned_keys(ckpts, saved)
    config = saved["config"]["model"]
    if published:
        if keys.kind not in (*FROZEN, "lora"):
            raise UserError(
                f"{ckpts}: was tuned by {keys.kind}, and published programs have no place for what that inserts; "
                "name a .safetensors file with --out, which holds it whole"
            )
        config = {**config, "tune": {"kind": "full"}}
    model = build_model(config)
    load_weights(model, ckpts)
    return model.state_dict()


def lacking(weights: Mapping[str, Tensor]) -> list[str]:
    """Return prefixes of keys that a published pre-training checkpoint of this method holds and these weights do not."""
    if not any("MAE_decoder" in key or key.startswith("h_decoder.") for key in weights):
        return []  # a classifier: the published one holds what ours does
    method = method_of({"base_model": weights})
    ignored = [
        set(target.ignored_keys)
        for target in MODELS.targets()
        if issubclass(target, MaskedAutoencoder) and target.method == method
    ]
    # What only one of several models ignores is of another task.
    prefixes = set.intersection(*ignored) if ignored else set()
    return sorted(prefix for prefix in prefixes if not any(key.startswith(prefix) for key in weights))
