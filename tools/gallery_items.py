"""Clouds for the gallery of a report: what went in, what the encoder saw, what came out."""

import numpy as np
import torch
from torch import nn

from datasets.batches import Batches
from datasets.clouds import CloudSet
from extensions import fps
from tools.report import GalleryItem
from utils.seed import generator


@torch.inference_mode()
def reconstruction_gallery(
    model: nn.Module, clouds: CloudSet, seed: int, device: torch.device, *, count: int = 8
) -> list[GalleryItem]:
    """Mask and rebuild `count` clouds of a set with a pre-training model, in evaluation mode.

    Patches overlap, so the rebuilt ones hold more points than the cloud: farthest point sampling thins visible and rebuilt points
    together to the number of the input.
    """
    was_training = model.training
    model.eval()
    chosen = np.linspace(0, len(clouds) - 1, min(count, len(clouds))).astype(int)
    batch = next(
        Batches(clouds.select(chosen), batch_size=len(chosen), seed=seed, device=device, shuffle=False).evaluation()
    )
    points = batch.points
    pyramid = model.group(points)
    out = model(points, pyramid=pyramid, generator=generator(seed, 0, 0, "gallery"))
    model.train(was_training)

    rebuilt = out["rebuilt"] + out["centers"].unsqueeze(1)  # (L, K, 3)
    items = []
    for row, index in enumerate(chosen):
        members = pyramid.idx[0][row][~out["masked_finest"][row]].unique()
        visible = points[row][members]
        filled = torch.cat([visible, rebuilt[out["samples"] == row].flatten(0, 1)])  # (V + L_row * K, 3)
        keep = fps(filled[None], min(len(filled), points.shape[1]))[0]
        cells = {"input": points[row], "visible": visible, "rebuilt": filled[keep]}
        name = clouds.names[index] if clouds.names else f"#{index}"
        note = None
        if clouds.labels is not None and clouds.class_names:
            note = clouds.class_names[int(clouds.labels[index])]
        items.append(
            GalleryItem(
                name, {key: value.cpu().numpy() for key, value in cells.items()}, up_axis=clouds.up_axis, note=note
            )
        )
    return items
