"""Augmentation of training batches, drawn for the global batch."""

import torch
from torch import Tensor

from datasets.transforms import (
    draw_angle,
    draw_scale_offset,
    draw_uniform_scale_offset,
    rotate,
    scale_translate,
)
from utils.dist import rank, world_size

DRAWS = {"scale_translate": draw_scale_offset, "uniform_scale_translate": draw_uniform_scale_offset}


def augment(points: Tensor, kind: str, up_axis: str, generator: torch.Generator, *, shared: bool = True) -> Tensor:
    """Augment this process's part (B, N, 3) of a batch.

    `kind`: "scale_translate", "uniform_scale_translate" (of part segmentation), "rotate" about the up axis, or "none".

    Every process draws the same numbers for the global batch, of which each holds B, and keeps its own rows. Not `shared` is a
    batch that this process has to itself.
    """
    B = len(points)
    processes, place = (world_size(), rank()) if shared else (1, 0)
    own = slice(B * place, B * (place + 1))
    if kind in DRAWS:
        scale, offset = DRAWS[kind](B * processes, generator=generator)
        return scale_translate(points, scale=scale[own], offset=offset[own])
    if kind == "rotate":
        return rotate(points, axis=up_axis, angle=draw_angle(B * processes, generator=generator)[own])
    return points
