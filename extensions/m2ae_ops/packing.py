"""Plan how the visible tokens of a batch are packed. Shape legend: B batch, G groups, V packed rows."""

import torch
from torch import Tensor


def visible_first(visible: Tensor, room: int, *, tight: bool = False) -> tuple[Tensor, Tensor]:
    """List the visible groups of each sample first, in index order, for as many rows as the device deserves.

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
