"""The first step of a debug recipe, taken apart: model, batch, guidance, loss."""

import contextlib
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from datasets import DATASETS, Batches, build_dataset
from datasets.transforms import augment
from extensions import visible_first
from models import MODELS, build_model
from models.layers import packing
from segmentation.runner import PartSegmentation
from tests.runs import quiet_run
from tools.context import RunContext
from tools.finetune import Classification
from tools.guides.base import Guide, build_guide
from tools.pretrain import pretraining
from tools.sampling import training_points
from tools.supervised import Sets
from tools.train import Task
from utils.config.load import load_config
from utils.device import autocast
from utils.files import save_checkpoint
from utils.seed import generator

RECIPES = Path(__file__).parent.parent / "cfgs"
# Every method, GM3D with and without distillation.
STEPS = (
    "point-mae",
    "pcp-mae",
    "point-m2ae",
    "i2p-mae",
    "inter-mae",
    "gm3d",
    "gm3d distilling",
    "gm3d-point-m2ae",
    "gm3d-point-m2ae distilling",
)
HIERARCHICAL = tuple(name for name in STEPS if "m2ae" in name or "i2p" in name)
# Every classifier and part segmenter that has a debug recipe; other segmenters have the encoder of one of these.
SUPERVISED = (
    *(f"fine-tuning {method}" for method in ("point-mae", "point-m2ae", "i2p-mae", "inter-mae", "gm3d", "gm3d-point-m2ae")),
    *(f"segmentation {method}" for method in ("point-mae", "point-m2ae", "inter-mae")),
)  # fmt: skip


@dataclass
class FirstStep:
    """What a run of a debug recipe does first, on the CPU."""

    config: object
    model: torch.nn.Module
    run: RunContext
    batches: Batches
    task: Task | None = None  # what the command trains

    @classmethod
    def read(cls, recipe: str, folder: Path, *, size: int, overrides=()):
        """Build model and batches of a recipe below `cfgs`."""
        config = load_config(RECIPES / f"{recipe}.yaml", overrides=overrides, models=MODELS, datasets=DATASETS)
        torch.manual_seed(0)
        model = build_model(config.model).train()
        batches = Batches(build_dataset(config.dataset.train), batch_size=size, seed=0)
        return cls(config, model, quiet_run(config, folder), batches)

    def to(self, device: str, *, resident: bool) -> "FirstStep":
        """Move all that a step needs to a device; with `resident`, the set of clouds too."""
        self.run.device = self.batches.device = torch.device(device)
        for part in self.networks():
            part.to(device)
        if resident:
            self.batches.points = self.batches.points.to(device)
        return self

    def networks(self) -> list[torch.nn.Module]:
        return [self.model]

    def inputs(self) -> dict:
        """Return what the task makes of the first batch of epoch 0."""
        batch = next(self.batches.epoch(0))
        return self.task.complete(batch, 0, self.task.prepare(batch, 0))

    def loss(self, *, precision: str = "fp32", **given) -> dict[str, Tensor]:
        """Return what the first batch of epoch 0 gives; draws are those of a run."""
        torch.manual_seed(1)
        batch = next(self.batches.epoch(0))
        with autocast(batch.points.device, precision):
            return self.forward(batch, partial(generator, 0, 0, batch.step), **given)


class PretrainingStep(FirstStep):
    """The first step of pre-training, with its guide."""

    guide: Guide

    @classmethod
    def build(cls, name: str, folder: Path, *, size: int = 4, overrides=()) -> "PretrainingStep":
        recipe, *distilling = name.split()
        keys = [f"model.guidance.teacher={folder}/teacher.pth", "model.guidance.mode=feature"] if distilling else []
        if distilling:
            config = load_config(RECIPES / "debug" / f"{recipe}.yaml", models=MODELS, datasets=DATASETS)
            torch.manual_seed(2)
            teacher = build_model(config.model.base())
            save_checkpoint(folder / "teacher.pth", {"base_model": teacher.state_dict()})
        step = cls.read(f"debug/{recipe}", folder, size=size, overrides=[*keys, *overrides])
        clouds = step.batches.cloud_set
        guide = build_guide(step.run, step.model, clouds)
        step.task = pretraining(step.run, step.model, clouds, guide)
        step.guide = guide or Guide()
        return step

    def to(self, device: str, *, resident: bool) -> "PretrainingStep":
        if hasattr(self.guide, "_watched"):
            self.guide._watched = self.guide._watched.to(device)
        return super().to(device, resident=resident)

    def networks(self) -> list[torch.nn.Module]:
        teacher = getattr(self.guide, "teacher", None)
        beside = (self.model, self.guide.ema, getattr(teacher, "model", teacher))
        return [part for part in beside if part is not None]

    def forward(self, batch, draw, *, masked=None) -> dict[str, Tensor]:
        points = augment(batch.points, self.config.augmentation, "y", draw("augmentation"))
        guidance = self.guide.prepare(points, batch, epoch=0, draw=draw)
        if masked is not None:
            guidance["masked"] = masked
        return self.model(points, generator=draw("mask"), **guidance)


class SupervisedStep(FirstStep):
    """The first step of fine-tuning or of part segmentation."""

    @classmethod
    def build(cls, name: str, folder: Path, *, size: int = 4, overrides=()) -> "SupervisedStep":
        task, method = name.split()
        step = cls.read(f"{task}/{method}/debug", folder, size=size, overrides=overrides)
        kind = {"fine-tuning": Classification, "segmentation": PartSegmentation}[task]
        step.task = kind(step.run, step.model, Sets(step.batches.cloud_set, None))
        return step

    def forward(self, batch, draw) -> dict[str, Tensor]:
        points, given, targets = batch.points, (batch.labels,), batch.parts
        if isinstance(self.task, Classification):
            points, given, targets = training_points(points, self.config.npoints, draw("subset")), (), batch.labels
        out = self.model(augment(points, self.config.augmentation, "y", draw("augmentation")), *given)
        return {"loss": self.model.loss(out, targets)}


def first_step(name: str, folder: Path, **keys) -> FirstStep:
    """Build one of `STEPS` or `SUPERVISED`."""
    return (SupervisedStep if name in SUPERVISED else PretrainingStep).build(name, folder, **keys)


def roomy(visible: Tensor, room: int, *, tight: bool = False) -> tuple[Tensor, Tensor]:
    """Plan a packing as `visible_first` does on a GPU, where no mask changes shapes."""
    if tight:
        return visible_first(visible, room, tight=True)
    order = (~visible).to(torch.uint8).argsort(dim=1, stable=True)[:, :room]
    return order, torch.arange(room, device=visible.device) < visible.sum(1, keepdim=True)


@contextlib.contextmanager
def fixed_shapes():
    """Give packed tokens the room that they have on a GPU."""
    packing.visible_first = roomy
    try:
        yield
    finally:
        packing.visible_first = visible_first
