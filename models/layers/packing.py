"""Packing: the visible tokens of each sample, whose number differs, side by side in one dense tensor.

How many there are only the data says. Shapes that follow it save work, but the host must wait for the device to know them; fixed ones hold
the most there can be and say which rows mean something.

Shapes: `B` batch, `G` groups, `V` visible tokens (the largest count in the batch, or a given capacity), `C` channels, `R` rows a sample,
`L` rows of the batch.
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


def pack_everything(tokens: Tensor) -> Packing:
    """Return the packing of tokens (B, G, C) that are all visible: each stays where it is."""
    B, G, _ = tokens.shape
    visible = torch.ones(B, G, dtype=torch.bool, device=tokens.device)
    return Packing(visible, torch.arange(G, device=tokens.device).expand(B, G), visible)


def pack(values: Tensor, packing: Packing) -> Tensor:
    """Gather the visible rows of (B, G, C) as (B, V, C); padding rows are zero."""
    return gather(values, packing.order) * packing.valid.unsqueeze(-1).to(values.dtype)


def unpack(packed: Tensor, packing: Packing, background: Tensor) -> Tensor:
    """Put the rows of (B, V, C) back to their groups in a copy of the background (B, G, C)."""
    rank = packing.visible.cumsum(1).sub(1).clamp_(min=0)  # (B, G) row of each visible group
    rows = gather(packed, rank)  # (B, G, C)
    return torch.where(packing.visible.unsqueeze(-1), rows, background.to(rows.dtype))


class Rows(NamedTuple):
    """Chosen groups of a batch, one a row, sample after sample in index order.

    Either these alone, as many as there are, or R rows of each sample, of which `valid` says whether they are chosen ones.
    """

    chosen: Tensor  # (B, G) bool
    order: Tensor | None = None  # (B, R) int64, the group behind each row; None: all groups, or the chosen ones alone
    valid: Tensor | None = None  # (L,) bool, L = B * R; None: the chosen ones alone

    def take(self, values: Tensor) -> Tensor:
        """Return (B, G, ...) as rows (L, ...)."""
        if self.valid is None:
            return values[self.chosen]
        if self.order is not None:
            values = gather(values.flatten(2), self.order).unflatten(-1, values.shape[2:])  # (B, R, ...)
        return values.flatten(0, 1)

    def samples(self) -> Tensor:
        """Return whose each row is, (L,) int64."""
        if self.valid is None:
            return self.chosen.nonzero()[:, 0]
        B = len(self.chosen)
        return torch.arange(B, device=self.chosen.device).repeat_interleave(len(self.valid) // B)

    def spread(self, values: Tensor) -> Tensor:
        """Put one number a row (L,) back to the chosen groups of (B, G); zero elsewhere. Not for rows in another `order`."""
        if self.valid is None:
            return torch.zeros(self.chosen.shape, dtype=values.dtype, device=values.device).masked_scatter(
                self.chosen, values
            )
        return torch.where(self.chosen, values.view(self.chosen.shape), 0.0)


def rows_of(chosen: Tensor, *, fixed: bool) -> Rows:
    """Return rows for the chosen groups of (B, G) bool: these alone, or, with `fixed` shapes, one for every group."""
    return Rows(chosen, valid=chosen.flatten()) if fixed else Rows(chosen)


def packed_rows(packing: Packing, *, fixed: bool) -> Rows:
    """Return rows for the visible groups of a packing: these alone, or, with `fixed` shapes, all that are packed, padding included."""
    return Rows(packing.visible, packing.order, packing.valid.flatten()) if fixed else Rows(packing.visible)
