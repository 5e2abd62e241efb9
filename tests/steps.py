"""The first step of a debug recipe, taken apart: model, batch, guidance, loss."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import torch

from datasets import DATASETS, Batches, build_dataset
from models import MODELS, build_model
from tests.runs import quiet_run
from tools import runner_pretrain
from tools.augment import augment
from tools.context import RunContext
from tools.engine import autocast
from tools.guides import Guide, build_guide
from tools.steps import Step
from utils.checkpoint import save_checkpoint
from utils.config import load_config
from utils.seed import generator

RECIPES = Path(__file__).parent.parent / "cfgs" / "debug"
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


@dataclass
class FirstStep:
    """What a run of a debug recipe does first, on the CPU."""

    config: object
    model: torch.nn.Module
    guide: Guide
    guide_run: RunContext
    batches: Batches

    @classmethod
    def build(cls, name: str, folder: Path, *, size: int = 4, overrides=()) -> "FirstStep":
        recipe, *distilling = name.split()
        keys = [f"model.guidance.teacher={folder}/teacher.pth", "model.guidance.mode=feature"] if distilling else []
        config = load_config(
            RECIPES / f"{recipe}.yaml", overrides=[*keys, *overrides], models=MODELS, datasets=DATASETS
        )
        if distilling:
            torch.manual_seed(2)
            teacher = build_model(config.model.base())
            save_checkpoint(folder / "teacher.pth", {"base_model": teacher.state_dict()})
        torch.manual_seed(0)
        model = build_model(config.model).train()
        clouds = build_dataset(config.dataset.train)
        run = quiet_run(config, folder)
        guide = build_guide(run, model, clouds)
        return cls(config, model, guide, run, Batches(clouds, batch_size=size, seed=0))

    def to(self, device: str, *, resident: bool) -> "FirstStep":
        """Move all that a step needs to a device; with `resident`, the set of clouds too."""
        self.guide_run.device = torch.device(device)
        teacher = getattr(self.guide, "teacher", None)
        for part in (self.model, self.guide.ema, getattr(teacher, "model", teacher)):
            if part is not None:
                part.to(device)
        if hasattr(self.guide, "_watched"):
            self.guide._watched = self.guide._watched.to(device)
        self.batches.device = torch.device(device)
        if resident:
            self.batches.points = self.batches.points.to(device)
        return self

    def parts(self) -> Step:
        """Return the step of epoch 0 as the runner takes it apart."""
        training = SimpleNamespace(
            run=self.guide_run,
            state=SimpleNamespace(model=self.model),
            wrapped=self.model,
            batches=self.batches,
            draw=lambda epoch, batch: partial(generator, 0, epoch, batch.step),
        )
        return runner_pretrain.pretraining_step(training, self.guide, 0)

    def loss(self, *, precision: str = "fp32", masked=None) -> dict[str, torch.Tensor]:
        """Return what the first batch of epoch 0 gives; draws are those of a run."""
        torch.manual_seed(1)
        batch = next(self.batches.epoch(0))
        draw = partial(generator, 0, 0, batch.step)
        points = augment(batch.points, self.config.augmentation, "y", draw("augmentation"))
        with autocast(points.device, precision):
            guidance = self.guide.prepare(points, batch, epoch=0, draw=draw)
            if masked is not None:
                guidance["masked"] = masked
            return self.model(points, generator=draw("mask"), **guidance)


def fix_shapes(step: FirstStep) -> None:
    """Fix the shapes of a model, of its average and of its teacher."""
    beside = [getattr(step.guide, "ema", None), getattr(getattr(step.guide, "teacher", None), "model", None)]
    for part in [step.model, *filter(None, beside)]:
        for module in part.modules():
            if hasattr(module, "fixed_shapes"):
                module.fixed_shapes = True
