"""Clouds seen from three sides: points to depth maps, and what an image says back to the points (Zhang et al. 2023, Sec. 3.2).

Shapes: `B` batch, `N` points, `M` query points, `W` = 3 views, `S` pixels along the edge of an image, `P` patches along the edge of a
feature map, `C` channels. Views stand first and side by side with the samples: (W * B, ...), the samples of view 1 before those of view 2.
"""

from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

# Coordinates of each view: row of the image, column of the image, depth.
VIEWS = ((0, 1, 2), (2, 0, 1), (1, 2, 0))
SPLAT = 5  # pixels along the edge of the square that a point covers
BORDER = 3  # pixels that the longer side of the cloud leaves free
CUBIC = -0.75  # the free coefficient of the bicubic kernel, as in PyTorch

Depth = Literal["signed_sum", "nearest"]


class Frame(NamedTuple):
    """How points of a view become pixels; one frame a view and sample."""

    corner: Tensor  # (W * B, 2) lowest plane coordinates of the cloud
    cell: Tensor  # (W * B,) edge of a pixel in units of the cloud
    shift: Tensor  # (W * B, 2) float, whole pixels that centre the cloud
    size: int  # S


def turn_to_views(points: Tensor) -> Tensor:
    """Reorder the coordinates of points (B, N, 3) for each view: (W * B, N, 3), row, column, depth."""
    axes = points.float().unbind(-1)
    return torch.cat([torch.stack([axes[axis] for axis in view], dim=-1) for view in VIEWS])


def fit_frame(turned: Tensor, size: int = 224) -> Frame:
    """Fit the frame of an image of `size` pixels around each turned cloud (W * B, N, 3).

    The longer side of the cloud takes `size - 3` pixels, the shorter one is centred. A cloud without extent in the plane,
    a single point or a line of sight, falls into one pixel in the middle.

    Raises:
        ValueError: the image has no room for a cloud.
    """
    if size <= BORDER:
        raise ValueError(f"projection: an image of {size} pixels has no room; use at least {BORDER + 1}")
    plane = turned[..., :2]
    corner = plane.amin(1)  # (W * B, 2)
    cell = (plane.amax(1) - corner).amax(-1) / (size - BORDER)  # (W * B,)
    cell = torch.where(cell > 0, cell, torch.ones_like(cell))
    pixels = _cells(turned, corner, cell)  # (W * B, N, 2)
    reach = SPLAT // 2
    lowest, highest = pixels.amin(1) - reach + 1, pixels.amax(1) + reach + 1  # of the splats, (W * B, 2)
    shift = (size + 1) // 2 - torch.floor((highest + lowest) / 2) - 1
    return Frame(corner, cell, shift, size)


def _cells(turned: Tensor, corner: Tensor, cell: Tensor) -> Tensor:
    """Return the cell (W * B, N, 2) of each point, whole numbers as floats, before the image is centred.

    The order of subtraction, division and floor decides on which side of an edge a point falls; it is the published one, in fp32.
    """
    return torch.floor((turned[..., :2] - corner.unsqueeze(1)) / cell.view(-1, 1, 1))


def find_pixels(points: Tensor, frame: Frame) -> Tensor:
    """Return the pixel (W * B, M, 2) int64, row and column, that each point (B, M, 3) falls into in each view.

    Points outside the frame, which are none of the cloud that it was fitted to, take the pixel of the border next to them.
    """
    pixels = _cells(turn_to_views(points), frame.corner, frame.cell) + 1 + frame.shift.unsqueeze(1)
    return pixels.clamp(0, frame.size - 1).long()


