"""DAPT: adapters whose scale every token sets for itself, and prompts made of what they add (Zhou et al. 2024, arXiv 2403.01439).

Shapes: `B` batch, `L` tokens, `C` channels, `r` the width of an adapter.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.layers.transformer import MLP, Block, Stack
from models.tuning.base import Tuning, attach
from models.tuning.config import TuneConfig
from models.tuning.prompts import prepend

NAME, TRANSFORM = "adapter", "transform"
TRANSFORMED = ("norm1", "attn.qkv", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2")


class DynamicAdapter(nn.Module):
    """ReLU(x w_s) * Up(ReLU(Down(x))): the first factor is one number a token; Up is zero at the start."""

    def __init__(self, width: int, keys: TuneConfig):
        super().__init__()
        self.down, self.up = nn.Linear(width, keys.rank), nn.Linear(keys.rank, width)
        self.significance = nn.Linear(width, 1)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)
        self.factor = keys.scale
        self.relay: Relay | None = None

    def forward(self, x: Tensor) -> Tensor:
        """Map the input of an MLP (B, L, C) to what is added to its output."""
        added = self.significance(x).relu() * self.up(self.down(x).relu()) * self.factor
        if self.relay is not None:
            self.relay.prompt = F.gelu(added).mean(1, keepdim=True)
        return added


def add_dynamic(mlp: MLP, args: tuple[Tensor], output: Tensor) -> Tensor:
    """Add what the adapter makes of the input of an MLP to its output."""
    return output + mlp.get_submodule(NAME)(args[0])


class Relay:
    """Hand the internal prompt (B, 1, C), the mean of what a block's adapter added, to the next block of a stack."""

    def __init__(self):
        self.prompt: Tensor | None = None

    def enter(self, block: Block, args: tuple) -> tuple:
        """Call a block with the prompt of the one before it in front."""
        return prepend(args, self.prompt)

    def leave(self, block: Block, args: tuple, output: Tensor) -> Tensor:
        """Leave out what the block made of it."""
        return output[:, 1:]


class ScaleShift(nn.Module):
    """x * gamma + beta for each channel, the identity at the start (Lian et al. 2022, arXiv 2210.08823)."""

    def __init__(self, width: int):
        super().__init__()
        self.gamma, self.beta = nn.Parameter(torch.ones(width)), nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., C) to the same shape."""
        return x * self.gamma.to(x.dtype) + self.beta.to(x.dtype)


def scale_and_shift(layer: nn.Module, args: tuple, output: Tensor) -> Tensor:
    """Scale and shift what a layer returns."""
    return layer.get_submodule(TRANSFORM)(output)


class DynamicTuning(Tuning):
    """Put an adapter next to every MLP, pass internal prompts on, and scale and shift what each layer gives."""

    def insert(self, stack: Stack) -> None:
        """Attach these parts to each block."""
        relay = Relay() if self.keys.internal_prompts else None
        for number, block in enumerate(stack.blocks.blocks):
            adapter = DynamicAdapter(block.norm1.normalized_shape[0], self.keys)
            adapter.relay = relay
            attach(block.mlp, NAME, adapter, add_dynamic)
            if relay is not None and number > 0:
                block.register_forward_pre_hook(relay.enter)
                block.register_forward_hook(relay.leave)
            for path in TRANSFORMED if self.keys.transform else ():
                layer = block.get_submodule(path)
                width = layer.out_features if isinstance(layer, nn.Linear) else layer.normalized_shape[0]
                attach(layer, TRANSFORM, ScaleShift(width), scale_and_shift)
