"""Evaluating classifiers: their predictions on a set, voting over augmented passes; and what a set and a checkpoint must have.

Shapes: `B` batch, `N` points, `M` clouds of a set.
"""

import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from datasets import CloudSet, build_dataset
from datasets.transforms import augment
from models import load_weights
from tools.context import RunContext
from tools.report.predictions import ABOUT, Predictions, class_section, cloud_item, mistakes, of_cells
from tools.sampling import farthest, oversampled, subset
from utils.device import autocast
from utils.errors import UserError
from utils.files import read_checkpoint
from utils.log import track
from utils.metrics import accuracy, confusion_matrix
from utils.seed import generator

_LOG = logging.getLogger("m2ae.evaluate")
PASSES = 10  # augmented passes of a round of voting, as published


@dataclass
class Vote:
    """Rounds of voting on one set: accuracies are fractions, one a round."""

    accuracies: list[float]

    @property
    def mean(self) -> float:
        """The mean accuracy over the rounds."""
        return float(np.mean(self.accuracies))

    @property
    def std(self) -> float:
        """The sample standard deviation over the rounds."""
        return float(np.std(self.accuracies, ddof=1)) if len(self.accuracies) > 1 else 0.0

    @property
    def best(self) -> float:
        """The accuracy of the best round, which is selected on the test set."""
        return max(self.accuracies)

    def row(self) -> dict:
        """Return what metrics.jsonl says of it."""
        return {"rounds": len(self.accuracies), "mean": self.mean, "std": self.std, "max": self.best}

    def __str__(self) -> str:
        text = f"{100 * self.mean:.2f} %"
        if len(self.accuracies) > 1:
            text += f" +- {self.std * 100:.2f} over {len(self.accuracies)} rounds"
            text += f" (best round {100 * self.best:.2f} %, selected on the test set)"
        return text


