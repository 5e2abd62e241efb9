"""Part segmentation: train a segmenter on a pre-trained encoder or from scratch, judge it, or let it name parts."""

import time
from typing import Any

from torch import Tensor, nn

from datasets import CloudSet, build_dataset
from datasets.batches import Batch
from models import build_model, load_weights
from segmentation.judge import PartJudge, check_set, table_of
from segmentation.pages import write_pages
from tools.augment import augment
from tools.compile import compile_regions, follows_data
from tools.context import RunContext
from tools.engine import StopRequest
from tools.optim import check_training
from tools.report.runlog import read_rows
from tools.steps import Step
from tools.training import Display, Training, last_epoch, open_metrics, open_state, run_epochs
from utils.config.yaml import save_config
from utils.dist import is_main
from utils.errors import UserError
from utils.files import read_checkpoint, save_checkpoint

DISPLAY = Display(
    scale=1.0, epoch_tag="Loss/Epoch/Loss", batch_tags={"loss": "Loss", "lr": "LR", "accuracy": "TrainAcc"}
)
SCORES = {"instance_miou": "instance mIoU", "class_miou": "class mIoU", "accuracy": "point accuracy"}


def run_parts(run: RunContext) -> dict[str, float]:
    """Do what the flags ask of a part segmenter: `--predict`, `--test`, or train; returns scores in percent by what they are.

    Raises:
        UserError: bad input, or a loss that is not finite; the last good checkpoint is kept.
        Interrupted: asked to stop; the state is saved and `--resume` continues it.
    """
    args = run.args
    if args.test_svm or args.corruptions or run.config.transfer != "full":
        flag = "--test_svm" if args.test_svm else "--corruptions" if args.corruptions else "--transfer"
        raise UserError(f"{flag}: is not for part segmentation; leave it out, or use another recipe")
    if args.predict:
        from segmentation.predict import run_predict

        return run_predict(run)
    if args.test:
        from segmentation.runner_test import run_test

        return run_test(run)
    return run_training(run)


def build_segmenter(run: RunContext) -> nn.Module:
    """Build the part segmenter of a configuration on the device of the run."""
    return build_model(run.config.model).to(run.device)


def load_segmenter(run: RunContext) -> nn.Module:
    """Build the segmenter of a configuration with the weights of `--ckpts`; the configuration takes names from there.

    Raises:
        UserError: the checkpoint is not one of this segmenter whole.
    """
    config, path = run.config, run.args.ckpts
    model = build_segmenter(run)
    checkpoint = read_checkpoint(path)
    report = load_weights(model, path)
    if report.missing:
        raise UserError(
            f"{path}: lacks {len(report.missing)} tensors of the part segmenter, first {report.missing[0]}; "
            "give a checkpoint that was trained with a recipe of cfgs/segmentation/"
        )
    run.log.info(f"{path}: {report}")
    saved = checkpoint.get("config")
    for key in ("class_names", "part_names", "category_parts"):
        setattr(config, key, (saved.get(key) if isinstance(saved, dict) else None) or getattr(config, key))
    if run.args.compile:
        compile_regions(model)
    return model


def run_training(run: RunContext) -> dict[str, float]:
    """Train; returns the scores of the last epoch and of the best one, which is best by instance mIoU."""
    config = run.config
    check_training(config)
    if config.dataset.val is None:
        raise UserError("dataset.val: is missing, part segmentation is judged on it; add the entry")
    model = build_segmenter(run)
    if run.args.ckpts:
        run.log.info(f"{run.args.ckpts}: {load_weights(model, run.args.ckpts)}")
    elif not run.args.scratch_model:
        run.log.info("no --ckpts: training from random weights")
    clouds, held_out = build_dataset(config.dataset.train), build_dataset(config.dataset.val)
    _keep_names(run, clouds, held_out)
    batches = run.batches(clouds, config.total_bs, shard=run.args.shard_set)
    state = open_state(run, model)
    judge = PartJudge(run, held_out) if is_main() else None
    writer = open_metrics(run, state)
    run.log.info(
        f"{len(clouds)} clouds to train on, {len(held_out)} to judge on, {len(clouds.class_names)} categories, "
        f"{len(clouds.part_names)} parts, {clouds.npoints} points, {len(batches)} steps of {config.total_bs} an epoch, {run.device}"
    )
    repeats = 2 if "double_step" in config.legacy_names() else 1
    try:
        with StopRequest() as stop:
            training = Training(run, state, batches, writer, stop, DISPLAY, updates_per_batch=repeats)
            last, every = last_epoch(config), run.args.val_freq
            run_epochs(
                training,
                lambda epoch: segmentation_step(training, epoch),
                set_mode=model.train,
                due=lambda epoch: epoch % every == 0 or epoch == last,
                evaluate=lambda epoch: _evaluate(training, judge, epoch),
            )
    finally:
        if is_main():
            writer.close()
            _report(run, judge)
    return _conclude(run, state.best_metrics) if is_main() else {}


