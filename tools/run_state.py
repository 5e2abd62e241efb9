"""The state of a training run, into a checkpoint and back, bit for bit."""

from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import nn

from utils.errors import UserError
from utils.files import read_checkpoint

FORMAT = 1


@dataclass
class RunState:
    """Everything that changes while a run trains. Random numbers depend on (seed, epoch, step) alone, so there is no state of theirs.

    Attributes:
        epoch: last epoch that is complete; -1 before the first.
        metrics, best_metrics: of that epoch and of the best one: "acc" as a fraction, and "epoch".
        pending: what is still to be done: "evaluations", epochs to be evaluated with these very weights; "step" and
            "rows", how far the next epoch got and what it logged.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    seed: int
    scaler: torch.amp.GradScaler | None = None
    ema: nn.Module | None = None
    epoch: int = -1
    metrics: dict = field(default_factory=dict)
    best_metrics: dict = field(default_factory=dict)
    pending: dict = field(default_factory=lambda: {"evaluations": [], "step": 0, "rows": []})

    def checkpoint(self, config: dict) -> dict:
        """Return plain tensors, dicts, lists, numbers and strings; it loads with `weights_only=True`."""
        gradients = {n: p.grad for n, p in self.model.named_parameters() if p.grad is not None}
        return {
            "base_model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": None if self.scaler is None else self.scaler.state_dict(),
            "ema": None if self.ema is None else self.ema.state_dict(),
            "epoch": self.epoch,
            "metrics": self.metrics,
            "best_metrics": self.best_metrics,
            "pending": {**self.pending, "gradients": gradients},
            "random": {"seed": self.seed},
            "config": config,
            "format": FORMAT,
        }

    def restore(self, path: Path) -> None:
        """Continue from a checkpoint that `checkpoint` wrote.

        Raises:
            UserError: it lacks the state of a run, or is of a run with another seed or model.
        """
        saved = read_checkpoint(path)
        missing = {"base_model", "optimizer", "epoch", "pending", "random"} - set(saved)
        if missing:
            raise UserError(
                f"{path}: cannot be resumed, it lacks {', '.join(sorted(missing))}; start from it with --start_ckpts"
            )
        if saved["random"]["seed"] != self.seed:
            raise UserError(
                f"{path}: was trained with --seed {saved['random']['seed']}, not {self.seed}; resume with that seed"
            )
        try:
            self.model.load_state_dict(saved["base_model"])
            self.optimizer.load_state_dict(saved["optimizer"])
        except (RuntimeError, ValueError, KeyError) as error:
            reason = str(error).splitlines()[0]
            raise UserError(
                f"{path}: does not fit this configuration ({reason}); resume with the run's own config.yaml"
            ) from error
        if self.scaler is not None and saved["scaler"] is not None:
            self.scaler.load_state_dict(saved["scaler"])
        if self.ema is not None and saved["ema"] is not None:
            self.ema.load_state_dict(saved["ema"])
        self.epoch, self.metrics, self.best_metrics = saved["epoch"], saved["metrics"], saved["best_metrics"]
        self.pending = dict(saved["pending"])
        gradients = self.pending.pop("gradients")
        for name, parameter in self.model.named_parameters():
            parameter.grad = gradients[name].to(parameter.device) if name in gradients else None
