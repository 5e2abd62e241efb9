"""Encode any clouds and meshes with a checkpoint: the model, what it expects of a cloud, files to features.

Shapes: `M` clouds, `B` clouds of one size, `n` points of a cloud, `C` channels of a feature.
"""

import logging
import os
import time
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from datasets import DATASETS
from datasets.formats.cloud_files import BadFiles, read_cloud
from datasets.formats.points import Notes, upright
from datasets.transforms import normalize_unit_sphere
from models import MODELS, build_model, load_weights
from models.classifier import Classifier
from models.segmenter import PartSegmenter
from models.weights import method_of, state_dict_of
from tools.launch import load_recipe
from tools.sampling import farthest, points_needed, points_taken, repeat_points
from utils.config.load import saved_config
from utils.config.schema import RunConfig
from utils.device import autocast
from utils.errors import UserError, printable
from utils.files import read_checkpoint

SURFACE_POINTS = 8192  # drawn of a mesh, or as many as the model sees where that is more
Placing = Literal["sphere", "centre", "stored"]
REPORT_SECONDS = 10.0  # between two lines of progress
_LOG = logging.getLogger("m2ae.embed")


@dataclass
class Embedder:
    """A model with what it expects of a cloud."""

    model: nn.Module
    config: RunConfig
    device: torch.device
    placing: Placing = "sphere"  # where clouds are put: "sphere" = centred, in the unit sphere; "centre" = centred; "stored" = not moved

    def __post_init__(self):
        self.classifies = isinstance(self.model, Classifier)
        self.npoints = points_taken(self.config)  # None = all
        self.needed = points_needed(self.config.model)
        self.precision = self.config.precision

    def fit(self, points: np.ndarray) -> Tensor:
        """Bring the points (n, 3) of one file to what the model takes: (n', 3) float32 on the device.

        More than `npoints` are thinned by farthest point sampling, as --test does; fewer are taken as they are, and repeated
        where they are too few for the groups.
        """
        cloud = self.place(points)[None]  # (1, n, 3)
        count = min(self.npoints or cloud.shape[1], cloud.shape[1])
        # What --test shows a classifier has passed the sampling also where all points are asked: it skips those at the origin.
        if self.classifies or count < cloud.shape[1]:
            cloud = farthest(cloud, count)
        return cloud[0] if count >= self.needed else repeat_points(cloud[0], self.needed)

    def place(self, points: np.ndarray) -> Tensor:
        """Bring all points (n, 3) of one file into the frame of the model: (n, 3) float32 on the device."""
        if self.placing != "stored":
            # In double precision: map coordinates are large, and single precision would round their differences.
            points = points - points.mean(axis=0)
        cloud = torch.from_numpy(points.astype(np.float32)).to(self.device)
        return normalize_unit_sphere(cloud[None])[0] if self.placing == "sphere" else cloud

    def __call__(self, points: Tensor) -> tuple[np.ndarray, np.ndarray | None]:
        """Encode clouds (B, n, 3) as features (B, C), and with a classifier probabilities (B, classes), float32."""
        with torch.inference_mode(), autocast(self.device, self.precision):
            if not self.classifies:
                return self.model.encode(points).float().cpu().numpy(), None
            features = self.model.features(self.model.transform(points))
            logits = self.model.head(features)
        return features.float().cpu().numpy(), logits.float().softmax(dim=1).cpu().numpy()


@dataclass
class Embedding:
    """What came out for M clouds, in their order."""

    names: list[str]
    features: np.ndarray  # (M, C) float32
    probabilities: np.ndarray | None = None  # (M, classes) float32, of a classifier
    repeated: list[str] = field(default_factory=list)  # names of clouds that had too few points


def open_embedder(
    ckpts: str | Path,
    *,
    config: str | Path | None = None,
    overrides: Sequence[str] = (),
    normalize: bool | None = None,
    device: torch.device | str = "cpu",
    base: str | Path | None = None,
    parts: bool = False,
) -> Embedder:
    """Build the model of a checkpoint with its weights.

    Args:
        config: recipe of the model; a checkpoint of ours holds its own, a published pre-trained one shows its method by its keys.
        overrides: "key.path=value" each, over the configuration.
        normalize: centre clouds and scale them to the unit sphere, or leave them as they are; None = as the training set did.
        base: of a checkpoint that holds only what tuning trained: where its base is, if not where it was.
        parts: take part segmenters too.

    Raises:
        UserError: the checkpoint has no configuration and none is given, does not fit it, or is of a model without features.
    """
    resolved, guess = configuration_of(ckpts, read_checkpoint(ckpts), config, overrides)
    model = build_model(resolved.model)
    if (isinstance(model, PartSegmenter) and not parts) or not hasattr(model, "encode"):
        raise UserError(
            f"{ckpts}: {resolved.model.NAME} has no feature of a whole cloud; give a pre-trained model or a classifier"
        )
    try:
        report = load_weights(model, ckpts, base=base)
    except UserError as error:
        if guess is None:
            raise
        raise UserError(f"{error}; {guess} was taken by its keys, give its own recipe with --config") from error
    if isinstance(model, Classifier) and report.missing:
        raise UserError(
            f"{ckpts}: lacks {len(report.missing)} tensors of the classifier {resolved.model.NAME}, first {report.missing[0]}; "
            "give the recipe that it was trained with, one of cfgs/pre-training/ for a pre-trained model"
        )
    _LOG.info("%s: %s", ckpts, report)
    placing = placing_of(resolved) if normalize is None else ("sphere" if normalize else "stored")
    device = torch.device(device)
    return Embedder(model.eval().to(device), resolved, device, placing)


