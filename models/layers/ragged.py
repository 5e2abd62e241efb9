"""Packing: the visible tokens of each sample, whose number differs, side by side in one dense tensor.

Shapes: `B` batch, `G` groups, `V` visible tokens (the largest count in the batch, or a given capacity), `C` channels.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from extensions import gather


class Packing(NamedTuple):
    """Where the visible tokens of each sample went."""

    visible: Tensor  # (B, G) bool, True = seen by the encoder
    order: Tensor  # (B, V) int64, the group behind each packed row: visible ones in index order, then any
    valid: Tensor  # (B, V) bool, True = a visible token, False = padding


def plan_packing(visible: Tensor, capacity: int | None = None) -> Packing:
    """Plan to move the visible groups of (B, G) bool to the left, in index order.

    Args:
        capacity: fixed V, at least the largest count; default: the largest count of the batch (one host synchronisation).
    """
    counts = visible.sum(1, keepdim=True)
    length = int(counts.max()) if capacity is None else capacity
    order = torch.argsort((~visible).to(torch.uint8), dim=1, stable=True)[:, :length]
    valid = torch.arange(length, device=visible.device) < counts
    return Packing(visible, order, valid)


def pack(values: Tensor, packing: Packing) -> Tensor:
    """Gather the visible rows of (B, G, C) as (B, V, C); padding rows are zero."""
    return gather(values, packing.order) * packing.valid.unsqueeze(-1).to(values.dtype)


def unpack(packed: Tensor, packing: Packing, background: Tensor) -> Tensor:
    """Put the rows of (B, V, C) back to their groups in a copy of the background (B, G, C)."""
    rank = packing.visible.cumsum(1).sub(1).clamp_(min=0)  # (B, G) row of each visible group
    rows = gather(packed, rank)  # (B, G, C)
    return torch.where(packing.visible.unsqueeze(-1), rows, background.to(rows.dtype))
