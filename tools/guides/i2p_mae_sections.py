"""The section of the report that shows a teacher at work: depth maps, its attention on the cloud, and the mask that follows it."""

import numpy as np
import torch

from models.images.projection import draw_depth, find_pixels, fit_frame, lift, turn_to_views
from tools.gallery_items import chosen_clouds, describe
from tools.report.clouds import GalleryItem
from tools.report.figure import cloud_images
from tools.report.markup import Section, facts, short
from tools.report.pictures import picture_table
from utils.seed import generator

COUNT = 4  # clouds shown
VIEW_NAMES = ("view 1: x, y", "view 2: z, x", "view 3: y, z")


@torch.inference_mode()
def guidance_section(guide, model) -> Section:
    """Show what the teacher of a guide (`tools.guides.i2p_mae.ImageGuide`) sees of some clouds, as they are stored.

    Raises:
        ImportError: matplotlib is missing.
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

    rows = []
    for row, index in enumerate(chosen):
        hidden = torch.ones(points.shape[1], dtype=torch.int64, device=points.device)
        hidden[pyramid.idx[0][row][~finest[row]].unique()] = 0
        pictures = {name: images[view, row] for view, name in enumerate(VIEW_NAMES)}
        pictures["saliency"] = _draw(clouds, points[row], everywhere[row])
        pictures["chosen mask"] = _draw(clouds, points[row], hidden, legend=["visible", "hidden"])
        rows.append((describe(clouds, index)["name"], pictures))
    alt = "Depth maps of three views, the attention of the teacher on the cloud, and which points stay visible"
    random = " Its weights are random: none of this means anything." if keys.weights == "random" else ""
    return Section(
        "What the image teacher sees",
        picture_table(rows, alt=alt) + facts(_numbers(model, keys, saliency, masked)),
        lead="Depth maps that it is shown, how much attention it pays to each part (mean of three views, yellow is most), "
        f"and the mask drawn from that: blue points are in visible patches, orange ones are hidden.{random}",
    )


def _draw(clouds, points, values, *, legend=None) -> np.ndarray:
    item = GalleryItem(
        "cloud",
        {"cloud": points.cpu().numpy()},
        up_axis=clouds.up_axis,
        values={"cloud": values.cpu().numpy()},
        legend=legend,
    )
    return cloud_images(item)[0]


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
