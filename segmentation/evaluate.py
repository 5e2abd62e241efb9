"""Evaluating part segmenters: weights, predictions on a labelled set, scores, voting over scaled copies.

Shapes: `B` batch, `N` points, `M` clouds of a set, `C` categories, `P` parts.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn

from datasets import Batches, CloudSet
from datasets.batches import Batch
from datasets.part_table import owned_parts
from datasets.transforms import draw_uniform_scale_offset
from models import build_model
from models.segmenter import restricted_argmax
from segmentation.metrics import PartScores, score_parts
from tools.context import RunContext
from tools.evaluate import PASSES, Vote, load_trained
from utils.device import autocast
from utils.errors import UserError
from utils.log import track
from utils.seed import generator


@dataclass
class PartVote:
    """Rounds of voting: mean IoUs are fractions, one a round."""

    instance: Vote
    classes: Vote

    def row(self) -> dict:
        """Return what metrics.jsonl says of it."""
        return {**self.instance.row(), "class_mean": self.classes.mean, "class_std": self.classes.std}


@dataclass
class PartEvaluator:
    """Evaluate a part segmenter on one labelled set.

    The points of a cloud are drawn once from the seed, as many as in training and, as published, with replacement:
    scores of two epochs, or of two models with one seed, are over the same points.
    """

    run: RunContext
    clouds: CloudSet
    predictions: np.ndarray | None = field(default=None, repr=False)  # of the last evaluation, (M, N) int16
    parts: np.ndarray | None = field(default=None, repr=False)  # (M, N) int16
    scores: PartScores | None = None

    def __post_init__(self):
        self.owned = owned_parts(self.clouds.category_parts, self.clouds.class_names, self.run.config.model.num_parts)
        self.batches = Batches(
            self.clouds,
            batch_size=self.run.config.total_bs,
            seed=self.run.seed,
            device=self.run.device,
            shuffle=False,
            drop_last=False,
        )

    def evaluate(self, model: nn.Module) -> PartScores:
        """Return the scores without augmentation; keeps `predictions`, `parts` and `scores`."""
        self.predictions, self.parts = self._predict(model, self._log_probs, "evaluating")
        self.scores = score_parts(self.predictions, self.parts, self.clouds.labels, self.owned)
        return self.scores

    def vote(self, model: nn.Module, rounds: int) -> PartVote:
        """Evaluate the mean log-probabilities of ten copies of each cloud, each scaled by U[0.8, 1.25], `rounds` times.

        Note: the published programs of part segmentation do not vote; the factors are those of their augmentation.
        """
        scores = []
        for index in range(rounds):
            predictions, parts = self._predict(
                model,
                lambda model, batch, index=index: self._voted(model, batch, index),
                f"voting, round {index + 1} of {rounds}",
            )
            scores.append(score_parts(predictions, parts, self.clouds.labels, self.owned))
        return PartVote(Vote([s.instance_miou for s in scores]), Vote([s.class_miou for s in scores]))

    def points(self, rows: list[int]) -> Iterator[np.ndarray]:
        """Yield the points (N, 3) of these clouds, in ascending order, as `evaluate` takes them."""
        wanted = set(rows)
        for batch in self.batches.evaluation():
            for place, row in enumerate(batch.indices.tolist()):
                if row in wanted:
                    yield batch.points[place].cpu().numpy()

    def _predict(
        self, model: nn.Module, log_probs: Callable[[nn.Module, Batch], Tensor], what: str
    ) -> tuple[np.ndarray, np.ndarray]:
        owned = torch.from_numpy(self.owned).to(self.run.device)
        was_training = model.training
        model.eval()
        predictions, parts = [], []
        with torch.inference_mode():
            for batch in track(self.batches.evaluation(), what, len(self.batches)):
                found = restricted_argmax(log_probs(model, batch), owned[batch.labels])
                predictions.append(found.to(torch.int16).cpu())
                parts.append(batch.parts.to(torch.int16).cpu())
        model.train(was_training)
        return torch.cat(predictions).numpy(), torch.cat(parts).numpy()

    def _log_probs(self, model: nn.Module, batch: Batch, points: Tensor | None = None) -> Tensor:
        with autocast(self.run.device, self.run.config.precision):
            return model(model.transform(batch.points if points is None else points), batch.labels)

    def _voted(self, model: nn.Module, batch: Batch, index: int) -> Tensor:
        total = 0
        for turn in range(PASSES):
            draw = generator(self.run.seed, index, batch.step, f"vote {turn}")
            scale, _ = draw_uniform_scale_offset(len(batch.points), generator=draw)
            total = total + self._log_probs(model, batch, batch.points * scale.to(batch.points)[:, None])
        return total


def build_segmenter(run: RunContext) -> nn.Module:
    """Build the part segmenter of a configuration on the device of the run."""
    return build_model(run.config.model).to(run.device)


def load_segmenter(run: RunContext) -> nn.Module:
    """Build the segmenter of a configuration with the weights of `--ckpts`; the configuration takes names from there.

    Raises:
        UserError: the checkpoint is not one of this segmenter whole.
    """
    keys = ("class_names", "part_names", "category_parts")
    remedy = "give a checkpoint that was trained with a recipe of cfgs/segmentation/"
    return load_trained(run, build_segmenter(run), keys, what="part segmenter", remedy=remedy)


def check_set(clouds: CloudSet, run: RunContext) -> None:
    """Raise where a set cannot be segmented by the model of a configuration, or names its parts otherwise.

    Raises:
        UserError: naming the key and what it should be.
    """
    where, config = f"{clouds.name} ({clouds.subset})", run.config
    if clouds.part_labels is None or clouds.labels is None or not clouds.category_parts:
        raise UserError(f"{where}: has no part labels; use ShapeNetPart, a set in its layout, or Synthetic")
    largest = max(max(parts) for parts in clouds.category_parts.values())
    needed = {"num_parts": largest + 1, "num_categories": len(clouds.class_names)}
    for key, least in needed.items():
        if getattr(config.model, key) < least:
            full = {**needed, "num_parts": max(largest + 1, len(clouds.part_names))}
            remedy = " ".join(f"--set model.{name}={value}" for name, value in full.items())
            raise UserError(f"model.{key}: {getattr(config.model, key)}, but {where} needs {least}; use {remedy}")
    groups = getattr(config.model, "num_groups", None) or [config.model.num_group]
    if clouds.npoints < groups[0]:
        raise UserError(
            f"{where}: {clouds.npoints} points a cloud are fewer than the {groups[0]} groups of the model; raise npoints"
        )
    for key, own in table_of(clouds).items():
        kept = getattr(config, key)
        if kept is not None and kept != own:
            raise UserError(
                f"{where}: its {key} are not those of {run.args.ckpts if run.args.test else 'the configuration'}; "
                "splits or sets are mixed up, take the set that belongs to it"
            )


def table_of(clouds: CloudSet) -> dict:
    """Return what a checkpoint says of categories and parts, by key of the configuration."""
    parts = {name: [int(part) for part in ids] for name, ids in clouds.category_parts.items()}
    return {"class_names": list(clouds.class_names), "part_names": list(clouds.part_names), "category_parts": parts}
