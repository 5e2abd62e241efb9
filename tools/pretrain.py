"""Pre-training: an epoch of masking and rebuilding, a linear SVM on what the encoder learned, and again."""

import contextlib
import json
import time
from typing import Any

from torch import Tensor

from datasets import CloudSet, build_dataset
from datasets.batches import Batch
from models import load_weights
from tools.augment import augment
from tools.compile import follows_data
from tools.context import RunContext, build_pretraining_model
from tools.deferred import Deferred, goes_beside
from tools.engine import StopRequest
from tools.features import SVMResult
from tools.gallery_items import reconstruction_gallery
from tools.guides import Guide, build_guide
from tools.optim import check_training
from tools.report.page import write_report
from tools.run_state import RunState
from tools.steps import Step
from tools.svm import LinearProbe
from tools.training import Display, Training, last_epoch, open_metrics, open_state
from utils.dist import barrier, is_main
from utils.files import save_checkpoint

# What TensorBoard and the log show of a loss of about 0.02 square units is a number of about 20.
DISPLAY = Display(scale=1000.0, epoch_tag="Loss/Epoch/Loss_1", batch_tags={"loss": "Loss", "lr": "LR"})


# What a model returns under these names is a scalar of the step and goes into the log.
LOGGED = ("loss", "log_")


def run_pretrain(run: RunContext) -> dict[str, float]:
    """Pre-train the model of a configuration; returns losses and linear-SVM accuracies in percent by what they are.

    Raises:
        UserError: bad input, or a loss that is not finite; the last good checkpoint is kept.
        Interrupted: asked to stop; the state is saved and `--resume` continues it.
    """
    config, args = run.config, run.args
    check_training(config)
    model = build_pretraining_model(run)
    if args.start_ckpts:
        run.log.info(f"{args.start_ckpts}: {load_weights(model, args.start_ckpts)}")
    clouds = build_dataset(config.dataset.train)
    guide = build_guide(run, model, clouds)
    batches = run.batches(clouds, config.total_bs, shard=run.args.shard_set)
    state = open_state(run, model, ema=guide.ema)
    probe = LinearProbe.from_config(run) if is_main() else None
    writer = open_metrics(run, state)
    run.log.info(
        f"{len(clouds)} clouds of {clouds.npoints} points, {len(batches)} steps of {config.total_bs} an epoch, {run.device}"
    )
    try:
        with StopRequest() as stop:
            deferred = Deferred(beside=goes_beside(args.evaluation, run.device))
            training = Training(
                run, state, batches, writer, stop, DISPLAY, after_update=guide.after_update, deferred=deferred
            )
            with contextlib.closing(deferred):
                _epochs(training, probe, guide)
    finally:
        if is_main():
            writer.close()
            _report(run, state, clouds, probe, guide)
    return _conclude(run) if is_main() else {}


def _epochs(training: Training, probe: LinearProbe | None, guide: Guide) -> None:
    run, state, deferred = training.run, training.state, training.deferred
    config, args = run.config, run.args
    if probe is not None and config.svm.random_weights and state.epoch < 0 and not state.pending["step"]:
        _evaluate(training, probe, epoch=None)
    for epoch in list(state.pending["evaluations"]):
        _evaluate(training, probe, epoch=epoch)
        training.save(evaluations=[])
    last = last_epoch(config)
    for epoch in range(state.epoch + 1, last + 1):
        state.model.train()
        training.epoch(epoch, pretraining_step(training, guide, epoch))
        due = epoch % args.val_freq == 0 or epoch == last
        deferred.finish()  # what the epoch before is worth is booked while that is the last one
        state.epoch = epoch
        training.save(evaluations=[epoch] if due else [])
        if config.keep_from <= epoch and epoch % config.keep_every == 0 and is_main():
            save_checkpoint(run.folder / f"ckpt-epoch-{epoch:03d}.pth", state.checkpoint(run.config_dict()))
        if due:
            _evaluate(training, probe, epoch=epoch)
        if not deferred.beside or epoch == last:
            training.save(evaluations=[])
        barrier()
        training.stop_if_asked(epoch)


def pretraining_step(training: Training, guide: Guide, epoch: int) -> Step:
    """Return what a step of an epoch computes: augment, group, ask the guide, mask, rebuild, compare."""
    run, model, wrapped = training.run, training.state.model, training.wrapped
    up_axis = training.batches.cloud_set.up_axis

    def ahead(batch: Batch) -> dict[str, Any]:
        draw = training.draw(epoch, batch)
        points = augment(batch.points, run.config.augmentation, up_axis, draw("augmentation"))
        inputs = {"points": points, "pyramid": model.group(points)}
        return advised(batch, inputs) if guide.ahead else inputs

    def advised(batch: Batch, inputs: dict[str, Any]) -> dict[str, Any]:
        draw = training.draw(epoch, batch)
        guidance = guide.prepare(batch=batch, epoch=epoch, draw=draw, **inputs)
        if "masked" not in guidance:
            guidance["masked"] = model.draw_mask(inputs["pyramid"], generator=draw("mask"))
        return inputs | guidance

    def compute(inputs: dict[str, Any]) -> dict[str, Tensor]:
        out = wrapped(**inputs)
        return {name: value for name, value in out.items() if name.startswith(LOGGED)}

    return Step(
        ahead,
        ready=lambda batch, inputs: inputs if guide.ahead else advised(batch, inputs),
        compute=compute,
        unrecordable=follows_data(model, run.device),
    )


