"""Packing: the visible tokens of each sample, whose number differs, together in one dense tensor, with a mask that says which are real.

How many rows there are, the most that can be or the most that are, only `visible_first` decides.

Shapes: `B` batch, `G` groups, `V` packed rows, `C` channels, `L` rows of the batch.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from extensions import gather, visible_first


class Packing(NamedTuple):
    """Where the visible tokens of each sample went."""

    visible: Tensor  # (B, G) bool, True = a group that the encoder is shown
    order: Tensor  # (B, V) int64, the group behind each packed row: visible ones in index order, then any
    valid: Tensor  # (B, V) bool, True = a visible token, False = padding


def plan_packing(visible: Tensor, room: int | None = None, *, tight: bool = False) -> Packing:
    """Plan to move the visible groups of (B, G) bool to the left, in index order.

    Args:
        room: an upper bound of the visible groups of a sample; default: all.
        tight: as in `visible_first`.

    Raises:
        ValueError: a sample has more visible groups, where their number is known.
    """
    return Packing(visible, *visible_first(visible, visible.shape[1] if room is None else room, tight=tight))


def pack(values: Tensor, packing: Packing) -> Tensor:
    """Gather the visible rows of (B, G, C) as (B, V, C); padding rows are zero."""
    return gather(values, packing.order) * packing.valid.unsqueeze(-1).to(values.dtype)


def unpack(packed: Tensor, packing: Packing, background: Tensor) -> Tensor:
    """Put the rows of (B, V, C) back to their groups in a copy of the background, which broadcasts to (B, G, C)."""
    rank = packing.visible.cumsum(1).sub(1).clamp_(min=0)  # (B, G) row of each visible group
    rows = gather(packed, rank)  # (B, G, C)
    return torch.where(packing.visible.unsqueeze(-1), rows, background.to(rows.dtype))


class Rows(NamedTuple):
    """Chosen groups of a batch, one a row, sample after sample in index order."""

    index: Tensor  # (L,) int64, sample * G + group
    valid: Tensor  # (L,) bool, True = a chosen group, False = padding, which comes last
    batch: int  # B
    groups: int  # G

    def take(self, values: Tensor) -> Tensor:
        """Return the rows (L, ...) of (B, G, ...)."""
        rows = values.reshape(1, self.batch * self.groups, -1)
        return gather(rows, self.index.unsqueeze(0)).view(len(self.index), *values.shape[2:])

    def samples(self) -> Tensor:
        """Return whose each row is, (L,) int64."""
        return self.index.div(self.groups, rounding_mode="floor")

    def by_sample(self) -> Tensor:
        """Return the groups of each sample, (B, M) int64, where there are as many in each."""
        return (self.index % self.groups).view(self.batch, -1)

    def spread(self, values: Tensor) -> Tensor:
        """Put one number a row (L,) back to the chosen groups of (B, G); zero elsewhere."""
        values = torch.where(self.valid, values, 0.0)
        return values.new_zeros(self.batch * self.groups).scatter(0, self.index, values).view(self.batch, self.groups)


def rows_of(chosen: Tensor, room: int | None = None, *, tight: bool = False) -> Rows:
    """Return the chosen groups of (B, G) bool as rows.

    Args:
        room: an upper bound of the chosen groups of a sample; default: all.
        tight: as in `visible_first`.

    Raises:
        ValueError: there are more in the batch, where their number is known.
    """
    B, G = chosen.shape
    order, valid = visible_first(chosen.view(1, B * G), B * (G if room is None else room), tight=tight)
    return Rows(order[0], valid[0], B, G)
