"""Weights that torch-pointcloud converted, brought back to the published layout.

That package builds the same models from the multi-layer perceptrons of PyTorch Geometric: `lins.0` and `norms.0.module` are layers of a
published sequence, and kernels of size 1 lack their last dimension. Where features of two sources are joined, it puts the interpolated
ones first and the published code puts them last, so columns change places. With that, its models (0.0.18) and ours give the same outputs
on random weights, to 6e-7.
"""

import re
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from utils.errors import UserError

MARK = re.compile(r"\.lins\.\d+\.")  # keys of that layout and of no published one
_CONVOLUTION = "convolution"  # the weight gets its last dimension back
_SKIP = "skip"  # and the last columns, those of the points themselves, come first
_LINEAR = "linear"
_PARTS = {"local_mlp": "first_conv", "global_mlp": "second_conv"}
_POSITION = {0: 0, 1: 2}
_PATCH = {0: 0, 1: 3}
_HEAD = {0: 0, 1: 4, 2: 8}
# Key of a layer -> (key in the published layout, kind of its weight). The first that fits counts. `.module` is missing where it was
# taken for the wrapper that training on several devices adds.
_RULES: tuple[tuple[str, Callable[[re.Match], str], str], ...] = (
    (r"(.*)(local_mlp|global_mlp)\.lins\.(\d)", lambda m: f"{m[1]}{_PARTS[m[2]]}.{_PATCH[int(m[3])]}", _CONVOLUTION),
    (r"(.*)(local_mlp|global_mlp)\.norms\.0(?:\.module)?", lambda m: f"{m[1]}{_PARTS[m[2]]}.1", _LINEAR),
    (r"(.*pos_embed(?:s\.\d+)?)\.lins\.(\d)", lambda m: f"{m[1]}.{_POSITION[int(m[2])]}", _LINEAR),
    (r"(.*blocks\.\d+\.mlp)\.lins\.(\d)", lambda m: f"{m[1]}.fc{int(m[2]) + 1}", _LINEAR),
    (r"(token_prop\.\d+)\.fp\.mlp\.lins\.0", lambda m: f"{m[1]}.fuse.net.0", _SKIP),
    (r"(token_prop\.\d+)\.fp\.mlp\.norms\.0(?:\.module)?", lambda m: f"{m[1]}.fuse.net.1", _LINEAR),
    (
        r"(token_prop\.\d+\.extraction)\.(\d+\.net\d)\.lins\.0",
        lambda m: f"{m[1]}.operation.{m[2]}.0",
        _CONVOLUTION,
    ),
    (
        r"(token_prop\.\d+\.extraction)\.(\d+\.net\d)\.norms\.0(?:\.module)?",
        lambda m: f"{m[1]}.operation.{m[2]}.1",
        _LINEAR,
    ),
    (r"(propagations\.\d+|propagation_\d+)\.mlp\.lins\.0", lambda m: f"{m[1]}.mlp_convs.0", _SKIP),
    (
        r"(propagations\.\d+|propagation_\d+)\.mlp\.lins\.(\d)",
        lambda m: f"{m[1]}.mlp_convs.{m[2]}",
        _CONVOLUTION,
    ),
    (
        r"(propagations\.\d+|propagation_\d+)\.mlp\.norms\.(\d)(?:\.module)?",
        lambda m: f"{m[1]}.mlp_bns.{m[2]}",
        _LINEAR,
    ),
    (r"label_conv\.lins\.0", lambda m: "label_conv.0", _CONVOLUTION),
    (r"label_conv\.norms\.0(?:\.module)?", lambda m: "label_conv.1", _LINEAR),
    (r"increase_dim\.lins\.0", lambda m: "increase_dim.0", _CONVOLUTION),
    (r"rec_head", lambda m: "rec_head", _CONVOLUTION),
    (r"norm_f", lambda m: "norm", _LINEAR),
)
_CLASSIFIER = (
    (r"head\.lins\.(\d)", lambda m: f"cls_head_finetune.{_HEAD[int(m[1])]}", _LINEAR),
    (r"head\.norms\.(\d)(?:\.module)?", lambda m: f"cls_head_finetune.{_HEAD[int(m[1])] + 1}", _LINEAR),
)
_SEGMENTER = (
    (r"head\.lins\.(\d)", lambda m: f"convs{int(m[1]) + 1}", _CONVOLUTION),
    (r"head\.norms\.(\d)(?:\.module)?", lambda m: f"bns{int(m[1]) + 1}", _LINEAR),
)


def is_converted(keys: Mapping[str, Tensor]) -> bool:
    """Say whether weights have the layout of torch-pointcloud."""
    return any(MARK.search(key) for key in keys)


def published_layout(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return converted weights under the published keys.

    Raises:
        UserError: two keys lead to one, or a layer has no place in the published layout.
    """
    segments = any(key.startswith("label_conv.") for key in weights)
    rules = (*_RULES, *(_SEGMENTER if segments else _CLASSIFIER))
    found: dict[str, Tensor] = {}
    for key, value in weights.items():
        layer, _, name = key.rpartition(".")
        new, kind = _renamed(layer, rules)
        new = f"{new}.{name}" if new else name
        if new in found or MARK.search(f"{new}."):
            raise UserError(
                f"checkpoint: {key} of torch-pointcloud has no place in the published layout; is it another version?"
            )
        found[new] = _reshaped(value, layer, kind) if name == "weight" else value
    return found


def _renamed(layer: str, rules: tuple) -> tuple[str, str]:
    for pattern, name, kind in rules:
        if match := re.fullmatch(pattern, layer):
            return name(match), kind
    return layer, _LINEAR


def _reshaped(weight: Tensor, layer: str, kind: str) -> Tensor:
    if kind == _SKIP:
        own = weight.shape[0] if layer.startswith("token_prop") else 3  # channels of the finer tokens, or coordinates
        weight = torch.cat([weight[:, -own:], weight[:, :-own]], dim=1)
    return weight if kind == _LINEAR else weight.unsqueeze(-1).contiguous()
