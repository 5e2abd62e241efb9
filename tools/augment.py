"""Augmentation of training batches, drawn for the global batch."""

import torch
from torch import Tensor

from datasets.transforms import (
    SMALL_SCALE_RANGE,
    draw_angle,
    draw_scale,
    draw_scale_offset,
    draw_uniform_scale_offset,
    rotate,
    scale_translate,
)
from utils.dist import rank, world_size

DRAWS = {"scale_translate": draw_scale_offset, "uniform_scale_translate": draw_uniform_scale_offset}


def augment(points: Tensor, kind: str, up_axis: str, generator: torch.Generator, *, shared: bool = True) -> Tensor:
    """Augment this process's part (B, N, 3) of a batch.

    Args:
        kind: "scale_translate"; "uniform_scale_translate" (of part segmentation); "rotate" each cloud about the up
            axis; "batch_rotate": scale each cloud a little, then rotate the whole batch by one angle, as published
            for I2P-MAE on ScanObjectNN; "scale_rotate": the same with an angle a cloud; "none".

    Every process draws the same numbers for the global batch, of which each holds B, and keeps its own rows. Not
    `shared` is a batch that this process has to itself.
    """
    B = len(points)
    processes, place = (world_size(), rank()) if shared else (1, 0)
    own = slice(B * place, B * (place + 1))
    if kind in DRAWS:
        scale, offset = DRAWS[kind](B * processes, generator=generator)
        return scale_translate(points, scale=scale[own], offset=offset[own])
    if kind == "rotate":
        return rotate(points, axis=up_axis, angle=draw_angle(B * processes, generator=generator)[own])
    if kind in ("batch_rotate", "scale_rotate"):
        scale = draw_scale(B * processes, SMALL_SCALE_RANGE, generator=generator)[own]
        angle = draw_angle(1 if kind == "batch_rotate" else B * processes, generator=generator)
        angle = angle.expand(B) if kind == "batch_rotate" else angle[own]
        return rotate(scale_translate(points, scale=scale, offset=torch.zeros_like(scale)), axis=up_axis, angle=angle)
    return points