def embed_files(
    embedder: Embedder,
    files: Sequence[Path],
    names: Sequence[str],
    *,
    batch_size: int = 32,
    up: str = "y",
    bad: BadFiles | None = None,
) -> Embedding:
    """Read and encode files, those that come to the same number of points together; `names` say which cloud is which.

    Args:
        up: axis of the clouds that points up and becomes y.
        bad: collects files that cannot be read and passes over them; without it the first one ends the work.

    Raises:
        UserError: a file cannot be read, or its features are not finite.
    """
    bad, notes = bad or BadFiles(skip=False), Notes()
    rows: dict[int, tuple] = {}
    repeated: list[str] = []
    waiting: dict[int, list[tuple[int, Tensor]]] = {}  # by number of points

    def encode(batch: list[tuple[int, Tensor]]) -> None:
        features, probabilities = embedder(torch.stack([points for _, points in batch]))
        for row, (index, _) in enumerate(batch):
            rows[index] = features[row], None if probabilities is None else probabilities[row]

    told = time.monotonic()
    surface = max(SURFACE_POINTS, embedder.npoints or 0)
    for index, (file, name) in enumerate(zip(files, names, strict=True)):
        try:
            points = read_cloud(file, surface_points=surface, seed=zlib.crc32(os.fsencode(name)), notes=notes)
            cloud = embedder.fit(upright(points, up))
        except UserError as error:
            bad.add(error)
            continue
        if len(points) < embedder.needed:
            repeated.append(printable(name))
        batch = waiting.setdefault(len(cloud), [])
        batch.append((index, cloud))
        if len(batch) == batch_size:
            encode(waiting.pop(len(cloud)))
        if time.monotonic() - told > REPORT_SECONDS:
            told = time.monotonic()
            _LOG.info("%d of %d clouds", index + 1, len(files))
    for batch in waiting.values():
        encode(batch)
    notes.tell()
    return _collect(embedder, rows, files, names, repeated)


def _collect(
    embedder: Embedder, rows: dict[int, tuple], files: Sequence[Path], names: Sequence[str], repeated: list[str]
) -> Embedding:
    """Join what came out for the clouds that could be read, in their order.

    Raises:
        UserError: a feature or probability is not finite.
    """
    done = sorted(rows)
    for index in done:
        if not all(np.isfinite(part).all() for part in rows[index] if part is not None):
            raise UserError(
                f"{printable(files[index])}: its features are not finite; with weights that are, precision fp32 and clouds of usual "
                "extent (--normalize) they would be"
            )
    if not done:
        return Embedding([], np.empty((0, 0), np.float32), None, [])
    features, probabilities = zip(*(rows[index] for index in done), strict=True)
    whole = np.stack(probabilities) if embedder.classifies else None
    return Embedding([printable(names[index]) for index in done], np.stack(features), whole, repeated)


def _saved_config(checkpoint: dict) -> dict | None:
    """Return the configuration of a run that the checkpoint holds, None where it is a published one."""
    saved = checkpoint.get("config")
    return saved if isinstance(saved, dict) and "model" in saved else None


def _published_recipe(ckpts: str | Path, checkpoint: dict) -> str:
    """Return the recipe of a published pre-training checkpoint, found by its keys.

    Raises:
        UserError: it is of no known method, or a classifier, whose recipe depends on the data set.
    """
    method = method_of(checkpoint)
    classifies = any(key.startswith(("cls_head_finetune.", "cls_head.")) for key in state_dict_of(checkpoint))
    if method is None or classifies:
        kind = f"fine-tuning/{method}/modelnet40" if method and classifies else f"pre-training/{method or 'point-m2ae'}"
        raise UserError(
            f"{ckpts}: says nothing about its {'data set' if classifies else 'model'}, as published checkpoints do; "
            f"give its recipe, for example --config cfgs/{kind}.yaml"
        )
    recipe = f"cfgs/pre-training/{method}.yaml"
    _LOG.info("%s: %s, by its keys; taking %s", ckpts, method, recipe)
    return recipe


def configuration_of(
    ckpts: str | Path, checkpoint: dict, path: str | Path | None = None, overrides: Sequence[str] = ()
) -> tuple[RunConfig, str | None]:
    """Load the recipe that is given, else the configuration that the checkpoint holds, else the published recipe that its keys show.

    Returns:
        the configuration, and the recipe where it was taken by the keys.

    Raises:
        UserError: nothing says what the model is.
    """
    saved = _saved_config(checkpoint)
    if path is None and saved is not None:
        where = f"{ckpts}: config"
        return saved_config(saved, where, overrides=overrides, models=MODELS, datasets=DATASETS), None
    guess = _published_recipe(ckpts, checkpoint) if path is None else None
    config = load_recipe(guess or path, overrides=overrides, method=method_of(checkpoint))
    names = checkpoint.get("config")
    config.class_names = config.class_names or (names.get("class_names") if isinstance(names, dict) else None)
    return config, guess


def placing_of(config: RunConfig) -> Placing:
    """Say what the training set does to its clouds: ScanObjectNN's are as scanned, and own data may only be centred.

    The other sets are in the unit sphere as they are stored, whatever their key `normalize` says.
    """
    entry = config.dataset.train
    if getattr(entry, "normalize", True):
        return "sphere"
    if entry.NAME.startswith("ScanObjectNN"):
        return "stored"
    return "centre" if entry.NAME == "Folder" else "sphere"
