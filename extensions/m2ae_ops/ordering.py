"""In which order tokens stand. Shape legend: B batch, G groups or tokens, V packed rows."""

import torch
from torch import Tensor

from .private.checks import check_points
from .private.choice import own_attention

WORTH_ORDERING = 128  # tokens of a sample from which on it pays to bring near ones together
CELLS = 1024  # of the Z-curve along each axis


def visible_first(visible: Tensor, room: int, *, tight: bool = False) -> tuple[Tensor, Tensor]:
    """List the visible groups of each sample first, in index order, in rows as many as suit the device.

    On the CPU in eager mode V is the largest count of the batch, because shapes that follow the data save work there. Elsewhere V
    is `room`, because the host would have to wait for the device to know the counts.

    Args:
        visible: (B, G) bool.
        room: rows that hold every sample: an upper bound of the counts, at most G.
        tight: let V be the largest count on every device; off the CPU, this waits for the device.

    Returns:
        order (B, V) int64, the group behind each row: visible ones in index order, then others. valid (B, V) bool, True = visible.

    Raises:
        ValueError: visible is not (B, G) bool, room is not in 0..G, or a sample has more visible groups than `room`
            (checked only where the counts are known).
    """
    if visible.dtype != torch.bool or visible.dim() != 2:
        raise ValueError(f"visible_first: visible must be bool (B, G), got {visible.dtype} {tuple(visible.shape)}")
    B, G = visible.shape
    if not 0 <= room <= G:
        raise ValueError(f"visible_first: room={room} must be between 0 and the {G} groups")
    counts = visible.sum(1, keepdim=True)  # (B, 1)
    length = room
    if B and (tight or (visible.device.type == "cpu" and not torch.compiler.is_compiling())):
        length = int(counts.max())
        if length > room:
            raise ValueError(
                f"visible_first: a sample has {length} visible groups, more than room={room}; give a mask with as many hidden "
                "groups as the mask ratio says, or raise room"
            )
    order = torch.argsort((~visible).to(torch.uint8), dim=1, stable=True)[:, :length]
    return order, torch.arange(length, device=visible.device) < counts


def near_first(centers: Tensor) -> Tensor:
    """Return an order of tokens in which attention to near ones is fast; its `argsort(1)` restores the given order.

    The attention kernel for the CPU skips keys that none of 16 or 32 consecutive queries attends to. In this order, along a
    Z-curve, tokens near each other follow each other. Where that saves nothing, the order is 0, 1, 2, ...

    Args:
        centers: (B, G, 3) floating.

    Returns:
        (B, G) int64.

    Raises:
        ValueError: centers are not floating (B, G, 3).
    """
    check_points("near_first", centers=centers)
    B, G, _ = centers.shape
    if G < WORTH_ORDERING or not own_attention(centers, torch.float32):
        return torch.arange(G, device=centers.device).expand(B, G)
    return along_a_curve(centers)


def along_a_curve(centers: Tensor) -> Tensor:
    """Return the order (B, G) int64 of centres (B, G, 3) along a Z-curve of `CELLS` cells a side."""
    low = centers.amin(1, keepdim=True)
    extent = (centers - low).flatten(1).amax(1).clamp(min=torch.finfo(centers.dtype).tiny).view(-1, 1, 1)
    cells = ((centers - low) / extent * (CELLS - 1)).long()
    for step, kept in ((16, 0x030000FF), (8, 0x0300F00F), (4, 0x030C30C3), (2, 0x09249249)):  # two zeros after each bit
        cells = (cells | cells << step) & kept
    return (cells[..., 0] | cells[..., 1] << 1 | cells[..., 2] << 2).argsort(1)
