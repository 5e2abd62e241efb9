"""Clouds for the gallery of a report: what went in, the visible part, what came out."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from datasets.batches import Batches
from datasets.clouds import CloudSet
from extensions import chamfer_distance, fps
from models.layers.group import Pyramid
from tools.report.page import GalleryItem
from utils.seed import generator

CENTERS = "patch centres"
PREDICTED = "predicted centres"
LEGEND = ("visible", "hidden, or predicted")
ABOUT = (
    "Gallery",
    "Patches overlap: a point is hidden only where all patches that hold it are, so far more points than patches are visible. "
    "In the rebuilt cloud, points of visible patches are kept and all others predicted; it is thinned to the number of the input.",
)


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
    rebuilt points together to the number of the input. Values tell hidden from visible patches, and predicted points
    from those that were kept.

    Args:
        model: one that predicts the centres of hidden patches has a cell with them, next to the visible ones.
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
        masked = out["masked_finest"][row]
        members = pyramid.idx[0][row][~masked].unique()
        visible, predicted = points[row][members], rebuilt[whose == row].flatten(0, 1)
        filled = torch.cat([visible, predicted])  # (V + L_row * K, 3)
        keep = fps(filled[None], min(len(filled), points.shape[1]))[0]
        cells = {
            "input": points[row],
            CENTERS: pyramid.centers[0][row],
            "visible": visible,
            "rebuilt": filled[keep],
        }
        hidden = torch.ones(points.shape[1], dtype=torch.int64, device=points.device).index_fill(0, members, 0)
        values = {
            "input": hidden,
            CENTERS: masked.long(),
            "visible": torch.zeros_like(members),
            "rebuilt": (keep >= len(visible)).long(),
        }
        if "predicted_centers" in out:
            believed = out["predicted_centers"][out["valid"]][whose == row]
            cells[PREDICTED] = torch.cat([pyramid.centers[0][row][~masked], believed])
            values[PREDICTED] = masked.long().sort().values
        about = describe(clouds, index)
        about["note"] = " · ".join(filter(None, [about["note"], _distance(points[row], filled[keep])]))
        cells, values = ({name: array.cpu().numpy() for name, array in found.items()} for found in (cells, values))
        items.append(GalleryItem(clouds=cells, values=values, legend=LEGEND, value_name="mask", **about))
    return items


def cloud_distance(cloud: Tensor, rebuilt: Tensor) -> float:
    """Return how far a rebuilt cloud (M, 3) is from its input (N, 3): mean squared distance to the nearest point, both ways added."""
    there, back = chamfer_distance(cloud[None].float(), rebuilt[None].float())[:2]
    return float(there.mean() + back.mean())


def _distance(cloud: Tensor, rebuilt: Tensor) -> str:
    return f"Chamfer distance {1000 * cloud_distance(cloud, rebuilt):.2f} (x1000)"