@dataclass
class Evaluator:
    """Evaluate a classifier on one labelled set.

    What no random number changes is done once: the clouds that validation takes (M, npoints, 3), thinned by farthest
    point sampling, and those that voting draws from.
    """

    run: RunContext
    clouds: CloudSet
    npoints: int | None = None  # points of a cloud in `evaluate`; None = those of the configuration
    _thin: Tensor | None = field(default=None, repr=False)
    _pool: Tensor | None = field(default=None, repr=False)
    predictions: np.ndarray | None = field(default=None, repr=False)  # of the last evaluation, (M,) int64
    probabilities: np.ndarray | None = field(default=None, repr=False)  # likewise, (M, classes) float32

    def __post_init__(self):
        if self.clouds.labels is None:
            raise UserError(
                f"{self.clouds.name} ({self.clouds.subset}): has no labels; a classifier needs a labelled set"
            )

    def evaluate(self, model: nn.Module) -> float:
        """Return the accuracy (a fraction) without augmentation; keeps `predictions` and `probabilities`."""
        if self._thin is None:
            self._thin = self._thinned(self.npoints or self.run.config.npoints)
        logits = _in_evaluation(
            model,
            lambda: torch.cat([self._logits(model, part) for part in track(self._parts(self._thin), "evaluating")]),
        )
        self.predictions, self.probabilities = logits.argmax(1).numpy(), logits.softmax(1).numpy()
        return accuracy(self.predictions, self.clouds.labels)

    def vote(self, model: nn.Module, rounds: int) -> Vote:
        """Classify by the mean logits of ten augmented passes, `rounds` times.

        Each pass draws one random subset of points a batch and augments as training does if that is scale and shift
        or rotation, else by scale and shift, as published for I2P-MAE. A model that votes by groups, Point-JEPA's, takes the clouds that
        `evaluate` takes, draws where its grouping begins, and the mean is that of probabilities.
        """
        if self._pool is None:
            npoints = self.run.config.npoints
            self._pool = self._thinned(npoints if model.votes_by_groups else oversampled(npoints, self.clouds.npoints))
        return _in_evaluation(model, lambda: self._vote(model, rounds))

    def confusion(self) -> tuple[np.ndarray, list[str]]:
        """Return (matrix, class names) of the last evaluation."""
        count = self.run.config.model.cls_dim
        names = list(self.clouds.class_names or [])
        names += [str(label) for label in range(len(names), count)]
        used = max(int(self.predictions.max()), int(self.clouds.labels.max())) + 1
        shown = max(used, len(self.clouds.class_names or []))
        return confusion_matrix(self.predictions, self.clouds.labels, shown), names[:shown]

    def pages(self) -> dict[str, Any]:
        """Return what a report shows of the last evaluation, as keyword arguments of `write_report`: mistakes first."""
        if self.probabilities is None:
            return {}
        clouds = self.clouds
        found = Predictions(
            labels=np.asarray(clouds.labels),
            probabilities=self.probabilities,
            class_names=clouds.class_names or [],
            names=clouds.names or [f"#{row}" for row in range(len(clouds))],
            points=lambda row: self._thin[row].numpy(),
            up_axis=clouds.up_axis,
        )
        first = mistakes(found)
        return {
            "gallery": [cloud_item(found, row) for row in first],
            "galleries": {"cells": [cloud_item(found, row) for row in of_cells(found, first)]},
            "gallery_about": ABOUT,
            "confusion": self.confusion(),
            "sections": [class_section(found)],
        }

    def _vote(self, model: nn.Module, rounds: int) -> Vote:
        votes: list[list[Tensor]] = [[] for _ in range(rounds)]
        parts = self._pool.split(self.run.config.total_bs)
        for index, (step, pool) in track(list(product(range(rounds), enumerate(parts))), "voting"):
            pool, total = pool.to(self.run.device), 0
            for turn in range(PASSES):
                draw = generator(self.run.seed, index, step, f"vote {turn}")
                total = total + self._scores(model, pool, draw)
            votes[index].append(total.argmax(1))
        return Vote([accuracy(torch.cat(found).numpy(), self.clouds.labels) for found in votes])

    def _scores(self, model: nn.Module, pool: Tensor, draw: torch.Generator) -> Tensor:
        """Return what a pass of voting adds up, (B, classes)."""
        if not model.votes_by_groups:
            return self._logits(model, self._augmented(pool, draw))
        with autocast(self.run.device, self.run.config.precision):
            points = model.transform(pool)
            return model(points, pyramid=model.group(points, generator=draw)).float().softmax(1).cpu()

    def _augmented(self, pool: Tensor, draw: torch.Generator) -> Tensor:
        """Return a random subset of the points of each cloud, augmented."""
        config = self.run.config
        kind = "rotate" if config.augmentation == "rotate" else "scale_translate"
        return augment(subset(pool, config.npoints, draw), kind, self.clouds.up_axis, draw, shared=False)

    def _logits(self, model: nn.Module, points: Tensor) -> Tensor:
        with autocast(self.run.device, self.run.config.precision):
            return model(model.transform(points.to(self.run.device))).float().cpu()

    def _parts(self, points: Tensor) -> Sequence[Tensor]:
        return points.split(self.run.config.total_bs)

    def _thinned(self, count: int) -> Tensor:
        """Return all clouds (M, count, 3) on the CPU, thinned by farthest point sampling, in order."""
        check_points(self.clouds, count)
        batches = self.run.batches(self.clouds, self.run.config.total_bs, shuffle=False, drop_last=False)
        shown = track(batches.evaluation(), f"sampling {count} points a cloud", len(batches))
        return torch.cat([farthest(batch.points, count).cpu() for batch in shown])


def _in_evaluation(model: nn.Module, compute):
    """Compute in evaluation mode without gradients, and leave the model in the mode it was in."""
    modes = [module.training for module in model.modules()]
    model.eval()
    try:
        with torch.inference_mode():
            return compute()
    finally:
        for module, mode in zip(model.modules(), modes, strict=True):
            module.training = mode


