"""Layers that drop at random while they train.

Several processes, whose global generators have the same seed, draw the same numbers for the rows of all of them, and each keeps
those of its own rows: together they drop what one process would.

Shapes: `B` rows of this process.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from utils.dist import rank, world_size


class DropPath(nn.Module):
    """Drop a residual branch for whole samples while training, and rescale what is kept (Huang et al. 2016)."""

    def __init__(self, rate: float):
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, ...) to the same shape."""
        if not self.training or self.rate == 0:
            return x
        keep = 1 - self.rate
        drawn = torch.rand((len(x) * world_size(),) + (1,) * (x.dim() - 1), device=x.device)
        return x * (drawn[own_rows(len(x))] < keep).to(x.dtype) / keep


class Dropout(nn.Dropout):
    """Drop single values while training, and rescale what is kept."""

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, ...) to the same shape."""
        if not self.training or world_size() == 1 or self.p == 0:
            return super().forward(x)
        factors = F.dropout(x.new_ones(len(x) * world_size(), *x.shape[1:]), self.p)
        return x * factors[own_rows(len(x))]


def own_rows(count: int) -> slice:
    """Return where the `count` rows of this process stand among those of all processes."""
    return slice(count * rank(), count * (rank() + 1))
