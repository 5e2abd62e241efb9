"""Teachers of GeoMask3D: one that averages the student, one that was pre-trained and stays as it is.

Neither is a part of the student: they have no gradient and are in no optimizer.

Shapes: `B` batch, `G` groups, `K` points per patch, `C` channels, `T` tokens.
"""

import hashlib
from copy import deepcopy
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from models.layers.group import Pyramid
from models.registry import MODELS
from models.weights import load_weights, method_of
from utils.config.merge import to_dict
from utils.errors import UserError
from utils.files import read_checkpoint


class EmaTeacher(nn.Module):
    """A running average of a model, parameters and buffers alike; always in evaluation mode.

    Attributes:
        module: the averaged model.
        notes: tensors by name that belong to the run, saved and restored with the average.
    """

    def __init__(self, model: nn.Module):
        super().__init__()
        self.module = deepcopy(model).requires_grad_(False)
        self.notes: dict[str, Tensor] = {}
        self.train(False)

    def train(self, mode: bool = True) -> "EmaTeacher":
        """Stay in evaluation mode."""
        return super().train(False)

    @torch.no_grad()
    def update(self, model: nn.Module, decay: float) -> None:
        """Move towards a model: average = decay * average + (1 - decay) * model; counters are copied."""
        pairs = list(zip(_tensors(self.module), _tensors(model), strict=True))
        averaged = [(own, new) for own, new in pairs if own.is_floating_point()]
        torch._foreach_lerp_([own for own, _ in averaged], [new for _, new in averaged], 1 - decay)
        for own, new in pairs:
            if not own.is_floating_point():
                own.copy_(new)

    def get_extra_state(self) -> dict[str, Tensor]:
        """Return what a state dict holds besides tensors."""
        return dict(self.notes)

    def set_extra_state(self, state: dict[str, Tensor]) -> None:
        """Restore what `get_extra_state` returned."""
        self.notes = dict(state)


def _tensors(model: nn.Module):
    return chain(model.parameters(), model.buffers())


class Complete(NamedTuple):
    """What a frozen teacher makes of a complete cloud, on the scale that is rebuilt."""

    features: Tensor  # (B, G, C)
    patches: Tensor  # (B, G, K, 3) relative to the centres


class FrozenTeacher:
    """A pre-trained model of the base method, for complete-to-partial distillation.

    Args:
        model: Point-MAE or Point-M2AE.
        sha256: of the file that its weights are from.
    """

    def __init__(self, model: nn.Module, sha256: str = ""):
        self.model = model.eval().requires_grad_(False)
        self.sha256 = sha256

    @torch.no_grad()
    def complete(self, pyramid: Pyramid) -> Complete:
        """Encode and decode the groups of complete clouds, nothing hidden."""
        features = self.model.complete_features(pyramid)  # (B, G, C)
        return Complete(features, self.rebuild(features, pyramid.centers[self.model.decoded_scale]))

    def rebuild(self, tokens: Tensor, centers: Tensor) -> Tensor:
        """Decode features of patches as points (..., K, 3) relative to the centres; differentiable in the features.

        Args:
            tokens: for Point-MAE (B, T, C), decoded together; for Point-M2AE (..., C), each on its own.
            centers: (..., 3).
        """
        return self.model.points_from(tokens, centers)


def load_teacher(path: str | None, base: Any, *, sha256: str | None = None) -> FrozenTeacher:
    """Read a pre-trained model of the base method and freeze it.

    Args:
        path: of its checkpoint, ours or a published one.
        base: the configuration that the base method has in the student. A checkpoint of ours says its own, which may differ where it
            does not matter; one without has these keys.
        sha256: the file must be this one.

    Raises:
        UserError: there is no file, it is another one, of another method, or it does not fit the student.
    """
    name = base.NAME
    if path is None:
        raise UserError(
            f"model.guidance.teacher: is missing; feature mode distils a pre-trained {name}: give its checkpoint with "
            "--set model.guidance.teacher=PATH, or choose model.guidance.mode=usual"
        )
    checkpoint = read_checkpoint(path)
    digest = hashlib.sha256(Path(path).read_bytes()).hexdigest()
    if sha256 is not None and digest != sha256:
        raise UserError(
            f"{path}: is not the teacher that this run began with (SHA-256 {digest[:12]}..., not {sha256[:12]}...); restore the file"
        )
    wanted, found = MODELS.entry(name, "teacher").target.method, method_of(checkpoint)
    if found != wanted:
        raise UserError(
            f"model.guidance.teacher: {path} is a checkpoint of {found or 'no known method'}; give one of {wanted}"
        )
    config = _own_config(checkpoint, base)
    _check_fit(path, config, base)
    model = MODELS.build(config)
    load_weights(model, checkpoint)
    return FrozenTeacher(model, digest)


def _own_config(checkpoint: dict, base: Any) -> Any:
    """Return the model's configuration of a pre-training checkpoint of ours, else `base`."""
    saved = checkpoint.get("config")
    saved = saved.get("model") if isinstance(saved, dict) else None
    if isinstance(saved, dict) and saved.get("NAME") == base.NAME:
        return MODELS.config(dict(saved), "teacher")
    return base


# What teacher and student must have in common: the patches, and the width of the features.
_SHARED = ("num_group", "group_size", "num_groups", "group_sizes", "decoder_dims", "transformer_config.trans_dim")


def _check_fit(path: str, config: Any, base: Any) -> None:
    teacher, student = to_dict(config), to_dict(base)
    for key in _SHARED:
        values = []
        for tree in (teacher, student):
            for part in key.split("."):
                tree = tree.get(part) if isinstance(tree, dict) else None
            values.append(tree)
        if values[0] != values[1]:
            raise UserError(
                f"model.guidance.teacher: {path} was trained with {key} {values[0]}, the student has {values[1]}; "
                "use a teacher of the same patches and width"
            )