def load_trained(run: RunContext, model: nn.Module, keys: Sequence[str], *, what: str, remedy: str) -> nn.Module:
    """Load the weights of `--ckpts` into a model whole; the configuration takes `keys`, such as class_names, from there.

    Args:
        what, remedy: of the message: what the model is, and what to give instead.

    Raises:
        UserError: the checkpoint lacks tensors of the model.
    """
    path = run.args.ckpts
    report = load_weights(model, path, base=run.args.start_ckpts)
    if report.missing:
        raise UserError(
            f"{path}: lacks {len(report.missing)} tensors of the {what}, first {report.missing[0]}; {remedy}"
        )
    run.log.info(f"{path}: {report}")
    saved = read_checkpoint(path).get("config")
    for key in keys:
        setattr(run.config, key, (saved.get(key) if isinstance(saved, dict) else None) or getattr(run.config, key))
    if run.args.compile:
        from tools.accelerate import compile_regions

        compile_regions(model)
    return model


def evaluation_set(run: RunContext) -> CloudSet:
    """Return the set that `--test` evaluates on.

    Raises:
        UserError: the configuration has none.
    """
    entry = run.config.dataset.test or run.config.dataset.val
    if entry is None:
        raise UserError("dataset.test: is missing, --test evaluates on it; add the entry, or dataset.val")
    return build_dataset(entry)


def check_points(clouds: CloudSet, npoints: int | None) -> None:
    """Raise where a set has fewer points a cloud than the classifier takes."""
    if npoints is None:
        raise UserError("npoints: is missing; a classifier needs the number of points that it takes, for example 1024")
    if npoints > clouds.npoints:
        raise UserError(
            f"npoints: {npoints} are asked, {clouds.name} ({clouds.subset}) gives {clouds.npoints} points a cloud; "
            f"set npoints to {clouds.npoints} or less"
        )


def check_class_names(names: Sequence[str] | None, clouds: CloudSet, source: str) -> None:
    """Raise where a set names its classes otherwise than `source` does; where either has no names there is nothing to compare.

    Numbers of classes, such as "class 3 of 40", are compared with numbers alone.
    """
    own = clouds.class_names
    if names is None or own is None or list(names) == list(own) or _numbered(names) != _numbered(own):
        return
    label = next((label for label, pair in enumerate(zip(names, own, strict=False)) if pair[0] != pair[1]), None)
    if label is None:
        label = min(len(names), len(own))
    there, here = (repr(known[label]) if label < len(known) else "no class" for known in (names, own))
    raise UserError(
        f"{clouds.name} ({clouds.subset}): its {len(own)} classes are not the {len(names)} of {source}: label {label} is "
        f"{there} there and {here} here. Splits or label sets are mixed up; take the data set that belongs to it"
    )


def _numbered(names: Sequence[str]) -> bool:
    """Say whether all names of classes are numbers that stand for missing names."""
    return all(re.fullmatch(r"class \d+ of \d+", name) for name in names)


def check_classes(clouds: CloudSet, classes: int) -> None:
    """Raise where a set has labels that the head has no output for."""
    if clouds.labels is None:
        raise UserError(f"{clouds.name} ({clouds.subset}): has no labels; a classifier needs a labelled set")
    largest = int(clouds.labels.max())
    if largest >= classes:
        raise UserError(
            f"model.cls_dim: {classes} classes, but {clouds.name} ({clouds.subset}) has label {largest}; "
            f"set model.cls_dim to {len(clouds.class_names) if clouds.class_names else largest + 1}"
        )
    named = len(clouds.class_names) if clouds.class_names else largest + 1
    if classes > named and clouds.subset == "train":
        _LOG.warning(
            "model.cls_dim: %d outputs for the %d classes of %s: %d are never right; set model.cls_dim to %d",
            classes, named, clouds.name, classes - named, named,
        )  # fmt: skip
