"""Losses of the first twenty training steps of each method, so that refactoring stays safe.

After a change that is meant to alter numbers (say so in CHANGELOG.md): `M2AE_WRITE_GOLDEN=1 python -m pytest tests/golden`.
"""

import json
import os
import tempfile
from functools import partial
from pathlib import Path

import pytest
import torch

from datasets import DATASETS, Batches, build_dataset
from datasets.transforms import augment
from models import MODELS, build_model
from tests.runs import quiet_run
from tools.guides.base import Guide, build_guide
from tools.optim import build_optimizer
from utils.config.load import load_config
from utils.device import autocast
from utils.seed import generator

ROOT = Path(__file__).parent.parent.parent
RECIPES = sorted((ROOT / "cfgs" / "debug").glob("*.yaml"))
# Rounding stays rounding for a few steps; then Adam has turned what is left of zero gradients into steps, a maximum or a nearest point
# jumps to another candidate, and it grows.
QUIET_STEPS, QUIET, LATER = 4, 1e-5, 2e-4
BF16_EACH, BF16_MEAN = 0.05, 0.01  # relative to the golden losses in fp32
BF16_STEPS = 5  # by default; CPUs without bfloat16 emulate it slowly


def first_losses(path: Path, *, steps: int = 20, rate: float = 1e-6, precision: str = "fp32") -> list[float]:
    """Train the debug recipe of a method for some steps at a small rate, where rounding hardly grows."""
    config = load_config(path, overrides=[f"optimizer.kwargs.lr={rate}"], models=MODELS, datasets=DATASETS)
    getattr(config.model, "transformer_config", config.model).drop_path_rate = 0.0
    torch.manual_seed(0)
    model = build_model(config.model).train()
    optimizer = build_optimizer(model, config.optimizer)
    clouds = build_dataset(config.dataset.train)
    batches = Batches(clouds, batch_size=16, seed=0)
    with tempfile.TemporaryDirectory() as folder:
        guide = build_guide(quiet_run(config, folder), model, clouds) or Guide()
    losses = []
    for epoch in range(2):
        for batch in batches.epoch(epoch):
            draw = partial(generator, 0, epoch, batch.step)
            points = augment(batch.points, config.augmentation, "y", draw("augmentation"))
            with autocast(points.device, precision):
                guidance = guide.prepare(points, batch, epoch=epoch, draw=draw)
                loss = model(points, generator=draw("mask"), **guidance)["loss"]
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            guide.after_update()
            losses.append(loss.item())
            if len(losses) == steps:
                return losses
    raise ValueError(f"two epochs have {len(losses)} steps, fewer than {steps}")


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_golden_losses(path):
    losses, file = first_losses(path), Path(__file__).parent / f"{path.stem}.json"
    if os.environ.get("M2AE_WRITE_GOLDEN"):
        file.write_text(json.dumps(losses, indent=1) + "\n")
    golden = json.loads(file.read_text())
    assert losses[:QUIET_STEPS] == pytest.approx(golden[:QUIET_STEPS], rel=QUIET)
    assert losses[QUIET_STEPS:] == pytest.approx(golden[QUIET_STEPS:], rel=LATER)


@pytest.mark.parametrize("steps", [BF16_STEPS, pytest.param(20, marks=pytest.mark.slow)])
@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_bfloat16_follows_the_golden_losses(path, steps):
    golden = json.loads((Path(__file__).parent / f"{path.stem}.json").read_text())[:steps]
    losses = first_losses(path, steps=steps, precision="bf16")
    assert losses == pytest.approx(golden, rel=BF16_EACH)
    assert sum(losses) == pytest.approx(sum(golden), rel=BF16_MEAN)
