"""What every runner is handed by `main.py`."""

import argparse
import os
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from datasets.batches import Batches
from datasets.clouds import CloudSet
from models import build_model
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

    @property
    def seed(self) -> int:
        return self.config.seed

    def config_dict(self) -> dict:
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


def choose_device(name: str | None) -> torch.device:
    """Resolve `--device`: by default the first CUDA device of this process, or the CPU.

    Raises:
        UserError: the device is unknown, or CUDA is asked for and not there.
    """
    if name is None:
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UserError(f"--device {name}: is no device; use cpu, cuda or cuda:N") from error
    if device.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        index = device.index if device.index is not None else int(os.environ.get("LOCAL_RANK", 0))
        if index >= count:
            raise UserError(
                f"--device {name}: {count} CUDA devices are visible; use --device cpu or make the device visible"
            )
        device = torch.device("cuda", index)
        torch.cuda.set_device(device)
    elif device.type != "cpu":
        raise UserError(f"--device {name}: is not supported; use cpu or cuda")
    return device


def build_pretraining_model(run: RunContext) -> nn.Module:
    """Build the model of a configuration on the device of the run; it must be one that can be pre-trained.

    Raises:
        UserError: the configuration names a classifier.
    """
    model = build_model(run.config.model)
    if not hasattr(model, "encode"):
        raise UserError(
            f"model.NAME: {run.config.model.NAME} is no model of pre-training: add --finetune_model, --scratch_model or --test, "
            "or use a recipe of cfgs/pre-training/"
        )
    return model.to(run.device)


def distribute(model: nn.Module, device: torch.device, *, every_step: bool = True) -> nn.Module:
    """Wrap a model so that gradients are averaged over the processes; with one process it stays as it is.

    Args:
        every_step: whether each backward pass averages. The order of averaging can then be fixed in advance, because all parameters
            that train get a gradient in every step.
    """
    if world_size() == 1:
        return model
    ids = [device.index] if device.type == "cuda" else None
    # Gradients live in the buffers that are averaged, without a copy.
    return nn.parallel.DistributedDataParallel(
        model, device_ids=ids, gradient_as_bucket_view=True, static_graph=every_step
    )
