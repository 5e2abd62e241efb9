"""The first step of a debug recipe, taken apart: model, batch, guidance, loss."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import torch
from torch import Tensor

from datasets import DATASETS, Batches, build_dataset
from models import MODELS, build_model
from segmentation.runner import segmentation_step
from tests.runs import quiet_run
from tools.augment import augment
from tools.context import RunContext
from tools.engine import autocast
from tools.evaluate import training_points
from tools.finetune import classification_step
from tools.guides import Guide, build_guide
from tools.pretrain import pretraining_step
from tools.steps import Step
from utils.config.load import load_config
from utils.files import save_checkpoint
from utils.seed import generator

RECIPES = Path(__file__).parent.parent / "cfgs"
# Every method, GM3D with and without distillation.
STEPS = (
    "point-mae",
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
    make: Callable[..., Step]  # (training, epoch=) -> the step as the runner takes it apart

    @classmethod
    def read(cls, recipe: str, folder: Path, *, size: int, overrides=(), **keys):
        """Build model and batches of a recipe below `cfgs`."""
        config = load_config(RECIPES / f"{recipe}.yaml", overrides=overrides, models=MODELS, datasets=DATASETS)
        torch.manual_seed(0)
        model = build_model(config.model).train()
        batches = Batches(build_dataset(config.dataset.train), batch_size=size, seed=0)
        return cls(config, model, quiet_run(config, folder), batches, **keys)

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

    def parts(self) -> Step:
        """Return the step of epoch 0 as the runner takes it apart."""
        training = SimpleNamespace(
            run=self.run,
            state=SimpleNamespace(model=self.model),
            wrapped=self.model,
            batches=self.batches,
            draw=lambda epoch, batch: partial(generator, 0, epoch, batch.step),
        )
        return self.make(training, epoch=0)

    def loss(self, *, precision: str = "fp32", **given) -> dict[str, Tensor]:
        """Return what the first batch of epoch 0 gives; draws are those of a run."""
        torch.manual_seed(1)
        batch = next(self.batches.epoch(0))
        with autocast(batch.points.device, precision):
            return self.forward(batch, partial(generator, 0, 0, batch.step), **given)


class Pretraining(FirstStep):
    """The first step of pre-training, with its guide."""

    guide: Guide

    @classmethod
    def build(cls, name: str, folder: Path, *, size: int = 4, overrides=()) -> "Pretraining":
        recipe, *distilling = name.split()
        keys = [f"model.guidance.teacher={folder}/teacher.pth", "model.guidance.mode=feature"] if distilling else []
        if distilling:
            config = load_config(RECIPES / "debug" / f"{recipe}.yaml", models=MODELS, datasets=DATASETS)
            torch.manual_seed(2)
            teacher = build_model(config.model.base())
            save_checkpoint(folder / "teacher.pth", {"base_model": teacher.state_dict()})
        step = cls.read(f"debug/{recipe}", folder, size=size, overrides=[*keys, *overrides], make=None)
        step.guide = build_guide(step.run, step.model, step.batches.cloud_set)
        step.make = partial(pretraining_step, guide=step.guide)
        return step

    def to(self, device: str, *, resident: bool) -> "Pretraining":
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


class Supervised(FirstStep):
    """The first step of fine-tuning or of part segmentation."""

    @classmethod
    def build(cls, name: str, folder: Path, *, size: int = 4, overrides=()) -> "Supervised":
        task, method = name.split()
        make = {"fine-tuning": classification_step, "segmentation": segmentation_step}[task]
        return cls.read(f"{task}/{method}/debug", folder, size=size, overrides=overrides, make=make)

    def forward(self, batch, draw) -> dict[str, Tensor]:
        points, given, targets = batch.points, (batch.labels,), batch.parts
        if self.make is classification_step:
            points, given, targets = training_points(points, self.config.npoints, draw("subset")), (), batch.labels
        out = self.model(augment(points, self.config.augmentation, "y", draw("augmentation")), *given)
        return {"loss": self.model.loss(out, targets)}


def first_step(name: str, folder: Path, **keys) -> FirstStep:
    """Build one of `STEPS` or `SUPERVISED`."""
    return (Supervised if name in SUPERVISED else Pretraining).build(name, folder, **keys)


def fix_shapes(step: FirstStep) -> None:
    """Fix the shapes of a model, of its average and of its teacher."""
    for part in step.networks():
        for module in part.modules():
            if hasattr(module, "fixed_shapes"):
                module.fixed_shapes = True
