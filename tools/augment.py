"""Augmentation of training batches, drawn for the global batch."""

import torch
from torch import Tensor

from datasets.transforms import draw_angle, draw_scale_offset, rotate, scale_translate
from utils.dist import rank, world_size


def augment(points: Tensor, kind: str, up_axis: str, generator: torch.Generator) -> Tensor:
    """Augment this process's part (B, N, 3) of a batch: "scale_translate", "rotate" about the up axis, or "none".

    Every process draws the same numbers for the global batch, of which each holds B, and keeps its own rows.
    """
    B = len(points)
    own = slice(B * rank(), B * (rank() + 1))
    if kind == "scale_translate":
        scale, offset = draw_scale_offset(B * world_size(), generator=generator)
        return scale_translate(points, scale=scale[own], offset=offset[own])
    if kind == "rotate":
        return rotate(points, axis=up_axis, angle=draw_angle(B * world_size(), generator=generator)[own])
    return points
