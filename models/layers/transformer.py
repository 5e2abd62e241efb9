"""Pre-norm transformer blocks.

Shapes: `B` batch, `L` tokens, `C` channels.
"""

from collections.abc import Sequence
from itertools import islice
from typing import Any, NamedTuple

from torch import Tensor, nn

from models.layers.attention import Attention
from models.layers.drop import Dropout, DropPath
from models.layers.init import init_xavier


class MLP(nn.Module):
    """Two linear layers with an exact GELU between them; values drop out behind either while training."""

    def __init__(self, channels: int, hidden: int, *, dropout: float = 0.0):
        super().__init__()
        self.fc1 = nn.Linear(channels, hidden)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(hidden, channels)
        self.drop = Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, L, C): widen, activate, narrow."""
        return self.drop(self.fc2(self.drop(self.act(self.fc1(x)))))


class Block(nn.Module):
    """x + DropPath(Attention(LN(x))), then x + DropPath(MLP(LN(x))).

    Args:
        attention_first: create the attention, and list its parameters, before the second norm, as published checkpoints of Inter-MAE
            and GM3D do; those of Point-MAE and Point-M2AE list it last. The order of creation decides the random weights too.
        dropout: of what attention and MLP give.
        attention: further arguments of `Attention`.
    """

    def __init__(
        self,
        channels: int,
        num_heads: int,
        *,
        drop_path: float = 0.0,
        attention_first: bool = False,
        dropout: float = 0.0,
        **attention: Any,
    ):
        super().__init__()
        self.norm1 = nn.LayerNorm(channels)
        if attention_first:
            self.attn = Attention(channels, num_heads, dropout=dropout, **attention)
        self.drop_path = DropPath(drop_path)
        self.norm2 = nn.LayerNorm(channels)
        self.mlp = MLP(channels, 4 * channels, dropout=dropout)
        if not attention_first:
            self.attn = Attention(channels, num_heads, dropout=dropout, **attention)

    def forward(self, x: Tensor, valid: Tensor | None = None, attend: Tensor | None = None) -> Tensor:
        """Run (B, L, C); `valid` and `attend` as in `Attention`."""
        x = x + self.drop_path(self.attn(self.norm1(x), valid, attend))
        return x + self.drop_path(self.mlp(self.norm2(x)))


class Blocks(nn.Module):
    """A stack of blocks that adds the position before every one of them, to the running stream (Pang et al. 2022).

    Args:
        drop_paths: rate of each block.
        block: further arguments of `Block`.
    """

    def __init__(self, channels: int, num_heads: int, *, drop_paths: Sequence[float], **block: Any):
        super().__init__()
        self.blocks = nn.ModuleList(Block(channels, num_heads, drop_path=rate, **block) for rate in drop_paths)

    def forward(
        self,
        x: Tensor,
        position: Tensor,
        valid: Tensor | None = None,
        attend: Tensor | None = None,
        *,
        first: int = 0,
        stop: int | None = None,
    ) -> Tensor:
        """Run (B, L, C) with positions of the same shape through the blocks `first` to before `stop`; others as in `Attention`."""
        for block in islice(self.blocks, first, stop):
            x = block(x + position, valid, attend)
        return x


class Stack(NamedTuple):
    """Blocks of an encoder, and the module that turns the centres of their tokens, in the order of the tokens, into positions."""

    blocks: Blocks
    position: nn.Module


class DecoderBlocks(Blocks):
    """Blocks that start from Xavier's weights, and a final `norm`, which the caller applies to the tokens that it needs."""

    def __init__(
        self, channels: int, depth: int, num_heads: int, drop_path_rate: float, *, attention_first: bool = False
    ):
        rates = drop_path_rates(drop_path_rate, depth)
        super().__init__(channels, num_heads, drop_paths=rates, attention_first=attention_first)
        self.norm = nn.LayerNorm(channels)
        self.apply(init_xavier)


def drop_path_rates(rate: float, depth: int) -> list[float]:
    """Return `depth` rates that rise linearly from 0 to `rate`."""
    return [rate * block / max(depth - 1, 1) for block in range(depth)]
