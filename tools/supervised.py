"""What fine-tuning a classifier and training a part segmenter have in common.

Weights to start from, the sets and their names, epochs, evaluation, the best epoch, results.
"""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from torch import nn

from datasets import CloudSet, build_dataset
from datasets.fractions import split_held_out
from models import load_weights
from models.tuning import counts
from models.tuning.files import is_tuned
from tools.context import RunContext
from tools.optim import check_training
from tools.report.runlog import read_rows
from tools.results import SELECTED_HELD_OUT, SELECTED_ON_TEST
from tools.run_state import RunState, load_saved
from tools.session import Session, run_session
from tools.train import Display, Trainer, last_epoch
from utils.config.yaml import save_config
from utils.dist import is_main
from utils.errors import UserError
from utils.files import read_checkpoint, save_checkpoint


@dataclass
class Sets:
    """What a run is trained and evaluated on.

    Args:
        val: the set that results are from, the test set in published recipes.
        held_out: the part of the training set that an epoch is selected on; None without one.
    """

    train: CloudSet
    val: CloudSet
    held_out: CloudSet | None = None


class Supervised(Session):
    """Train on labels, evaluate on the validation set, and keep the best epoch.

    Args:
        sets: what is trained and evaluated on.

    Attributes:
        named: what differs where two sets do not name the same things.
        row: kind of the rows of metrics.jsonl that an evaluation writes.
        scores: what these rows call the scores -> what people call them; shares of 1.
        tags: score -> name in TensorBoard, below "Metric/".
        best_by: score by which the best epoch is chosen.
        kept_as: what checkpoints call that score.
        latest_best: whether a later epoch that is as good takes the place of the best one.
        best_name: what results call the best epoch.
        val: the set that it is evaluated on, the test set in published recipes.
        held_out: a part of the training set that is not trained on, to select an epoch; None without one.
        evaluator: what evaluates on `val`; None on all processes but the first.
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

    def __init__(self, run: RunContext, model: nn.Module, sets: Sets):
        super().__init__(run, model, sets.train)
        self.val, self.held_out = sets.val, sets.held_out

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

    def open_evaluator(self, clouds: CloudSet) -> Any:
        """Return what evaluates the model on a set."""
        raise NotImplementedError

    def score(self, evaluator: Any) -> dict[str, float]:
        """Evaluate the model as it is; returns shares of 1."""
        raise NotImplementedError

    def entries(self, scores: dict[str, float]) -> dict[str, float]:
        """Return what checkpoints say of an evaluation."""
        raise NotImplementedError

    def running_best(self, scores: dict[str, float], best: dict[str, float]) -> dict[str, float]:
        """Return entries of the best metrics that do not belong to one epoch."""
        return {}

    def begin_epoch(self, epoch: int) -> bool:
        """Let the model follow the epoch, unless its encoder is frozen for good."""
        return self.model.tuning is None and self.model.begin_epoch(epoch)

    def set_mode(self) -> None:
        """Bring the model into training mode, as far as it trains."""
        if self.model.tuning is None:
            self.model.train()
        else:
            self.model.tuning.set_mode(self.model, training=self.run.config.frozen_mode == "training")

    def vote(self, trainer: Trainer, epoch: int, scores: dict[str, float], *, best: bool) -> None:
        """Evaluate with voting, where that is asked for after this epoch."""

    @property
    def selects_held_out(self) -> bool:
        """Say whether the epoch is selected on held-out clouds, and the test set evaluated once."""
        return self.run.config.select == "held_out"

    def open_evaluation(self) -> None:
        """Load what evaluates the model."""
        self.evaluator = self.open_evaluator(self.val)
        self.selector = None if self.held_out is None else self.open_evaluator(self.held_out)

    def due(self, epoch: int) -> bool:
        """Say whether the model is evaluated after an epoch: only after the last one where no other can be selected."""
        selects = self.run.config.select != "last" or self.held_out is not None
        return super().due(epoch) and (selects or epoch == last_epoch(self.run.config))

    def evaluate(self, trainer: Trainer, epoch: int) -> None:
        """Evaluate on held-out clouds and on the validation set, where each is due, and keep the best epoch."""
        if self.evaluator is None:
            return
        if self.selector is not None:
            self._evaluate_held_out(trainer, epoch)
        if self.run.config.select == "best_test" or (
            self.run.config.select == "last" and epoch == last_epoch(self.run.config)
        ):
            self._evaluate_val(trainer, epoch)

    def _evaluate_val(self, trainer: Trainer, epoch: int) -> None:
        """Evaluate on the validation set, keep the best epoch, and vote where that is asked for."""
        run, state, data = self.run, trainer.state, self.val.name
        started = time.perf_counter()
        scores = self.score(self.evaluator)
        entries = self.entries(scores)
        best = run.config.select == "best_test" and self._improves(scores, state.best_metrics.get(self.kept_as, 0.0))
        state.metrics = {**state.metrics, **entries}
        state.best_metrics = {**state.best_metrics, **self.running_best(scores, state.best_metrics)}
        if best:
            state.best_metrics = {**state.best_metrics, **entries, "epoch": epoch}
            self.save(run.folder / "ckpt-best.pth", state)
        self._write(trainer, self.row, epoch, {"data": data, **scores, "best": best}, time.perf_counter() - started)
        mark = f" (best so far, {SELECTED_ON_TEST})" if best else ""
        run.log.info(f"epoch {epoch}: {self._say(scores)} on {data}{mark}")
        self.vote(trainer, epoch, scores, best=best)

    def _evaluate_held_out(self, trainer: Trainer, epoch: int) -> None:
        """Evaluate on held-out clouds, and keep the best epoch where that is the one that counts."""
        run, state, data = self.run, trainer.state, self.held_out.name
        started = time.perf_counter()
        scores = self.score(self.selector)
        best = self._improves(scores, state.best_metrics.get("held_out", 0.0))
        if best or "held_out_epoch" not in state.best_metrics:
            state.best_metrics = {**state.best_metrics, "held_out": scores[self.best_by], "held_out_epoch": epoch}
            if self.selects_held_out:
                self.save(run.folder / "ckpt-best.pth", state)
        self._write(trainer, "held_out", epoch, {"data": data, **scores, "best": best}, time.perf_counter() - started)
        run.log.info(
            f"epoch {epoch}: {self._say(scores)} on held-out clouds of {data}" + (" (best so far)" if best else "")
        )

    def _improves(self, scores: dict[str, float], best: float) -> bool:
        reached = scores[self.best_by]
        return reached > best or (self.latest_best and reached == best)

    def _say(self, scores: dict[str, float]) -> str:
        return ", ".join(f"{name} {100 * scores[key]:.2f} %" for key, name in self.scores.items())

    def _write(self, trainer: Trainer, kind: str, epoch: int, row: dict[str, Any], seconds: float) -> None:
        """Write a row of an evaluation, and its scores to TensorBoard."""
        for name, tag in self.tags.items():
            trainer.writer.scalar(
                f"{'HeldOut' if kind == 'held_out' else 'Metric'}/{tag}", 100 * row[name], epoch, split="test"
            )
        trainer.writer.write({"kind": kind, "epoch": epoch, **row, "seconds": seconds})

    def finish(self, trainer: Trainer) -> None:
        """Write what the test set says of the epoch that was selected on held-out clouds; where that counts, evaluate it now, once."""
        run, best = self.run, trainer.state.best_metrics
        if self.evaluator is None or self.selector is None or "held_out_epoch" not in best:
            return
        chosen = {"by": "held_out", "epoch": best["held_out_epoch"], "last_epoch": last_epoch(run.config)}
        path, started = run.folder / "metrics.jsonl", time.perf_counter()
        if any(chosen.items() <= row.items() for row in read_rows(path, "selected")):
            return  # a complete run that was resumed
        known = [row for row in read_rows(path, self.row) if row["epoch"] == chosen["epoch"]]
        if self.selects_held_out:
            scores = self._evaluate_once(trainer, chosen["epoch"])
        elif known:
            scores = {name: known[-1][name] for name in self.scores}
        else:
            return
        seconds = time.perf_counter() - started
        trainer.writer.write({"kind": "selected", **chosen, "data": self.val.name, **scores, "seconds": seconds})
        run.log.info(f"epoch {chosen['epoch']}, selected on held-out clouds: {self._say(scores)} on {self.val.name}")

    def _evaluate_once(self, trainer: Trainer, epoch: int) -> dict[str, float]:
        """Evaluate the weights of ckpt-best.pth on the validation set; the model keeps them."""
        path = self.run.folder / "ckpt-best.pth"
        load_saved(self.model, path, read_checkpoint(path))
        scores = self.score(self.evaluator)
        self.vote(trainer, epoch, scores, best=True)
        return scores

    def save(self, path: Path, state: RunState) -> None:
        """Keep the model as it is; of a tuned one without the state of the optimizer, which would be twice as large."""
        checkpoint = state.checkpoint(self.run.config_dict())
        save_checkpoint(path, {**checkpoint, "optimizer": None} if is_tuned(checkpoint) else checkpoint)

    def results(self) -> dict[str, float]:
        """Return what the run was worth, in percent: last epoch, best one, and the one that was selected on held-out clouds."""
        return self.last_and_best(self.row, self.scores, self.best_by) | self.selected(self.scores)

    def conclude(self, state: RunState) -> dict[str, float]:
        """Log and return the results."""
        results = self.results()
        for name, value in results.items():
            self.run.log.info(f"{name}: {value:.2f} %")
        return results

    def selected(self, scores: dict[str, str]) -> dict[str, float]:
        """Return the scores of the epoch that was selected on held-out clouds, in percent; none where no epoch was."""
        rows = read_rows(self.run.folder / "metrics.jsonl", "selected")[-1:]
        return {f"{name}, epoch {SELECTED_HELD_OUT}": 100 * row[key] for row in rows for key, name in scores.items()}

    def last_and_best(self, kind: str, scores: dict[str, str], by: str) -> dict[str, float]:
        """Return the scores of the last row of a kind and, where it is selected by them, of the best one, in percent."""
        rows, select = read_rows(self.run.folder / "metrics.jsonl", kind), self.run.config.select
        if not rows or select == "held_out":
            return {}
        best, results = max(rows, key=lambda row: (row[by], row["epoch"])), {}
        for key, name in scores.items():
            results[f"{name}, last epoch"] = 100 * rows[-1][key]
            if select == "best_test":
                results[f"{name}, {self.best_name} ({SELECTED_ON_TEST})"] = 100 * best[key]
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
    _count_parameters(run, model)
    clouds, val, held_out = build_dataset(entries.train), build_dataset(entries.val), None
    _check_sets(run, kind, clouds, val)
    if run.config.held_out is not None:
        clouds, held_out = split_held_out(clouds, run.config.held_out, run.seed)
    return run_session(kind(run, model, Sets(clouds, val, held_out)))


def _load_start(run: RunContext, model: nn.Module) -> None:
    """Load the weights that training starts from, and say which they are."""
    args, tuning = run.args, model.tuning
    if args.ckpts:
        average = getattr(args, "averaged", False)
        report = load_weights(model, args.ckpts, average=average, base=args.start_ckpts)
        run.log.info(f"{args.ckpts}{', averaged weights' if average else ''}: {report}")
    elif args.resume and (run.folder / "ckpt-last.pth").exists():
        return  # which brings its weights
    elif tuning is not None:
        flag = "transfer" if tuning.whole else "tune"
        run.log.warning(f"--{flag} {tuning.keys.kind} without --ckpts: the encoder is frozen at random weights")
    elif not args.scratch_model:
        run.log.info("no --ckpts: training from random weights")


def _count_parameters(run: RunContext, model: nn.Module) -> None:
    """Say how many parameters train, in the log and in result.json."""
    trained, all_ = counts(model)
    kind = "full" if model.tuning is None else model.tuning.keys.kind
    run.log.info(f"tuning {kind}: {trained:,} of {all_:,} parameters train ({100 * trained / all_:.2f} %)")
    run.facts |= {"tuning": kind, "trained_parameters": trained, "parameters": all_}


def _check_sets(run: RunContext, kind: type[Supervised], clouds: CloudSet, val: CloudSet) -> None:
    """Check both sets, and put what they say of their labels into the configuration, and so into every checkpoint."""
    for part in (clouds, val):
        kind.check_set(run, part)
    if kind.names(clouds) != kind.names(val):
        raise UserError(
            f"dataset: train ({clouds.name}) and val ({val.name}) have other {kind.named}; use two splits of one set"
        )
    if (clouds.source, clouds.subset) == (val.source, val.subset) and clouds.source:
        run.log.warning(f"dataset.val is the split that is trained on, {clouds.subset} of {clouds.source}")
    for key, value in kind.names(clouds).items():
        if value:
            setattr(run.config, key, value)
    if is_main():
        save_config(run.config, run.folder / "config.yaml")


def votes_after(run: RunContext, epoch: int, *, best: bool) -> bool:
    """Say whether `--vote` asks for voting after an epoch: after one that is the best so far, and after the last one."""
    return run.args.vote and (best or epoch == last_epoch(run.config))
