"""What every command is handed by `main.py`."""

import argparse
import contextlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from datasets.batches import Batches
from datasets.clouds import CloudSet
from models import build_model
from models.base import PretrainingModel
from utils.config.merge import to_dict
from utils.config.schema import RunConfig
from utils.dist import rank, world_size
from utils.errors import UserError
from utils.log import Logger


@dataclass
class RunContext:
    """One run: its resolved configuration, its flags, where it writes and what it computes on."""

    config: RunConfig
    args: argparse.Namespace
    folder: Path
    device: torch.device
    log: Logger
    # On the folder, while training.
    lock: contextlib.AbstractContextManager = field(default_factory=contextlib.nullcontext)
    facts: dict[str, Any] = field(default_factory=dict)  # that result.json has besides results
    output: Path | None = None  # folder of what an evaluation writes; that of the run in training

    def __post_init__(self):
        self.output = self.output or self.folder

    @property
    def seed(self) -> int:
        """Return the seed that all random numbers of the run depend on."""
        return self.config.seed

    def config_dict(self) -> dict:
        """Return the configuration as plain data."""
        return to_dict(self.config)

    def batches(self, clouds: CloudSet, batch_size: int, **options) -> Batches:
        """Return batches of a set for this process, drawn from the seed of the run."""
        return Batches(
            clouds,
            batch_size=batch_size,
            seed=self.seed,
            device=self.device,
            rank=rank(),
            world_size=world_size(),
            **options,
        )


def build_pretraining_model(run: RunContext) -> nn.Module:
    """Build the model of a configuration on the device of the run; it must be one that can be pre-trained.

    Raises:
        UserError: the configuration names a classifier.
    """
    model = build_model(run.config.model)
    if not isinstance(model, PretrainingModel):
        raise UserError(
            f"model.NAME: {run.config.model.NAME} is no model of pre-training: add --finetune_model, --scratch_model or --test, "
            "or use a recipe of cfgs/pre-training/"
        )
    return model.to(run.device)
