"""What fine-tuning a classifier and training a part segmenter have in common.

Weights to start from, the sets and their names, epochs, evaluation, the best epoch, results.
"""

import time
from typing import Any, ClassVar

from torch import nn

from datasets import CloudSet, build_dataset
from models import load_weights
from models.weights import averaged
from tools.context import RunContext
from tools.optim import check_training
from tools.report.runlog import read_rows
from tools.run_state import RunState
from tools.session import Session, run_session
from tools.train import Display, Trainer, last_epoch
from utils.config.yaml import save_config
from utils.dist import is_main
from utils.errors import UserError
from utils.files import read_checkpoint, save_checkpoint


class Supervised(Session):
    """Train on labels, evaluate on the validation set, and keep the best epoch.

    Args:
        held_out: the validation set.

    Attributes:
        named: what differs where two sets do not name the same things.
        row: kind of the rows of metrics.jsonl that an evaluation writes.
        scores: what these rows call the scores -> what people call them; shares of 1.
        tags: score -> name in TensorBoard, below "Metric/".
        best_by: score by which the best epoch is chosen.
        kept_as: what checkpoints call that score.
        latest_best: whether a later epoch that is as good takes the place of the best one.
        best_name: what results call the best epoch.
        evaluator: what evaluates on `held_out`; None on all processes but the first.
    """

    display = Display(
        scale=1.0, epoch_tag="Loss/Epoch/Loss", batch_tags={"loss": "Loss", "lr": "LR", "accuracy": "TrainAcc"}
    )
    named: ClassVar[str]
    row: ClassVar[str]
    scores: ClassVar[dict[str, str]]
    tags: ClassVar[dict[str, str]]
    best_by: ClassVar[str]
    kept_as: ClassVar[str]
    latest_best: ClassVar[bool] = False
    best_name: ClassVar[str]
    evaluator: Any = None

    def __init__(self, run: RunContext, model: nn.Module, clouds: CloudSet, held_out: CloudSet):
        super().__init__(run, model, clouds)
        self.held_out = held_out

    @classmethod
    def build_model(cls, run: RunContext) -> nn.Module:
        """Build the model of a configuration on the device of the run."""
        raise NotImplementedError

    @classmethod
    def check_set(cls, run: RunContext, clouds: CloudSet) -> None:
        """Raise where a set is not one that the model of a configuration can be trained or evaluated on."""
        raise NotImplementedError

    @classmethod
    def names(cls, clouds: CloudSet) -> dict[str, Any]:
        """Return what a set says of its labels, by key of the configuration."""
        raise NotImplementedError

    def score(self) -> dict[str, float]:
        """Evaluate the model as it is; returns shares of 1."""
        raise NotImplementedError

    def entries(self, scores: dict[str, float]) -> dict[str, float]:
        """Return what checkpoints say of an evaluation."""
        raise NotImplementedError

    def running_best(self, scores: dict[str, float], best: dict[str, float]) -> dict[str, float]:
        """Return entries of the best metrics that do not belong to one epoch."""
        return {}

    def begin_epoch(self, epoch: int) -> bool:
        """Let the model follow the epoch."""
        return self.model.begin_epoch(epoch)

    def vote(self, trainer: Trainer, epoch: int, scores: dict[str, float], *, best: bool) -> None:
        """Evaluate with voting, where that is asked for after this epoch."""

    def evaluate(self, trainer: Trainer, epoch: int) -> None:
        """Evaluate on the validation set, keep the best epoch, and vote where that is asked for."""
        if self.evaluator is None:
            return
        run, state, writer, data = self.run, trainer.state, trainer.writer, self.held_out.name
        started = time.perf_counter()
        scores = self.score()
        entries, reached, kept = self.entries(scores), scores[self.best_by], state.best_metrics.get(self.kept_as, 0.0)
        best = reached > kept or (self.latest_best and reached == kept)
        state.metrics = {**state.metrics, **entries}
        state.best_metrics = {**state.best_metrics, **self.running_best(scores, state.best_metrics)}
        if best:
            state.best_metrics = {**state.best_metrics, **entries, "epoch": epoch}
            save_checkpoint(run.folder / "ckpt-best.pth", state.checkpoint(run.config_dict()))
        for name, tag in self.tags.items():
            writer.scalar(f"Metric/{tag}", 100 * scores[name], epoch, split="test")
        row = {"kind": self.row, "epoch": epoch, "data": data, **scores, "best": best}
        writer.write({**row, "seconds": time.perf_counter() - started})
        shown = ", ".join(f"{name} {100 * scores[key]:.2f} %" for key, name in self.scores.items())
        run.log.info(f"epoch {epoch}: {shown} on {data}" + (" (best)" if best else ""))
        self.vote(trainer, epoch, scores, best=best)

    def results(self) -> dict[str, float]:
        """Return what the run was worth: last and best epoch, in percent."""
        return self.last_and_best(self.row, self.scores, self.best_by)

    def conclude(self, state: RunState) -> dict[str, float]:
        """Log and return the results."""
        results = self.results()
        for name, value in results.items():
            self.run.log.info(f"{name}: {value:.2f} %")
        return results

    def last_and_best(self, kind: str, scores: dict[str, str], by: str) -> dict[str, float]:
        """Return the scores of the last row of a kind and of the best one, in percent."""
        rows = read_rows(self.run.folder / "metrics.jsonl", kind)
        if not rows:
            return {}
        best, results = max(rows, key=lambda row: (row[by], row["epoch"])), {}
        for key, name in scores.items():
            results[f"{name}, last epoch"] = 100 * rows[-1][key]
            results[f"{name}, {self.best_name} (selected on the test set)"] = 100 * best[key]
        return results


