"""The state of a training run, into a checkpoint and back, bit for bit."""

from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from models import load_weights
from models.tuning.files import is_tuned
from utils.checkpoints import check_weights
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
        tuning = getattr(self.model, "tuning", None)
        return {
            "base_model": self.model.state_dict() if tuning is None else tuning.saved_weights(self.model),
            **({} if tuning is None else tuning.record()),
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
        _check_form(path, saved)
        if saved["random"]["seed"] != self.seed:
            raise UserError(
                f"{path}: was trained with --seed {saved['random']['seed']}, not {self.seed}; resume with that seed"
            )
        _check_optimizer(path, saved, self.optimizer)
        try:
            load_saved(self.model, path, saved)
            self.optimizer.load_state_dict(saved["optimizer"])
        except UserError:
            raise
        except Exception as error:  # loaders meet what does not fit with anything
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


def load_saved(model: nn.Module, path: Path, saved: dict) -> None:
    """Load the weights of a checkpoint of a run into its model; what tuning trained needs its base, which may be loaded already."""
    if is_tuned(saved):
        base = getattr(getattr(model, "tuning", None), "base", None)
        load_weights(model, path, base=base.path if base else None)
    else:
        model.load_state_dict(saved["base_model"])


def _check_form(path: Path, saved: dict) -> None:
    """Check once that a checkpoint has the form in which `checkpoint` writes it, and weights that can be trained on.

    Raises:
        UserError: it is not of that form; names the entry.
    """
    missing = {"base_model", "optimizer", "epoch", "pending", "random", "metrics", "best_metrics"} - set(saved)
    if missing:
        raise UserError(
            f"{path}: cannot be resumed, it lacks {', '.join(sorted(missing))}; start from it with --start_ckpts"
        )
    weights, pending = saved["base_model"], saved["pending"]
    pending = pending if isinstance(pending, dict) else {}
    rows, step, due = (pending.get(name) for name in ("rows", "step", "evaluations"))
    gradients = pending.get("gradients")
    held = {
        "base_model": isinstance(weights, dict) and all(isinstance(value, Tensor) for value in weights.values()),
        "epoch": _is_count(saved["epoch"], least=-1),
        "metrics": isinstance(saved["metrics"], dict),
        "best_metrics": isinstance(saved["best_metrics"], dict),
        "random": isinstance(saved["random"], dict) and _is_count(saved["random"].get("seed"), least=None),
        "pending.evaluations": isinstance(due, list) and all(_is_count(epoch) for epoch in due),
        "pending.rows": isinstance(rows, list) and all(_is_row(row) for row in rows),
        "pending.step": _is_count(step) and isinstance(rows, list) and len(rows) == step,
        "pending.gradients": isinstance(gradients, dict)
        and all(isinstance(value, Tensor) for value in gradients.values()),
    }
    wrong = [name for name, fits in held.items() if not fits]
    if wrong:
        raise UserError(
            f"{path}: cannot be resumed, its {wrong[0]} is not as a run leaves it; copy the checkpoint again, or start from its weights "
            "with --start_ckpts"
        )
    check_weights(str(path), weights, list(weights))


def _is_count(value: object, least: int | None = 0) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and (least is None or value >= least)


def _is_row(row: object) -> bool:
    return (
        isinstance(row, dict)
        and {"loss", "lr"} <= set(row)
        and all(isinstance(value, int | float) for value in row.values())
    )


def _check_optimizer(path: Path, saved: dict, optimizer: torch.optim.Optimizer) -> None:
    """Compare a saved optimizer with the parameters that it is to move: fused kernels trust its shapes.

    Raises:
        UserError: it is of another kind, has no state though the run has trained, or tensors of other shapes or not finite.
    """
    state = saved["optimizer"]
    groups = state.get("param_groups") if isinstance(state, dict) else None
    moments = state.get("state") if isinstance(state, dict) else None
    if (
        not isinstance(groups, list)
        or not isinstance(moments, dict)
        or not all(isinstance(group, dict) for group in groups)
    ):
        raise UserError(f"{path}: cannot be resumed, its optimizer is none; start from its weights with --start_ckpts")
    own = optimizer.state_dict()["param_groups"]
    ours = {"lr_scale", "peak_scale", "initial_lr"}
    if [set(group) - ours for group in groups] != [set(group) - ours for group in own]:
        raise UserError(
            f"{path}: its optimizer is of another kind than {type(optimizer).__name__}; resume with the run's own config.yaml"
        )
    if [group["params"] for group in groups] != [group["params"] for group in own]:
        raise UserError(
            f"{path}: its optimizer has other parameters than this model; resume with the run's own config.yaml"
        )
    trained = saved["epoch"] >= 0 or saved["pending"]["step"] > 0
    if trained and not moments and type(optimizer) is not torch.optim.SGD:
        raise UserError(
            f"{path}: cannot be resumed, its optimizer has lost its state; start from its weights with --start_ckpts"
        )
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for number, entry in moments.items():
        fits = _is_count(number) and number < len(parameters) and isinstance(entry, dict)
        for name, value in entry.items() if fits else ():
            if isinstance(value, Tensor):
                fits &= value.numel() == 1 if name == "step" else value.shape == parameters[number].shape
                fits &= bool(torch.isfinite(value).all())
        if not fits:
            raise UserError(
                f"{path}: the state of its optimizer does not fit parameter {number}, or is not finite; copy the checkpoint again, or "
                "resume with the run's own config.yaml"
            )
