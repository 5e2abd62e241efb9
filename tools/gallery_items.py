"""Clouds for the gallery of a report: what went in, the visible part, what came out."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from datasets.batches import Batches
from datasets.clouds import CloudSet
from extensions import fps
from models.layers.group import Pyramid
from tools.report.page import GalleryItem
from utils.seed import generator


def chosen_clouds(clouds: CloudSet, count: int, seed: int, device: torch.device) -> tuple[np.ndarray, Tensor]:
    """Choose up to `count` clouds spread evenly over a set; returns their indices and points (count, N, 3)."""
    chosen = np.linspace(0, len(clouds) - 1, min(count, len(clouds))).astype(int)
    if not len(chosen):
        return chosen, torch.zeros(0, 1, 3, device=device)
    part = clouds.select(chosen)
    batch = next(Batches(part, batch_size=len(chosen), seed=seed, device=device, shuffle=False).evaluation())
    return chosen, batch.points


def describe(clouds: CloudSet, index: int) -> dict[str, str | None]:
    """Return what a `GalleryItem` says of a cloud: `name`, `note`, `up_axis`."""
    name = clouds.names[index] if clouds.names else f"#{index}"
    note = None
    if clouds.labels is not None and clouds.class_names:
        note = clouds.class_names[int(clouds.labels[index])]
    return {"name": name, "note": note, "up_axis": clouds.up_axis}


def alone(pyramid: Pyramid, generator: torch.Generator) -> dict[str, Any]:
    """Rebuild without a guide, from a random mask."""
    return {"pyramid": pyramid, "generator": generator}


@torch.inference_mode()
def reconstruction_gallery(
    model: nn.Module,
    clouds: CloudSet,
    seed: int,
    device: torch.device,
    *,
    count: int = 8,
    guidance: Callable[[Pyramid, torch.Generator], dict[str, Any]] = alone,
) -> list[GalleryItem]:
    """Mask and rebuild `count` clouds of a set with a pre-training model, in evaluation mode.

    Patches overlap, so the rebuilt ones hold more points than the cloud: farthest point sampling thins visible and
    rebuilt points together to the number of the input.

    Args:
        guidance: (groups, generator) -> keyword arguments of the model's `forward`.
    """
    was_training = model.training
    model.eval()
    chosen, points = chosen_clouds(clouds, count, seed, device)
    pyramid = model.group(points)
    out = model(points, **guidance(pyramid, generator(seed, 0, 0, "gallery")))
    model.train(was_training)

    rebuilt, whose = out["rebuilt"] + out["centers"].unsqueeze(1), out["samples"]  # (L, K, 3), (L,)
    if "valid" in out:
        rebuilt, whose = rebuilt[out["valid"]], whose[out["valid"]]
    items = []
    for row, index in enumerate(chosen):
        members = pyramid.idx[0][row][~out["masked_finest"][row]].unique()
        visible = points[row][members]
        filled = torch.cat([visible, rebuilt[whose == row].flatten(0, 1)])  # (V + L_row * K, 3)
        keep = fps(filled[None], min(len(filled), points.shape[1]))[0]
        cells = {"input": points[row], "visible": visible, "rebuilt": filled[keep]}
        cells = {key: value.cpu().numpy() for key, value in cells.items()}
        items.append(GalleryItem(clouds=cells, **describe(clouds, index)))
    return items
