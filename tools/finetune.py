"""Fine-tuning: a classifier on a pre-trained encoder, or from scratch, judged on the validation set as it trains."""

import json
import time
from typing import Any

from torch import Tensor, nn

from datasets import CloudSet, build_dataset
from datasets.batches import Batch
from models import build_model, load_weights
from models.weights import averaged
from tools.augment import augment
from tools.compile import follows_data
from tools.context import RunContext
from tools.engine import StopRequest
from tools.evaluate import Judge, check_class_names, check_classes, check_points, training_points
from tools.optim import check_training
from tools.report.page import write_report
from tools.steps import Step
from tools.training import Display, Training, last_epoch, open_metrics, open_state, run_epochs
from utils.config.yaml import save_config
from utils.dist import is_main
from utils.errors import UserError
from utils.files import read_checkpoint, save_checkpoint

DISPLAY = Display(
    scale=1.0, epoch_tag="Loss/Epoch/Loss", batch_tags={"loss": "Loss", "lr": "LR", "accuracy": "TrainAcc"}
)
# Accuracies in percent from which the published program votes during training: after any epoch, after a new best one.
PUBLISHED_VOTE_ABOVE, PUBLISHED_VOTE_BEST_ABOVE = 92.1, 91.0


def run_finetune(run: RunContext) -> dict[str, float]:
    """Train the classifier of a configuration; returns accuracies in percent by what they are.

    Raises:
        UserError: bad input, or a loss that is not finite; the last good checkpoint is kept.
        Interrupted: asked to stop; the state is saved and `--resume` continues it.
    """
    config = run.config
    check_training(config)
    model = build_classifier(run)
    if config.dataset.val is None:
        raise UserError("dataset.val: is missing, fine-tuning judges on it; add the entry")
    _initialise(run, model)
    clouds, held_out = build_dataset(config.dataset.train), build_dataset(config.dataset.val)
    _check_data(run, clouds, held_out)
    _keep_class_names(run, clouds)
    if config.transfer != "full":
        for parameter in model.encoder_parameters():
            parameter.requires_grad_(False)
    batches = run.batches(clouds, config.total_bs, shard=run.args.shard_set)
    state = open_state(run, model)
    judge = Judge(run, held_out) if is_main() else None
    writer = open_metrics(run, state)
    run.log.info(
        f"{len(clouds)} clouds to train on, {len(held_out)} to judge on, {config.npoints} points, "
        f"{len(batches)} steps of {config.total_bs} an epoch, {run.device}"
    )
    try:
        with StopRequest() as stop:
            _epochs(Training(run, state, batches, writer, stop, DISPLAY), judge)
    finally:
        if is_main():
            writer.close()
            _report(run, judge)
    return _conclude(run) if is_main() else {}


def build_classifier(run: RunContext) -> nn.Module:
    """Build the classifier of a configuration on the device of the run.

    Raises:
        UserError: the configuration is of a model that does not classify, or its head does not fit `transfer`.
    """
    config = run.config
    model = build_model(config.model)
    if not hasattr(model, "cls_head_finetune"):
        raise UserError(
            f"model.NAME: {config.model.NAME} does not classify; use a recipe of cfgs/fine-tuning/ or cfgs/few-shot/"
        )
    if (config.transfer == "linear") != (config.model.head == "linear") and config.transfer != "full":
        raise UserError(
            f"transfer: {config.transfer} does not go with model.head {config.model.head}; set model.head to {config.transfer}"
        )
    return model.to(run.device)


def _initialise(run: RunContext, model: nn.Module) -> None:
    args, transfer = run.args, run.config.transfer
    if args.ckpts and getattr(args, "averaged", False):
        run.log.info(f"{args.ckpts}, averaged weights: {load_weights(model, averaged(read_checkpoint(args.ckpts)))}")
    elif args.ckpts:
        run.log.info(f"{args.ckpts}: {load_weights(model, args.ckpts)}")
    elif transfer != "full":
        run.log.warning(f"--transfer {transfer} without --ckpts: the encoder is frozen at random weights")
    elif not args.scratch_model:
        run.log.info("no --ckpts: training from random weights")


def _check_data(run: RunContext, clouds: CloudSet, held_out: CloudSet) -> None:
    config = run.config
    for part in (clouds, held_out):
        check_classes(part, config.model.cls_dim)
        check_points(part, config.npoints)
    if clouds.class_names != held_out.class_names:
        raise UserError(
            f"dataset: train ({clouds.name}) and val ({held_out.name}) name their classes differently; use two splits of one set"
        )
    if (clouds.source, clouds.subset) == (held_out.source, held_out.subset) and clouds.source:
        run.log.warning(f"dataset.val is the split that is trained on, {clouds.subset} of {clouds.source}")


def _keep_class_names(run: RunContext, clouds: CloudSet) -> None:
    """Put the class names of the training set into the configuration, and so into every checkpoint of the run."""
    check_class_names(run.config.class_names, clouds, "the key class_names")
    if clouds.class_names and run.config.class_names is None:
        run.config.class_names = list(clouds.class_names)
        if is_main():
            save_config(run.config, run.folder / "config.yaml")


