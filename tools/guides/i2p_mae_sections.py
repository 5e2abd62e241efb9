"""What the report shows of a teacher at work: depth maps, its attention on the cloud, and the mask that follows it."""

from typing import Any

import torch

from models.images.projection import draw_depth, find_pixels, fit_frame, lift, turn_to_views
from tools.gallery_items import chosen_clouds, describe
from tools.report.clouds import GalleryItem
from tools.report.markup import Section, facts, short
from utils.seed import generator

COUNT = 4  # clouds shown
VIEW_NAMES = ("view 1: x, y", "view 2: z, x", "view 3: y, z")


@torch.inference_mode()
def teacher_pages(guide, model) -> dict[str, Any]:
    """Show what the teacher of a guide (`tools.guides.i2p_mae.ImageGuide`) makes of some clouds, as they are stored.

    Returns keyword arguments of `write_report`: rows of the gallery with depth maps and saliency, and a section with its numbers.
    """
    clouds, run, keys = guide.clouds, guide.run, model.config.teacher
    chosen, points = chosen_clouds(clouds, COUNT, run.seed, run.device)
    frame = fit_frame(turn_to_views(points), keys.image_size)
    images = draw_depth(points, frame, keys.depth).unflatten(0, (3, -1)).cpu().numpy()  # (W, B, S, S)
    views, pyramid = guide.encode_views(points), model.group(points)
    everywhere = lift(views.saliency.unsqueeze(1), find_pixels(points, frame), keys.image_size)  # (W * B, N, 1)
    everywhere = everywhere.unflatten(0, (3, -1)).mean(0).squeeze(-1)  # (B, N)
    saliency = guide.guide(points, pyramid, views).saliency
    masked = model.mask_by_saliency(saliency, generator=generator(run.seed, 0, 0, "gallery"))
    finest = ~model.mask(pyramid, masked)[0].visible

    items = []
    for row, index in enumerate(chosen):
        visible = torch.zeros(points.shape[1], dtype=torch.bool, device=points.device)
        visible[pyramid.idx[0][row][~finest[row]].unique()] = True
        parts = {"saliency": torch.ones_like(visible), "visible": visible, "hidden": ~visible}
        items.append(
            GalleryItem(
                clouds={name: points[row][part].cpu().numpy() for name, part in parts.items()},
                values={name: everywhere[row][part].float().cpu().numpy() for name, part in parts.items()},
                value_name="saliency",
                pictures={name: images[view, row] for view, name in enumerate(VIEW_NAMES)},
                **describe(clouds, index),
            )
        )
    random = " Its weights are random: none of this means anything." if keys.weights == "random" else ""
    lead = (
        "The last rows of the gallery show the depth maps that it is given, how much attention it pays to each point (saliency, mean of "
        f"three views), and the points that the mask drawn from it leaves visible and hides.{random}"
    )
    section = Section("What the image teacher sees", facts(_numbers(model, keys, saliency, masked)), lead)
    return {"galleries": {"saliency": items}, "sections": [section]}


def _numbers(model, keys, saliency, masked) -> dict[str, str]:
    shares = (saliency / model.config.mask_temperature).softmax(-1)
    odds = (shares.amax(-1) / shares.amin(-1)).max()
    return {
        "Teacher": f"{keys.name}, weights {keys.weights}" + (f", SHA-256 {keys.sha256}" if keys.sha256 else ""),
        "Images": f"{keys.image_size} pixels, {keys.depth}, statistics {keys.statistics}",
        "Saliency of groups": f"{short(float(saliency.min()))} to {short(float(saliency.max()))}",
        "Mean saliency": f"visible {short(float(saliency[~masked].mean()))}, hidden {short(float(saliency[masked].mean()))}",
        "Most to least likely group": f"{short(float(odds), 3)} : 1 at temperature {model.config.mask_temperature:g}; 1 is no guidance",
    }
