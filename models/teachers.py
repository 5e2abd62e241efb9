"""Teachers: those that average the student, and one that was pre-trained and stays as it is. They have no gradient.

Shapes: `B` batch, `G` groups, `K` points per patch, `C` channels, `T` tokens.
"""

import hashlib
from copy import deepcopy
from itertools import chain
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from models.layers.group import Pyramid
from models.registry import MODELS
from models.weights import load_weights, method_of
from utils.config.merge import to_dict
from utils.errors import UserError
from utils.files import read_checkpoint

# Below them features have collapsed: nearly the same for all tokens, or along one direction.
LEAST_DEVIATION, LEAST_RANK = 0.02, 1.5


class EmaTeacher(nn.Module):
    """A running average of a model, parameters and buffers alike; always in evaluation mode.

    Class attributes:
        average_name: what the averaged model is called here.
    """

    average_name: ClassVar[str] = "module"

    def __init__(self, model: nn.Module):
        super().__init__()
        setattr(self, self.average_name, deepcopy(model).requires_grad_(False))
        self.train(False)

    @property
    def average(self) -> nn.Module:
        """The averaged model."""
        return getattr(self, self.average_name)

    def train(self, mode: bool = True) -> "EmaTeacher":
        """Stay in evaluation mode."""
        self.training = False
        self.average.train(False)
        return self

    @torch.no_grad()
    def update(self, model: nn.Module, decay: float) -> None:
        """Move towards a model: average = decay * average + (1 - decay) * model; counters are copied."""
        pairs = list(zip(_tensors(self.average), _tensors(model), strict=True))
        averaged = [(own, new) for own, new in pairs if own.is_floating_point()]
        torch._foreach_lerp_([own for own, _ in averaged], [new for _, new in averaged], 1 - decay)
        for own, new in pairs:
            if not own.is_floating_point():
                own.copy_(new)


class NotingTeacher(EmaTeacher):
    """An average with notes of the run.

    Attributes:
        notes: tensors by name, saved and restored with the average.
    """

    def __init__(self, model: nn.Module):
        super().__init__(model)
        self.notes: dict[str, Tensor] = {}

    def get_extra_state(self) -> dict[str, Tensor]:
        """Return what a state dict holds besides tensors."""
        return dict(self.notes)

    def set_extra_state(self, state: dict[str, Tensor]) -> None:
        """Restore what `get_extra_state` returned."""
        self.notes = dict(state)


def _tensors(model: nn.Module):
    return chain(model.parameters(), model.buffers())


class Spread(NamedTuple):
    """How much features differ from token to token; both fall where they collapse."""

    deviation: Tensor  # mean over the channels of the standard deviation over the tokens
    rank: Tensor  # of the covariance: (sum of eigenvalues)² / sum of their squares, 1 to C


@torch.no_grad()
def feature_spread(features: Tensor) -> Spread:
    """Measure how much features (..., C) spread over tokens."""
    rows = features.flatten(0, -2)
    rows = rows if rows.dtype == torch.float64 else rows.float()
    with torch.autocast(rows.device.type, enabled=False):
        centred = rows - rows.mean(0)
        covariance = centred.T @ centred / max(len(rows) - 1, 1)  # (C, C)
    variance = covariance.diagonal()
    rank = variance.sum().square() / covariance.square().sum().clamp_min(torch.finfo(rows.dtype).tiny)
    return Spread(variance.sqrt().mean(), rank)


def collapsed(deviation: float, rank: float) -> str | None:
    """Say that features have collapsed, where their spread, a mean over an epoch, tells so."""
    if deviation >= LEAST_DEVIATION and rank >= LEAST_RANK:
        return None
    return (
        f"the features of the teacher have collapsed: their standard deviation over tokens is {deviation:.2g} (a sound run stays above "
        f"{LEAST_DEVIATION}), the rank of their covariance {rank:.3g} (above {LEAST_RANK}). Lower the learning rate, raise the momentum of "
        "the teacher, or make targets and context overlap less"
    )


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