def _epochs(training: Training, judge: Judge | None) -> None:
    args, last = training.run.args, last_epoch(training.run.config)
    run_epochs(
        training,
        lambda epoch: classification_step(training, epoch),
        set_mode=lambda: _set_mode(training),
        # As published, epoch 0 is not judged; the last one always is.
        due=lambda epoch: (epoch > 0 and epoch % args.val_freq == 0) or epoch == last,
        evaluate=lambda epoch: _evaluate(training, judge, epoch),
    )


def _set_mode(training: Training) -> None:
    """Set training mode; a frozen encoder stays in evaluation mode, so that its batch statistics do not move either."""
    model = training.state.model
    frozen = training.run.config.transfer != "full"
    model.train(not frozen)
    model.cls_head_finetune.train()


def classification_step(training: Training, epoch: int) -> Step:
    """Return what a step of an epoch computes: choose points, augment, group, classify, compare."""
    run, model, wrapped, config = training.run, training.state.model, training.wrapped, training.run.config
    up_axis = training.batches.cloud_set.up_axis

    def ahead(batch: Batch) -> dict[str, Any]:
        draw = training.draw(epoch, batch)
        points = training_points(batch.points, config.npoints, draw("subset"))
        points = augment(points, config.augmentation, up_axis, draw("augmentation"))
        return {"points": points, "pyramid": model.group(points), "labels": batch.labels}

    def compute(inputs: dict[str, Any]) -> dict[str, Tensor]:
        labels = inputs["labels"]
        logits = wrapped(inputs["points"], pyramid=inputs["pyramid"])
        right = (logits.detach().argmax(1) == labels).float().mean()
        return {"loss": model.loss(logits, labels), "accuracy": right}

    return Step(
        ahead, ready=lambda batch, inputs: inputs, compute=compute, unrecordable=follows_data(model, run.device)
    )


def _evaluate(training: Training, judge: Judge | None, epoch: int) -> None:
    """Judge on the validation set, keep the best epoch, and vote where that is asked for."""
    if judge is None:
        return
    run, state, writer = training.run, training.state, training.writer
    started = time.perf_counter()
    accuracy = judge.judge(state.model)
    best = accuracy > state.best_metrics.get("acc", 0.0)
    state.metrics = {**state.metrics, "acc": accuracy}
    writer.scalar("Metric/ACC", 100 * accuracy, epoch, split="test")
    row = {"kind": "val", "epoch": epoch, "data": judge.clouds.name, "accuracy": accuracy, "best": best}
    if best:
        state.best_metrics = {**state.best_metrics, "acc": accuracy, "epoch": epoch}
        save_checkpoint(run.folder / "ckpt-best.pth", state.checkpoint(run.config_dict()))
    writer.write({**row, "seconds": time.perf_counter() - started})
    run.log.info(f"epoch {epoch}: accuracy {100 * accuracy:.2f} % on {judge.clouds.name}" + (" (best)" if best else ""))
    if _votes(run, accuracy, best=best, last=epoch == last_epoch(run.config)):
        _vote(training, judge, epoch)


def _votes(run: RunContext, accuracy: float, *, best: bool, last: bool) -> bool:
    if not run.args.vote:
        return False
    if run.args.as_published:
        return 100 * accuracy > (PUBLISHED_VOTE_BEST_ABOVE if best else PUBLISHED_VOTE_ABOVE)
    return best or last


def _vote(training: Training, judge: Judge, epoch: int) -> None:
    run, state, writer = training.run, training.state, training.writer
    vote = judge.vote(state.model, run.args.vote_rounds or 1)
    best = vote.mean > state.best_metrics.get("acc_vote", 0.0)
    writer.scalar("Metric/ACC_vote", 100 * vote.mean, epoch, split="test")
    if best:
        state.best_metrics = {**state.best_metrics, "acc_vote": vote.mean, "epoch_vote": epoch}
        save_checkpoint(run.folder / "ckpt-best_vote.pth", state.checkpoint(run.config_dict()))
    writer.write({"kind": "vote", "epoch": epoch, "data": judge.clouds.name, **vote.row(), "best": best})
    run.log.info(f"epoch {epoch}: with voting {vote}" + (" (best)" if best else ""))


def _conclude(run: RunContext) -> dict[str, float]:
    """Return and log what the run was worth: last and best epoch, without and with voting, in percent."""
    lines = (run.folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [row for row in map(json.loads, lines) if row["kind"] in ("val", "vote")]
    results = {}
    for kind, key, name in (("val", "accuracy", "accuracy"), ("vote", "mean", "accuracy with voting")):
        judged = [row for row in rows if row["kind"] == kind]
        if judged:
            best = max(judged, key=lambda row: row[key])
            results[f"{name}, last epoch"] = 100 * judged[-1][key]
            results[f"{name}, best epoch (selected on the test set)"] = 100 * best[key]
    for name, value in results.items():
        run.log.info(f"{name}: {value:.2f} %")
    return results


def _report(run: RunContext, judge: Judge) -> None:
    """Write report.html; a report that cannot be written does not lose the run."""
    try:
        path = write_report(
            run.folder,
            config=run.config_dict(),
            confusion=None if judge.predictions is None else judge.confusion(),
            title=f"Fine-tuning {run.config.model.NAME}: {run.args.exp_name}",
        )
        run.log.info(f"report: {path}")
    except (OSError, ValueError) as error:
        run.log.warning(f"report: could not be written ({error})")
