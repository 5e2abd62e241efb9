"""LoRA: updates of low rank to linear layers (Hu et al. 2022, arXiv 2106.09685).

Shapes: `C` channels of the input, `D` of the output, `r` the rank.
"""

import math
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.layers.drop import Dropout
from models.layers.transformer import Stack
from models.tuning.base import Tuning, attach
from models.tuning.config import TuneConfig
from utils.errors import UserError

NAME = "lora"
PATHS = {"qkv": "attn.qkv", "proj": "attn.proj", "fc1": "mlp.fc1", "fc2": "mlp.fc2"}


class LowRank(nn.Module):
    """x A^T B^T * alpha / r, with A from Kaiming's uniform distribution and B zero at the start."""

    def __init__(self, linear: nn.Linear, keys: TuneConfig):
        super().__init__()
        self.A = nn.Parameter(torch.empty(keys.rank, linear.in_features))
        self.B = nn.Parameter(torch.zeros(linear.out_features, keys.rank))
        nn.init.kaiming_uniform_(self.A, a=math.sqrt(5))
        self.factor = keys.alpha / keys.rank
        self.drop = Dropout(keys.dropout)
        self.plain: Tensor | None = None  # the weight of the layer while the update is merged into it

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., C) to what is added to the layer's output, (..., D)."""
        return F.linear(F.linear(self.drop(x), self.A), self.B) * self.factor


def add_low_rank(linear: nn.Linear, args: tuple[Tensor], output: Tensor) -> Tensor:
    """Add the update of a layer to its output, unless it is in its weight."""
    part = linear.get_submodule(NAME)
    return output if part.plain is not None else output + part(args[0])


def update_of(A: Tensor, B: Tensor, factor: float) -> Tensor:
    """Return what is added to the weight (D, C) of a layer."""
    return (B @ A) * factor


class LoRA(Tuning):
    """Add an update of low rank to the linear layers `targets` of every block."""

    def insert(self, stack: Stack) -> None:
        """Attach an update to each target of each block."""
        for block in stack.blocks.blocks:
            for target in self.keys.targets:
                linear = block.get_submodule(PATHS[target])
                attach(linear, NAME, LowRank(linear, self.keys), add_low_rank)

    @torch.no_grad()
    def merge(self, model: nn.Module) -> None:
        """Put the updates into the weights, for a model that only predicts; `unmerge` restores these bit for bit."""
        for linear, part in layers_of(model):
            if part.plain is None:
                part.plain = linear.weight.detach().clone()
                linear.weight += update_of(part.A, part.B, part.factor)

    @torch.no_grad()
    def unmerge(self, model: nn.Module) -> None:
        """Take the updates out of the weights again."""
        for linear, part in layers_of(model):
            if part.plain is not None:
                linear.weight.copy_(part.plain)
                part.plain = None

    def saved_weights(self, model: nn.Module) -> dict[str, Tensor]:
        """Return what a checkpoint holds.

        Raises:
            UserError: the updates are merged.
        """
        if any(part.plain is not None for _, part in layers_of(model)):
            raise UserError("lora: updates that are merged into the weights are not saved; call unmerge before")
        return super().saved_weights(model)


def layers_of(model: nn.Module) -> list[tuple[nn.Linear, LowRank]]:
    """Return the layers of a model that have an update, each with it."""
    found = ((module, getattr(module, NAME, None)) for module in model.modules())
    return [(module, part) for module, part in found if isinstance(part, LowRank)]


def merged(weights: Mapping[str, Tensor], base: Mapping[str, Tensor], keys: TuneConfig) -> dict[str, Tensor]:
    """Return the weights of a checkpoint of LoRA with its updates merged into those of the base, for a model without them."""
    result = {key: value for key, value in weights.items() if f".{NAME}." not in key}
    for key in weights:
        layer, found, _ = key.partition(f".{NAME}.A")
        if found:
            update = update_of(weights[key], weights[f"{layer}.{NAME}.B"], keys.alpha / keys.rank)
            result[f"{layer}.weight"] = base[f"{layer}.weight"] + update
    return result