def draw_depth(points: Tensor, frame: Frame, depth: Depth = "signed_sum") -> Tensor:
    """Draw points (B, N, 3) as depth maps (W * B, S, S) in [0, 1], one a view; each point covers 5 x 5 pixels.

    Args:
        depth: "signed_sum", as published: the sigmoid of the sum of the third coordinates of all points that cover a pixel, 0.5 where
            there is none, so that clouds on the far side of the origin are darker than the background. "nearest": how near the nearest
            of them is, from 1 down to 0.25 at the far end of the cloud, and 0 where there is none.

    Raises:
        ValueError: `depth` is none of these.
    """
    turned = turn_to_views(points)
    reach = torch.arange(SPLAT, device=points.device) - SPLAT // 2
    offsets = torch.cartesian_prod(reach, reach)  # (25, 2)
    pixels = _cells(turned, frame.corner, frame.cell) + 1 + frame.shift.unsqueeze(1)
    pixels = pixels.unsqueeze(2) + offsets  # (W * B, N, 25, 2)
    pixels = pixels.clamp(0, frame.size - 1).long()  # squares that stick out of the image by a pixel are folded in
    place = (pixels[..., 0] * frame.size + pixels[..., 1]).flatten(1)  # (W * B, N * 25)
    value = turned[..., 2]
    image = value.new_zeros(len(turned), frame.size**2)
    if depth == "signed_sum":
        image.scatter_add_(1, place, value.repeat_interleave(len(offsets), 1))
        image = image.sigmoid()
    elif depth == "nearest":
        far, near = value.amin(1, keepdim=True), value.amax(1, keepdim=True)
        extent = torch.where(near > far, near - far, torch.ones_like(near))
        nearness = 1 - 0.75 * (near - value) / extent  # (W * B, N)
        image.scatter_reduce_(1, place, nearness.repeat_interleave(len(offsets), 1), "amax")
    else:
        raise ValueError(f"projection: depth {depth!r} is unknown; choose from signed_sum, nearest")
    return image.view(-1, frame.size, frame.size)


def lift(maps: Tensor, pixels: Tensor, size: int) -> Tensor:
    """Read feature maps (W * B, C, P, P) at pixels (W * B, M, 2) of the image they belong to, by bicubic interpolation: (W * B, M, C).

    Equal to enlarging the map to size x size and picking pixels, without the enlarged map: only the 16 patches around each pixel are
    read. (Zhang et al. 2023, Sec. 3.3, enlarge it.)

    Note:
        Agrees with `torch.nn.functional.interpolate(mode="bicubic")` to rounding (`tests/models/test_projection.py`).
    """
    views, C, P, _ = maps.shape
    M = pixels.shape[1]
    taps, weights = _cubic_taps(size, P, maps.device)  # (S, 4) each
    rows, columns = pixels.unbind(-1)  # (W * B, M)
    patches = taps[rows].unsqueeze(-1) * P + taps[columns].unsqueeze(-2)  # (W * B, M, 4, 4)
    patches = patches + (torch.arange(views, device=maps.device) * P * P).view(-1, 1, 1, 1)
    shares = weights[rows].unsqueeze(-1) * weights[columns].unsqueeze(-2)
    table = maps.float().flatten(2).transpose(1, 2).reshape(-1, C)  # (W * B * P * P, C)
    lifted = F.embedding_bag(patches.view(-1, 16), table, per_sample_weights=shares.view(-1, 16), mode="sum")
    return lifted.view(views, M, C)


def _cubic_taps(size: int, patches: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return the four patches (S, 4) int64 that each pixel along an edge reads, clamped to the map, and their weights (S, 4)."""
    place = (torch.arange(size, device=device, dtype=torch.float32) + 0.5) * (patches / size) - 0.5
    first = torch.floor(place)
    t = place - first
    distance = torch.stack([t + 1, t, 1 - t, 2 - t], dim=-1)
    inner = ((CUBIC + 2) * distance - (CUBIC + 3)) * distance.square() + 1
    outer = ((CUBIC * distance - 5 * CUBIC) * distance + 8 * CUBIC) * distance - 4 * CUBIC
    weights = torch.where(distance <= 1, inner, outer)
    taps = first.long().unsqueeze(-1) + torch.arange(-1, 3, device=device)
    return taps.clamp(0, patches - 1), weights
