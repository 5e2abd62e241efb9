"""The weights in a checkpoint, whoever wrote it: where they are, what their keys are wrapped in, whether they can be used."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from utils.errors import UserError

# Where programs keep weights, ours first; EMA weights only where there are no others.
CONTAINERS = (
    "base_model", "model_state_dict", "state_dict", "model", "model_state", "net", "network", "module", "weights", "params",
    "state_dict_ema", "model_ema", "ema", "ema_state_dict",
)  # fmt: skip
WRAPPERS = (
    "module.",
    "_orig_mod.",
    "base_model.",
)  # in front of keys: several devices, torch.compile, published programs
LIGHTNING = ("model.", "net.", "network.")  # in front of all keys, by the attribute of a Lightning module
DEPTH = 3  # containers in each other
_INNER = re.compile(r"(?<![^.])(?:module|_orig_mod)\.")  # whole names, wherever they are: not the end of "mlp_module."


def find_weights(checkpoint: Mapping) -> dict[str, Tensor]:
    """Return the weights of a checkpoint or bare state dict, without what their keys are wrapped in.

    Raises:
        UserError: it holds no tensors, or some of a kind that no model has.
    """
    found = _tensors(checkpoint)
    node, path = checkpoint, []
    for _ in range(DEPTH):
        inner = next((name for name in CONTAINERS if isinstance(node.get(name), Mapping) and _holds(node[name])), None)
        if inner is None:
            break
        node, path = node[inner], [*path, inner]
        found = _tensors(node)
    if not found:
        keys = ", ".join(str(key) for key in list(checkpoint)[:8]) or "none"
        raise UserError(
            f"checkpoint: holds no tensors at its top level or under {', '.join(CONTAINERS[:6])} ...; its keys are {keys}. Is it a model "
            "checkpoint?"
        )
    for key, value in found.items():
        if value.layout != torch.strided or value.is_meta or value.is_quantized:
            raise UserError(f"checkpoint: the tensor {key} is sparse, quantised or empty; save dense weights")
    return _unwrapped(found)


def check_weights(where: str, weights: Mapping[str, Tensor], keys: Sequence[str]) -> None:
    """Refuse weights that no training leaves behind.

    Raises:
        UserError: a tensor is not finite, or a running variance is negative; names it.
    """
    for key in keys:
        value = weights[key]
        if value.is_floating_point() and not torch.isfinite(value).all():
            raise UserError(
                f"{where}: the tensor {key} holds NaN or infinities; the training that wrote it failed: use an earlier checkpoint, or copy "
                "it again"
            )
        if key.endswith("running_var") and value.numel() and value.min() < 0:
            raise UserError(f"{where}: the variance {key} is negative; the file is damaged: copy or download it again")


def _holds(node: Mapping) -> bool:
    """Say whether there are tensors in a mapping, or one level below it."""
    return bool(_tensors(node)) or any(isinstance(value, Mapping) and _tensors(value) for value in node.values())


def _tensors(node: Mapping) -> dict[str, Tensor]:
    found = {key: _tensor(value) for key, value in node.items() if isinstance(key, str)}
    return {key: value for key, value in found.items() if value is not None}


def _tensor(value: Any) -> Tensor | None:
    if isinstance(value, Tensor):
        return value
    if isinstance(value, np.ndarray) and value.dtype.kind in "fiub":
        return torch.from_numpy(np.array(value))
    return None


def _unwrapped(found: dict[str, Tensor]) -> dict[str, Tensor]:
    """Strip wrappers from keys until nothing changes; `module.` also inside of them, as published programs do."""
    while True:
        keys = {key: _strip(key) for key in found}
        shared = next((prefix for prefix in LIGHTNING if all(key.startswith(prefix) for key in keys.values())), "")
        keys = {key: new.removeprefix(shared) for key, new in keys.items()}
        if all(key == new for key, new in keys.items()) or len(set(keys.values())) < len(keys):
            return found
        found = {keys[key]: value for key, value in found.items()}


def _strip(key: str) -> str:
    key = _INNER.sub("", key)
    return next((key.removeprefix(prefix) for prefix in WRAPPERS if key.startswith(prefix)), key)
