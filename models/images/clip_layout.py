"""CLIP's published names: the image tower in timm's names, and the whole of CLIP as it stands inside published I2P-MAE checkpoints.

OpenAI's archive and the checkpoints call the same tensors by the same names; the checkpoints put `clip_model.` before them.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from utils.errors import UserError

PREFIX = "clip_model."
# SHA-256 of OpenAI's TorchScript archives.
ARCHIVES = {
    "5806e77cd80f8b59890b7e101eabd078d9fb84e6937f9e85e4ecb61988df416f": "ViT-B-16.pt",
}
# Buffers of the archive that are no weights.
SETTINGS = ("input_resolution", "context_length", "vocab_size")

_OUTER = {
    "class_embedding": "cls_token",
    "positional_embedding": "pos_embed",
    "conv1.weight": "patch_embed.proj.weight",
    "ln_pre.weight": "norm_pre.weight",
    "ln_pre.bias": "norm_pre.bias",
    "ln_post.weight": "norm.weight",
    "ln_post.bias": "norm.bias",
    "proj": "head.weight",
}
_INNER = {
    "attn.in_proj_weight": "attn.qkv.weight",
    "attn.in_proj_bias": "attn.qkv.bias",
    "attn.out_proj.weight": "attn.proj.weight",
    "attn.out_proj.bias": "attn.proj.bias",
    "ln_1.weight": "norm1.weight",
    "ln_1.bias": "norm1.bias",
    "mlp.c_fc.weight": "mlp.fc1.weight",
    "mlp.c_fc.bias": "mlp.fc1.bias",
    "mlp.c_proj.weight": "mlp.fc2.weight",
    "mlp.c_proj.bias": "mlp.fc2.bias",
    "ln_2.weight": "norm2.weight",
    "ln_2.bias": "norm2.bias",
}
_VISUAL = ("class_embedding", "positional_embedding", "proj", "conv1.weight", "ln_pre.weight", "ln_pre.bias")
_TEXT_FIRST = ("positional_embedding", "text_projection", "logit_scale")
_TEXT_LAST = ("token_embedding.weight", "ln_final.weight", "ln_final.bias")


def find_clip(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return CLIP's tensors in a state dict, of a published checkpoint or of CLIP itself, without prefix; empty if there are none."""
    inside = {key.removeprefix(PREFIX): value for key, value in state.items() if key.startswith(PREFIX)}
    found = inside or dict(state)
    return {key: value for key, value in found.items() if key not in SETTINGS} if "visual.conv1.weight" in found else {}


def to_timm(clip: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename the image tower of CLIP as timm calls it.

    timm's projection has a bias where CLIP has none: it is zero.
    """
    tower = {}
    for key, value in clip.items():
        name = key.removeprefix("visual.")
        if name == key:
            continue  # the text tower
        if name.startswith("transformer.resblocks."):
            block, _, inner = name.removeprefix("transformer.resblocks.").partition(".")
            tower[f"blocks.{block}.{_INNER[inner]}"] = value
        else:
            tower[_OUTER[name]] = value
    tower["cls_token"] = tower["cls_token"].view(1, 1, -1)
    tower["pos_embed"] = tower["pos_embed"].unsqueeze(0)
    tower["head.weight"] = tower["head.weight"].t().contiguous()
    tower["head.bias"] = tower["head.weight"].new_zeros(len(tower["head.weight"]))
    return tower


def with_clip(weights: Mapping[str, Tensor], clip: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the state dict of a published I2P-MAE checkpoint: our weights, then the whole of CLIP, in the published order and dtypes.

    Args:
        weights: of the pre-training model.
        clip: CLIP's tensors with both towers, see `find_clip`.

    Raises:
        UserError: CLIP is incomplete; image towers from a hub have no text tower.
    """
    order = clip_keys(clip)
    lacking = [key for key in order if key not in clip]
    if lacking:
        raise UserError(
            f"CLIP: lacks {len(lacking)} tensors of the published layout, first {', '.join(lacking[:3])}; published checkpoints hold "
            f"the text tower too: give OpenAI's {next(iter(ARCHIVES.values()))} or a published I2P-MAE checkpoint"
        )
    return {**weights, **{PREFIX + key: clip[key].to(_published_dtype(key)) for key in order}}


def clip_keys(clip: Mapping[str, Tensor]) -> list[str]:
    """Return the names of CLIP's tensors in the published order, for as many blocks as the towers in `clip` have."""

    def blocks(tower: str) -> list[str]:
        numbers = {int(key.removeprefix(tower).split(".")[0]) for key in clip if key.startswith(tower)}
        return [f"{tower}{block}.{inner}" for block in range(max(numbers, default=0) + 1) for inner in _INNER]

    visual = [f"visual.{name}" for name in _VISUAL]
    visual += [*blocks("visual.transformer.resblocks."), "visual.ln_post.weight", "visual.ln_post.bias"]
    return [*_TEXT_FIRST, *visual, *blocks("transformer.resblocks."), *_TEXT_LAST]


def _published_dtype(key: str) -> torch.dtype:
    """Return the dtype on CUDA: convolutions, linear and attention layers and projections in half precision, norms and embeddings not."""
    halved = (".attn.", ".mlp.", "conv1.", "visual.proj", "text_projection")
    return torch.float16 if any(mark in key for mark in halved) else torch.float32