def _evaluate(training: Training, probe: LinearProbe | None, *, epoch: int | None) -> None:
    """Judge the encoder as it is by a linear SVM and keep the best one; epoch None stands for the untrained weights.

    Features are extracted here; where training goes on beside the rest, `training.deferred.finish` books what came out.
    """
    if probe is None:
        return
    state, started = training.state, time.perf_counter()
    features, choose = probe.features(state.model), epoch in (None, last_epoch(training.run.config))
    checkpoint, metrics = training.snapshot(), state.metrics
    spent = time.perf_counter() - started

    def fit() -> tuple[SVMResult, float]:
        begun = time.perf_counter()
        return probe.judge_features(features, choose=choose), spent + time.perf_counter() - begun

    def book(found: tuple[SVMResult, float]) -> None:
        judged = {**metrics, "acc": found[0].accuracy}
        if epoch is not None and state.metrics is metrics:  # else a later epoch has its own by now
            state.metrics = judged
        _book(training, probe, *found, epoch=epoch, checkpoint={**checkpoint, "metrics": judged})

    training.deferred.start(fit, book)


def _book(
    training: Training, probe: LinearProbe, result: SVMResult, seconds: float, *, epoch: int | None, checkpoint: dict
) -> None:
    """Note what a linear SVM made of an epoch, and keep its checkpoint where it is the best so far."""
    run, state, writer = training.run, training.state, training.writer
    best = epoch is not None and result.accuracy > state.best_metrics.get("acc", 0.0)
    if epoch is not None:
        writer.scalar("Metric/ACC", result.accuracy, epoch, split="test")
    if best:
        state.best_metrics = {"acc": result.accuracy, "epoch": epoch}
        save_checkpoint(run.folder / "ckpt-best.pth", {**checkpoint, "best_metrics": state.best_metrics})
    row = {"kind": "svm", "epoch": epoch, "data": probe.name, "accuracy": result.accuracy, "C": result.C, "best": best}
    if result.chosen_C is not None:
        row.update(chosen_C=result.chosen_C, chosen_accuracy=result.chosen_accuracy)
    writer.write({**row, "seconds": seconds})
    name = "random weights" if epoch is None else f"epoch {epoch}"
    run.log.info(f"{name}: {probe.describe(result)}" + (" (best)" if best else ""))


def _report(run: RunContext, state: RunState, clouds: CloudSet, probe: LinearProbe | None, guide: Guide) -> None:
    """Write report.html and gallery.png; a report that cannot be written does not lose the run."""
    try:
        path = write_report(
            run.folder,
            config=run.config_dict(),
            gallery=reconstruction_gallery(state.model, clouds, run.seed, run.device, guidance=guide.picture),
            galleries=guide.galleries(state.model),
            confusion=None if probe is None else probe.confusion(),
            sections=guide.sections(state.model),
            title=f"Pre-training {run.config.model.NAME}: {run.args.exp_name}",
        )
        run.log.info(f"report: {path}")
    except (OSError, ValueError) as error:
        run.log.warning(f"report: could not be written ({error})")


def _conclude(run: RunContext) -> dict[str, float]:
    """Say and return what pre-training was worth: the linear SVM on the untrained and on the trained encoder."""
    rows = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    judged = [row for row in rows if row["kind"] == "svm"]
    compared = {
        "random weights": judged[:1] if judged and judged[0]["epoch"] is None else [],
        "pre-trained": judged[-1:],
    }
    results = {"loss x 1000, last epoch": 1000 * [row["loss"] for row in rows if row["kind"] == "epoch"][-1]}
    for name, found in compared.items():
        for row in found:
            text = f"{name:>14}: linear SVM on {row['data']} {100 * row['accuracy']:.1f} % at C {row['C']:g}"
            results[f"{name}, linear SVM on {row['data']}, C {row['C']:g}"] = 100 * row["accuracy"]
            if row.get("chosen_C") is not None:
                text += f", {100 * row['chosen_accuracy']:.1f} % at C {row['chosen_C']:g} (cross-validated on the training features)"
                results[f"{name}, linear SVM on {row['data']}, cross-validated C"] = 100 * row["chosen_accuracy"]
            run.log.info(text)
    return results