def run_supervised(run: RunContext, kind: type[Supervised]) -> dict[str, float]:
    """Train the model of a configuration; returns scores in percent by what they are.

    Raises:
        UserError: bad input, or a loss that is not finite; the last good checkpoint is kept.
        Interrupted: asked to stop; the state is saved and `--resume` continues it.
    """
    entries = run.config.dataset
    check_training(run.config)
    model = kind.build_model(run)
    if entries.val is None:
        raise UserError("dataset.val: is missing, the model is evaluated on it while it trains; add the entry")
    _load_start(run, model)
    clouds, held_out = build_dataset(entries.train), build_dataset(entries.val)
    _check_sets(run, kind, clouds, held_out)
    return run_session(kind(run, model, clouds, held_out))


def _load_start(run: RunContext, model: nn.Module) -> None:
    """Load the weights that training starts from, and say which they are."""
    args, transfer = run.args, run.config.transfer
    if args.ckpts and getattr(args, "averaged", False):
        run.log.info(f"{args.ckpts}, averaged weights: {load_weights(model, averaged(read_checkpoint(args.ckpts)))}")
    elif args.ckpts:
        run.log.info(f"{args.ckpts}: {load_weights(model, args.ckpts)}")
    elif transfer != "full":
        run.log.warning(f"--transfer {transfer} without --ckpts: the encoder is frozen at random weights")
    elif not args.scratch_model:
        run.log.info("no --ckpts: training from random weights")


def _check_sets(run: RunContext, kind: type[Supervised], clouds: CloudSet, held_out: CloudSet) -> None:
    """Check both sets, and put what they say of their labels into the configuration, and so into every checkpoint."""
    for part in (clouds, held_out):
        kind.check_set(run, part)
    if kind.names(clouds) != kind.names(held_out):
        raise UserError(
            f"dataset: train ({clouds.name}) and val ({held_out.name}) have other {kind.named}; use two splits of one set"
        )
    if (clouds.source, clouds.subset) == (held_out.source, held_out.subset) and clouds.source:
        run.log.warning(f"dataset.val is the split that is trained on, {clouds.subset} of {clouds.source}")
    for key, value in kind.names(clouds).items():
        if value:
            setattr(run.config, key, value)
    if is_main():
        save_config(run.config, run.folder / "config.yaml")


def votes_after(run: RunContext, epoch: int, *, best: bool) -> bool:
    """Say whether `--vote` asks for voting after an epoch: after one that is the best so far, and after the last one."""
    return run.args.vote and (best or epoch == last_epoch(run.config))
