"""Deep visual prompts: learned tokens in front of those of every block (Jia et al. 2022, arXiv 2203.12119, VPT-deep).

Shapes: `B` batch, `L` tokens, `C` channels, `m` prompts.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.layers.drop import Dropout
from models.layers.transformer import Block, Stack
from models.tuning.base import Tuning
from models.tuning.config import TuneConfig

NAME = "prompt"


def prepend(args: tuple, prompts: Tensor) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Put prompts (B, m, C) in front of the tokens of a block; every token attends to them, and they to every token.

    Args:
        args: what the block is called with: tokens (B, L, C), and `valid` and `attend` as in `Attention`.
    """
    x, valid, attend = (*args, None, None)[:3]
    count = prompts.shape[1]
    x = torch.cat([prompts.to(x.dtype), x], dim=1)
    valid = None if valid is None else F.pad(valid, (count, 0), value=True)
    attend = None if attend is None else F.pad(attend, (count, 0, count, 0), value=True)
    return x, valid, attend


class Prompts(nn.Module):
    """The prompts of one block, drawn from Xavier's uniform distribution; they have no position."""

    def __init__(self, width: int, keys: TuneConfig):
        super().__init__()
        bound = math.sqrt(6 / (2 * width))
        self.tokens = nn.Parameter(torch.empty(1, keys.prompts, width).uniform_(-bound, bound))
        self.drop = Dropout(keys.dropout)

    def forward(self, batch: int) -> Tensor:
        """Return the prompts of a batch (B, m, C)."""
        return self.drop(self.tokens.expand(batch, -1, -1))


def add_prompts(block: Block, args: tuple) -> tuple:
    """Call a block with its prompts in front."""
    return prepend(args, block.get_submodule(NAME)(len(args[0])))


def drop_prompts(block: Block, args: tuple, output: Tensor) -> Tensor:
    """Leave out what a block made of its prompts: the next one has its own."""
    return output[:, block.get_submodule(NAME).tokens.shape[1] :]


class PromptTuning(Tuning):
    """Give every block prompts of its own."""

    def insert(self, stack: Stack) -> None:
        """Attach prompts to each block."""
        for block in stack.blocks.blocks:
            block.add_module(NAME, Prompts(block.norm1.normalized_shape[0], self.keys))
            block.register_forward_pre_hook(add_prompts)
            block.register_forward_hook(drop_prompts)
