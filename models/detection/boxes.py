"""Boxes: corners, normalised coordinates, generalised IoU.

Centres and sizes are in the depth frame (x right, y forward, z up, metres), corners in the camera frame (x, -z, y).

Shapes: `K` and `G` boxes of a scene; `...` any leading dimensions.
"""

import math

import torch
from torch import Tensor

# Signs of the corners along the camera's axes; 0 to 3 are the lower face, 4 the corner above 0.
SIGNS = ((1, 1, -1, -1, 1, 1, -1, -1), (1, 1, 1, 1, -1, -1, -1, -1), (1, -1, -1, 1, 1, -1, -1, 1))
LEAST_SQUARE, LEAST_VOLUME = 1e-6, 1e-8  # below which squared lengths and volumes are clamped, as published
MOST_BOXES = 64  # of a scene, as published


def box_corners(centers: Tensor, sizes: Tensor, angles: Tensor | None = None) -> Tensor:
    """Return the corners (..., 8, 3), in the camera frame, of boxes in the depth frame.

    Args:
        centers, sizes: (..., 3), full sizes.
        angles: (...) radians about the vertical axis; None = all 0.
    """
    signs = torch.tensor(SIGNS, dtype=sizes.dtype, device=sizes.device)
    length, width, height = (sizes / 2).unbind(-1)
    half = torch.stack([length, height, width], dim=-1)  # (..., 3) along the camera's axes
    offsets = half.unsqueeze(-2) * signs.T  # (..., 8, 3)
    if angles is not None:
        cos, sin = angles.cos().unsqueeze(-1), angles.sin().unsqueeze(-1)
        x, y, z = offsets.unbind(-1)
        offsets = torch.stack([cos * x + sin * z, y, cos * z - sin * x], dim=-1)
    return offsets + to_camera(centers).unsqueeze(-2)


def to_camera(points: Tensor) -> Tensor:
    """Bring points (..., 3) of the depth frame to the camera frame."""
    x, y, z = points.unbind(-1)
    return torch.stack([x, -z, y], dim=-1)


def normalize(points: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Return points (B, ..., 3) as shares of the extent of their scene, which goes from `low` to `high`, (B, 3)."""
    shape = (len(points),) + (1,) * (points.dim() - 2) + (3,)
    return (points - low.view(shape)) / (high - low).view(shape)


def angle_of(logits: Tensor, residuals: Tensor) -> Tensor:
    """Return the angles (...) in radians, in (-pi, pi], of bin logits (..., A) and residuals (..., A); one bin means 0."""
    bins = logits.shape[-1]
    if bins == 1:
        return 0 * (logits + residuals).squeeze(-1)
    chosen = logits.detach().argmax(-1, keepdim=True)
    angle = chosen.squeeze(-1) * (2 * math.pi / bins) + residuals.gather(-1, chosen).squeeze(-1)
    return torch.where(angle > math.pi, angle - 2 * math.pi, angle)


def generalized_iou(predicted: Tensor, target: Tensor, counts: Tensor) -> Tensor:
    """Return the generalised IoU of axis-aligned boxes, pair by pair, differentiable (Rezatofighi et al. 2019).

    Args:
        predicted: (..., K, 8, 3) corners in the camera frame.
        target: (..., G, 8, 3).
        counts: (...) int64, real targets of each scene; columns beyond are 0.

    Returns:
        (..., K, G).

    Note:
        As published, lengths below 1 mm count as 1 mm, so that nearly flat boxes give values above 1, and a pair of
        flat boxes in one plane gives NaN. The readers of scenes refuse such targets.
    """
    a, b = predicted.unsqueeze(-3), target.unsqueeze(-4)  # (..., K, 1, 8, 3), (..., 1, G, 8, 3)
    top = torch.maximum(a[..., 4, 1], b[..., 4, 1])
    height = (torch.minimum(a[..., 0, 1], b[..., 0, 1]) - top).clamp(min=0)
    # Corner 2 is the lowest of the footprint, corner 0 the highest.
    low = torch.maximum(a[..., 2, ::2], b[..., 2, ::2])
    high = torch.minimum(a[..., 0, ::2], b[..., 0, ::2])
    inter = (high - low).clamp(min=0).prod(-1) * height
    both = _volume(predicted).unsqueeze(-1) + _volume(target).unsqueeze(-2)
    union = (both - inter).clamp(min=LEAST_VOLUME)
    around_high = torch.maximum(a.amax(-2), b.amax(-2))
    enclosing = (around_high - torch.minimum(a.amin(-2), b.amin(-2))).prod(-1)
    value = inter / union - (1 - union / enclosing)
    sound = (enclosing > 2 * LEAST_VOLUME) & (both > 4 * LEAST_VOLUME)
    real = torch.arange(target.shape[-3], device=counts.device) < counts.unsqueeze(-1)  # (..., G)
    return value * sound.to(value.dtype) * real.unsqueeze(-2).to(value.dtype)


def _volume(corners: Tensor) -> Tensor:
    """Return the clamped volumes (..., K) of boxes given by their corners (..., K, 8, 3)."""
    edges = corners[..., [0, 1, 0], :] - corners[..., [1, 2, 4], :]  # (..., K, 3 edges, 3)
    return edges.square().sum(-1).clamp(min=LEAST_SQUARE).sqrt().prod(-1).clamp(min=LEAST_VOLUME)
