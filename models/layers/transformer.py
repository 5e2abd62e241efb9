"""Pre-norm transformer blocks.

Shapes: `B` batch, `L` tokens, `C` channels.
"""

from collections.abc import Sequence
from itertools import islice

from torch import Tensor, nn

from models.layers.attention import Attention
from models.layers.drop import DropPath


class MLP(nn.Module):
    """Two linear layers with an exact GELU between them."""

    def __init__(self, channels: int, hidden: int):
        super().__init__()
        self.fc1 = nn.Linear(channels, hidden)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(hidden, channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.act(self.fc1(x)))


class Block(nn.Module):
    """x + DropPath(Attention(LN(x))), then x + DropPath(MLP(LN(x))).

    Args:
        timm_order: list the parameters of the attention where timm's blocks do, after the first norm; published optimizer states
            count on it.
    """

    def __init__(
        self,
        channels: int,
        num_heads: int,
        *,
        mlp_ratio: float = 4.0,
        drop_path: float = 0.0,
        timm_order: bool = False,
    ):
        super().__init__()
        # The order of creation is the order of the published parameter lists.
        self.norm1 = nn.LayerNorm(channels)
        if timm_order:
            self.attn = Attention(channels, num_heads)
        self.drop_path = DropPath(drop_path)
        self.norm2 = nn.LayerNorm(channels)
        self.mlp = MLP(channels, int(channels * mlp_ratio))
        if not timm_order:
            self.attn = Attention(channels, num_heads)

    def forward(self, x: Tensor, valid: Tensor | None = None, attend: Tensor | None = None) -> Tensor:
        """Run (B, L, C); masks as in `Attention`."""
        x = x + self.drop_path(self.attn(self.norm1(x), valid, attend))
        return x + self.drop_path(self.mlp(self.norm2(x)))


class Blocks(nn.Module):
    """A stack of blocks that adds the position before every one of them, to the running stream (Pang et al. 2022)."""

    def __init__(
        self,
        channels: int,
        num_heads: int,
        *,
        drop_paths: Sequence[float],
        mlp_ratio: float = 4.0,
        timm_order: bool = False,
    ):
        super().__init__()
        self.blocks = nn.ModuleList(
            Block(channels, num_heads, mlp_ratio=mlp_ratio, drop_path=rate, timm_order=timm_order)
            for rate in drop_paths
        )

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


def drop_path_rates(rate: float, depth: int) -> list[float]:
    """Return `depth` rates that rise linearly from 0 to `rate`."""
    return [rate * block / max(depth - 1, 1) for block in range(depth)]