def _keep_names(run: RunContext, clouds: CloudSet, held_out: CloudSet) -> None:
    """Check both sets, and put the names of categories and parts into the configuration, and so into every checkpoint."""
    for part in (clouds, held_out):
        check_set(part, run)
    if table_of(clouds) != table_of(held_out):
        raise UserError(
            f"dataset: train ({clouds.name}) and val ({held_out.name}) have other categories or parts; use two splits of one set"
        )
    if (clouds.source, clouds.subset) == (held_out.source, held_out.subset) and clouds.source:
        run.log.warning(f"dataset.val is the split that is trained on, {clouds.subset} of {clouds.source}")
    for key, value in table_of(clouds).items():
        setattr(run.config, key, value)
    if is_main():
        save_config(run.config, run.folder / "config.yaml")


def segmentation_step(training: Training, epoch: int) -> Step:
    """Return what a step of an epoch computes: augment, group, segment, compare."""
    run, model, wrapped = training.run, training.state.model, training.wrapped
    up_axis = training.batches.cloud_set.up_axis

    def ahead(batch: Batch) -> dict[str, Any]:
        points = augment(batch.points, run.config.augmentation, up_axis, training.draw(epoch, batch)("augmentation"))
        return {"points": points, "pyramid": model.group(points), "category": batch.labels, "parts": batch.parts}

    def compute(inputs: dict[str, Any]) -> dict[str, Tensor]:
        parts = inputs["parts"]
        log_probs = wrapped(inputs["points"], inputs["category"], pyramid=inputs["pyramid"])
        # As published, over the parts of all categories here, and over those of the true one when it is judged.
        right = (log_probs.detach().argmax(-1) == parts).float().mean()
        return {"loss": model.loss(log_probs, parts), "accuracy": right}

    return Step(
        ahead, ready=lambda batch, inputs: inputs, compute=compute, unrecordable=follows_data(model, run.device)
    )


def _evaluate(training: Training, judge: PartJudge | None, epoch: int) -> None:
    """Judge on the held-out set, keep the best epoch by instance mIoU, and vote where that is asked for."""
    if judge is None:
        return
    run, state, writer = training.run, training.state, training.writer
    started = time.perf_counter()
    scores = judge.judge(state.model).row()
    # As published, a later epoch that is as good takes the place, and each score keeps its own best value.
    best = scores["instance_miou"] >= state.best_metrics.get("instance_miou", 0.0)
    state.metrics = {**state.metrics, **scores, "acc": scores["accuracy"]}
    bests = {f"best_{name}": max(scores[name], state.best_metrics.get(f"best_{name}", 0.0)) for name in SCORES}
    state.best_metrics = {**state.best_metrics, **bests}
    if best:
        state.best_metrics = {**state.best_metrics, **scores, "acc": scores["accuracy"], "epoch": epoch}
        save_checkpoint(run.folder / "ckpt-best.pth", state.checkpoint(run.config_dict()))
    for name, tag in {"instance_miou": "InstanceMIoU", "class_miou": "ClassMIoU", "accuracy": "ACC"}.items():
        writer.scalar(f"Metric/{tag}", 100 * scores[name], epoch, split="test")
    row = {"kind": "parts", "epoch": epoch, "data": judge.clouds.name, **scores, "best": best}
    writer.write({**row, "seconds": time.perf_counter() - started})
    shown = ", ".join(f"{name} {100 * scores[key]:.2f} %" for key, name in SCORES.items())
    run.log.info(f"epoch {epoch}: {shown} on {judge.clouds.name}" + (" (best)" if best else ""))
    if run.args.vote and (best or epoch == last_epoch(run.config)):
        vote = judge.vote(state.model, run.args.vote_rounds or 1)
        writer.write({"kind": "parts_vote", "epoch": epoch, "data": judge.clouds.name, **vote.row()})
        run.log.info(f"epoch {epoch}: with voting: instance mIoU {vote.instance}, class mIoU {vote.classes}")


def _conclude(run: RunContext, best: dict) -> dict[str, float]:
    """Return and log what the run was worth: last and best epoch, in percent."""
    judged = read_rows(run.folder / "metrics.jsonl", "parts")
    results = {}
    for key, name in SCORES.items():
        if judged:
            results[f"{name}, last epoch"] = 100 * judged[-1][key]
            results[f"{name}, epoch of the best instance mIoU (selected on the test set)"] = 100 * best[key]
    for name, value in results.items():
        run.log.info(f"{name}: {value:.2f} %")
    return results


def _report(run: RunContext, judge: PartJudge) -> None:
    """Write report.html with the last judgement; a report that cannot be written does not lose the run."""
    if judge.scores is None and (run.folder / "report.html").exists():
        return  # a run that was complete: its report shows more
    try:
        path = write_pages(
            run, run.folder, judge, title=f"Part segmentation, {run.config.model.NAME}: {run.args.exp_name}"
        )
        run.log.info(f"report: {path}")
    except (OSError, ValueError) as error:
        run.log.warning(f"report: could not be written ({error})")
