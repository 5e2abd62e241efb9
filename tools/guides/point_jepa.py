"""The guide of Point-JEPA: the teacher follows the student; what the report shows of order, blocks and predictions.

Shapes: `B` clouds, `N` points, `G` groups, `M` target blocks of `k` positions.
"""

from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from datasets.clouds import CloudSet
from extensions import knn
from models.point_jepa import PointJEPA
from tools.context import RunContext
from tools.gallery_items import alone, chosen_clouds, describe
from tools.guides.base import Guide
from tools.report.charts import Series, line_chart
from tools.report.page import GalleryItem, Section
from tools.report.runlog import curve, read_metrics
from utils.seed import generator

ABOUT = (
    "Order, blocks and predictions",
    "Order: the place of the nearest patch in the order, first to last. Similarity: the cosine between what the predictor says of a patch "
    "of a target block and the teacher's features of it, a mean over the blocks that hold it. Blocks: what the context and the target "
    "blocks cover; a patch that is in none is left over.",
)
LEGEND = ("context", "target", "left over")


class LatentGuide(Guide):
    """Let the teacher follow the student after each step.

    Args:
        steps: updates over which the momentum rises.
    """

    def __init__(self, model: PointJEPA, folder: Path, steps: float):
        self.model, self.folder, self.steps = model, folder, steps

    def after_update(self) -> None:
        """Let the teacher follow the student."""
        config = self.model.config
        self.model.teacher.follow(config.ema_tau_min, config.ema_tau_max, self.steps)

    def sections(self, model: nn.Module) -> list[Section]:
        """Return the spread of the features, epoch by epoch."""
        log = read_metrics(self.folder / "metrics.jsonl")
        if not log.epochs:
            return []
        names = {"log_target_std": "teacher", "log_pred_std": "predictions"}
        spread = [Series(text, *curve(log.epochs, name), color=i) for i, (name, text) in enumerate(names.items())]
        rank = Series("teacher", *curve(log.epochs, "log_target_rank"))
        charts = line_chart(spread, title="Standard deviation over tokens", y_label="mean over channels", floor=0)
        charts += line_chart([rank], title="Rank of the covariance", y_label="dimensions in use", floor=0)
        lead = "Both fall where features collapse: to 0, and to 1."
        return [Section("Features of the teacher", f'<div class="charts">{charts}</div>', lead)]


@torch.inference_mode()
def gallery(
    model: PointJEPA,
    clouds: CloudSet,
    seed: int,
    device: torch.device,
    *,
    count: int = 8,
    guidance: Callable = alone,
) -> list[GalleryItem]:
    """Return two rows for each of `count` clouds of a set: order and similarity, and the blocks; in evaluation mode."""
    was_training = model.training
    model.eval()
    chosen, points = chosen_clouds(clouds, count, seed, device)
    points = model.transform(points)
    pyramid = model.group(points)
    out = model(points, **guidance(pyramid, generator(seed, 0, 0, "gallery")))
    model.train(was_training)

    order, groups = out["order"], out["order"].shape[1]
    nearest = knn(points, pyramid.centers[0], 1)[1].squeeze(-1)  # (B, N)
    place = order.argsort(1).gather(1, nearest)  # (B, N), of each point's group in the order
    roles = torch.full((groups,), LEGEND.index("left over"), device=order.device)
    roles[out["context"]] = LEGEND.index("context")
    roles[out["targets"].flatten()] = LEGEND.index("target")
    similarity = target_similarity(out, groups)  # (B, G)
    items = []
    for row, index in enumerate(chosen):
        about, at = describe(clouds, index), place[row]
        inside = roles[at] == LEGEND.index("target")
        shown = {"order": points[row], "similarity": points[row][inside]}
        values = {"order": at / max(groups - 1, 1), "similarity": similarity[row][at[inside]]}
        items.append(
            GalleryItem(
                clouds=_on_host(shown), values=_on_host(values), value_name="place in the order, similarity", **about
            )
        )
        blocks, role = {"blocks": points[row]}, {"blocks": roles[at]}
        items.append(GalleryItem(clouds=_on_host(blocks), values=_on_host(role), legend=LEGEND, **about))
    return items


def target_similarity(out: dict[str, Tensor], groups: int) -> Tensor:
    """Return the cosine of predictions and targets (B, G) by place in the order, 0 outside the target blocks."""
    cosine = F.cosine_similarity(out["prediction"].float(), out["target"].float(), dim=-1)  # (M, B, k)
    places = out["targets"].flatten()
    sums = cosine.new_zeros(cosine.shape[1], groups).index_add(1, places, cosine.transpose(0, 1).flatten(1))
    return sums / places.bincount(minlength=groups).clamp_min(1)


def _on_host(tensors: dict[str, Tensor]) -> dict:
    return {name: values.cpu().numpy() for name, values in tensors.items()}


def build(run: RunContext, model: PointJEPA, clouds: CloudSet) -> LatentGuide:
    """Start the teacher as the student is, unless it has followed one already, and count the updates of an epoch."""
    if model.teacher.updates == 0:
        model.teacher.copy_student()
    steps = len(run.batches(clouds, run.config.total_bs)) / run.config.step_per_update
    return LatentGuide(model, run.folder, max(steps * model.config.ema_tau_epochs, 1))
