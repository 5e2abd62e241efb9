"""Evaluating detectors: weights, detections on a labelled set, scores.

Shapes: `B` scenes of a batch, `K` predicted boxes, `C` classes.
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import nn

from datasets.clouds import CloudSet
from detection.detections import Rules, detections, kept_boxes
from detection.inputs import Inputs, evaluation_batches
from detection.metrics import THRESHOLDS, AveragePrecision, SceneResult, average_precision
from models import build_model
from models.detection.boxes import box_corners
from models.detr import Detector
from tools.context import RunContext
from tools.evaluate import load_trained
from utils.device import autocast
from utils.errors import UserError
from utils.log import track


@dataclass
class DetectionEvaluator:
    """Evaluate a detector on one labelled set; the points of a scene are drawn once from the seed.

    Attributes:
        scenes: what the last evaluation knows of each scene.
        scores: its average precision by threshold.
    """

    run: RunContext
    clouds: CloudSet
    rules: Rules = field(default_factory=Rules)
    scenes: list[SceneResult] = field(default_factory=list, repr=False)
    scores: dict[float, AveragePrecision] | None = field(default=None, repr=False)

    def evaluate(self, model: nn.Module, turn: int = 0) -> dict[str, float]:
        """Return AP25, AP50 and the mean recalls, shares of 1; `turn` chooses other points of each scene."""
        config, found = self.run.config, []
        batches = evaluation_batches(
            self.clouds,
            config.total_bs,
            seed=self.run.seed,
            turn=turn,
            color=config.model.use_color,
            device=self.run.device,
        )
        total = -(-len(self.clouds) // config.total_bs)
        for inputs in track(batches, "evaluating", total):
            found += scene_results(inputs, predict(self.run, model, inputs), self.rules)
        self.scenes = found
        classes = config.model.num_classes
        self.scores = {threshold: average_precision(found, classes, threshold) for threshold in THRESHOLDS}
        row = {}
        for threshold, score in self.scores.items():
            row |= {f"ap{100 * threshold:.0f}": score.mean, f"ar{100 * threshold:.0f}": score.mean_recall}
        return {key: float(np.nan_to_num(value)) for key, value in row.items()}


def predict(run: RunContext, model: nn.Module, inputs: Inputs) -> dict[str, np.ndarray]:
    """Return what a detector makes of a batch, in evaluation mode; the model is left in the mode it was in.

    Returns:
        "corners" (B, K, 8, 3), "objectness" (B, K), "probabilities" (B, K, C), float32.
    """
    was_training = model.training
    model.eval()
    with torch.inference_mode(), autocast(run.device, run.config.precision):
        out = model(inputs.points, inputs.extent, colors=inputs.colors)["outputs"]
    model.train(was_training)
    keys = {"corners": "box_corners", "objectness": "objectness_prob", "probabilities": "sem_cls_prob"}
    return {name: out[key].float().cpu().numpy() for name, key in keys.items()}


def scene_results(inputs: Inputs, predicted: dict[str, np.ndarray], rules: Rules) -> list[SceneResult]:
    """Return what an evaluation needs to know of each scene of a batch."""
    wanted = {key: value.cpu() for key, value in inputs.targets.items()}
    corners = box_corners(wanted["gt_box_centers"], wanted["gt_box_sizes"]).numpy()
    labels, counts = wanted["gt_box_sem_cls_label"].numpy(), wanted["gt_box_present"].sum(1).long().tolist()
    results = []
    for row, points in enumerate(inputs.points.cpu().numpy()):
        own = {name: values[row] for name, values in predicted.items()}
        kept = kept_boxes(points, own["corners"], own["objectness"], own["probabilities"], rules)
        found = detections(kept, own["objectness"], own["probabilities"], rules)
        count = counts[row]
        results.append(SceneResult(found, own["corners"], corners[row, :count], labels[row, :count]))
    return results


def build_detector(run: RunContext) -> nn.Module:
    """Build the detector of a configuration on the device of the run."""
    model = build_model(run.config.model)
    if not isinstance(model, Detector):
        raise UserError(f"model.NAME: {run.config.model.NAME} does not detect; use a recipe of cfgs/detection/")
    return model.to(run.device)


def load_detector(run: RunContext) -> nn.Module:
    """Build the detector of a configuration with the weights of `--ckpts`; the configuration takes class names from there.

    Raises:
        UserError: the checkpoint is not one of this detector whole.
    """
    remedy = "give a checkpoint that was trained with a recipe of cfgs/detection/"
    return load_trained(run, build_detector(run), ("class_names",), what="detector", remedy=remedy)


def check_set(clouds: CloudSet, run: RunContext) -> None:
    """Raise where a detector of a configuration cannot be trained or evaluated on a set, or a checkpoint names other classes.

    Raises:
        UserError: naming the scene or the key, and what it should be.
    """
    where, model = f"{clouds.name} ({clouds.subset})", run.config.model
    if clouds.boxes is None:
        raise UserError(f"{where}: has no boxes; use ScanNet or SyntheticScenes")
    if not clouds.box_counts.any():
        raise UserError(f"{where}: none of its {len(clouds)} scenes has a box; there is nothing to detect")
    if len(clouds.class_names) != model.num_classes:
        raise UserError(
            f"model.num_classes: {model.num_classes}, but {where} has {len(clouds.class_names)} classes; use --set "
            f"model.num_classes={len(clouds.class_names)}"
        )
    if clouds.npoints < model.preenc_npoints:
        raise UserError(
            f"{where}: {clouds.npoints} points a scene are fewer than the {model.preenc_npoints} centres of the model; raise npoints, or "
            "lower model.preenc_npoints"
        )
    counts = np.full(len(clouds), clouds.points.shape[1]) if clouds.counts is None else clouds.counts
    small = int(counts.argmin())
    if counts[small] < model.preenc_npoints:
        raise UserError(
            f"{where}: {clouds.names[small]} has {counts[small]} points, fewer than the {model.preenc_npoints} centres of the model; take "
            "it off the list, or lower model.preenc_npoints"
        )
    if model.use_color and clouds.colors is None:
        raise UserError(f"{where}: has no colours; set model.use_color to false")
    kept = run.config.class_names
    if kept is not None and list(kept) != list(clouds.class_names):
        raise UserError(
            f"{where}: its classes are not those of {run.args.ckpts if run.args.test else 'the configuration'}; take the set that belongs "
            "to it"
        )


def table_of(clouds: CloudSet) -> dict[str, Any]:
    """Return what a checkpoint says of classes, by key of the configuration."""
    return {"class_names": list(clouds.class_names)}
