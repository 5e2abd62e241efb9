"""Pre-training: an epoch of masking and rebuilding, a linear SVM on what the encoder learned, and again."""

import json
import sys
import time

import torch

from datasets import build_dataset
from models import load_weights
from models.layers.norm import BatchNorm, convert_sync_batchnorm
from tools.augment import augment
from tools.compile import compile_regions
from tools.context import RunContext, build_pretraining_model, distribute
from tools.engine import EpochLog, Interrupted, NonFiniteLoss, StopRequest, train_one_epoch
from tools.gallery_items import reconstruction_gallery
from tools.optim import batch_norm_momentum, build_optimizer, build_schedule, check_training
from tools.report import write_report
from tools.run_state import RunState, save_last
from tools.runner_svm import LinearProbe
from utils.checkpoint import save_checkpoint
from utils.config import RunConfig
from utils.dist import barrier, is_main, rank, world_size
from utils.errors import UserError
from utils.logger import MetricsWriter
from utils.seed import generator, step_seed

# What TensorBoard and the log show of a loss of about 0.02 square units is a number of about 20.
SHOWN_SCALE = 1000.0


def run_pretrain(run: RunContext) -> RunState:
    """Pre-train the model of a configuration; returns the final state.

    Raises:
        UserError: bad input, or a loss that is not finite; the last good checkpoint is kept.
        Interrupted: asked to stop; the state is saved and `--resume` continues it.
    """
    config, args = run.config, run.args
    check_training(config)
    model = build_pretraining_model(run)
    if args.start_ckpts:
        run.log.info(f"{args.start_ckpts}: {load_weights(model, args.start_ckpts)}")
    if args.sync_bn:
        convert_sync_batchnorm(model)
    if args.compile:
        compile_regions(model)
    clouds = build_dataset(config.dataset.train)
    batches = run.batches(clouds, config.total_bs)
    scaler = torch.amp.GradScaler(run.device.type) if config.precision == "fp16" else None
    state = RunState(model, build_optimizer(model, config.optimizer), run.seed, scaler=scaler)
    last = run.folder / "ckpt-last.pth"
    if args.resume and last.exists():
        state.restore(last)
        run.log.info(f"resuming after epoch {state.epoch}, step {state.pending['step']}")
    probe = LinearProbe.from_config(run) if is_main() else None
    writer = _open_metrics(run, state) if is_main() else None
    run.log.info(
        f"{len(clouds)} clouds of {clouds.npoints} points, {len(batches)} steps of {config.total_bs} an epoch, {run.device}"
    )
    try:
        with StopRequest() as stop:
            _epochs(run, state, batches, probe, writer, stop)
    finally:
        if is_main():
            writer.close()
            _report(run, state, clouds, probe)
    if is_main() and probe is not None:
        _conclude(run)
    return state


def _open_metrics(run: RunContext, state: RunState) -> MetricsWriter:
    """Open the metrics and drop the rows that will be written again: all, where an earlier run died before its first checkpoint."""
    following = (state.epoch + 1, state.pending["step"])
    return MetricsWriter(run.folder, resume_from=following, pending=state.pending["evaluations"])


def last_epoch(config: RunConfig) -> int:
    """Return the index of the last epoch: as published, `max_epoch` itself still runs."""
    return config.max_epoch if config.max_epoch_inclusive else config.max_epoch - 1


def _epochs(run: RunContext, state: RunState, batches, probe, writer, stop: StopRequest) -> None:
    config, args = run.config, run.args
    wrapped = distribute(state.model, run.device)
    if probe is not None and config.svm.random_weights and state.epoch < 0 and not state.pending["step"]:
        _evaluate(run, state, probe, writer, epoch=None)
    for epoch in list(state.pending["evaluations"]):
        _evaluate(run, state, probe, writer, epoch=epoch)
        _save(run, state, evaluations=[])
    last = last_epoch(config)
    for epoch in range(state.epoch + 1, last + 1):
        _train(run, state, wrapped, batches, writer, epoch, stop)
        due = epoch % args.val_freq == 0 or epoch == last
        state.epoch = epoch
        _save(run, state, evaluations=[epoch] if due else [])
        if config.keep_from <= epoch and epoch % config.keep_every == 0 and is_main():
            save_checkpoint(run.folder / f"ckpt-epoch-{epoch:03d}.pth", state.checkpoint(run.config_dict()))
        if due and probe is not None:
            _evaluate(run, state, probe, writer, epoch=epoch)
        _save(run, state, evaluations=[])
        barrier()
        if epoch < last and stop.agreed(run.device):
            raise Interrupted(stop.signal_number)


def _train(run: RunContext, state: RunState, wrapped, batches, writer, epoch: int, stop: StopRequest) -> None:
    """Train what is left of one epoch; save and raise where the run must stop."""
    config, device = run.config, run.device
    if config.bnmscheduler is not None:
        for module in state.model.modules():
            if isinstance(module, BatchNorm):
                module.momentum = batch_norm_momentum(config.bnmscheduler, epoch)
    up_axis = batches.cloud_set.up_axis
    state.model.train()
    bar = run.log.progress(len(batches), f"epoch {epoch}/{last_epoch(config)}", done=state.pending["step"])

    def step(batch):
        torch.manual_seed(step_seed(run.seed, epoch, batch.step, f"layers {rank()}"))
        points = augment(
            batch.points, config.augmentation, up_axis, generator(run.seed, epoch, batch.step, "augmentation")
        )
        out = wrapped(points, generator=generator(run.seed, epoch, batch.step, "mask"))
        return {name: value for name, value in out.items() if name.startswith("loss")}

    def flush(first: int, rows: list[dict]) -> None:
        bar.update(
            len(rows), loss=rows[-1]["loss"] * SHOWN_SCALE, lr=rows[-1]["lr"], samples=len(rows) * config.total_bs
        )
        if writer is not None:
            _write_steps(writer, epoch, first, rows, len(batches), bar.samples_per_second)

    log = EpochLog(flush, every=config.log_every, rows=state.pending["rows"])
    started, first = time.perf_counter(), len(log.rows)
    try:
        complete = train_one_epoch(
            step,
            batches.epoch(epoch, first_step=state.pending["step"]),
            state.optimizer,
            steps=len(batches),
            schedule=build_schedule(config.scheduler, config.optimizer.kwargs.lr),
            epoch=epoch,
            accum=config.step_per_update,
            divide="undivided_accumulation" not in config.legacy_names(),
            clip=config.grad_norm_clip,
            precision=config.precision,
            scaler=state.scaler,
            log=log,
            # Several processes must agree, which costs a synchronisation: they do so at the log interval only.
            may_stop=lambda position: (world_size() == 1 or position % config.log_every == 0) and stop.agreed(device),
        )
        log.read()
    except NonFiniteLoss as error:
        raise _explain(run, batches, epoch, error.step) from error
    finally:
        bar.close()
    if not complete:
        state.pending.update(step=len(log.rows), rows=log.rows)
        _save(run, state, evaluations=[])
        raise Interrupted(stop.signal_number)
    state.pending.update(step=0, rows=[])
    state.metrics = {"loss": log.mean("loss")}
    if writer is not None:
        seconds = time.perf_counter() - started
        _write_epoch(run, writer, epoch, log, seconds, (len(log.rows) - first) * config.total_bs / seconds)


def _write_steps(writer: MetricsWriter, epoch: int, first: int, rows: list[dict], steps: int, speed: float) -> None:
    for offset, row in enumerate(rows):
        for name, value in row.items():
            if name == "lr":
                writer.scalar("Loss/Batch/LR", value, epoch * steps + first + offset)
            else:
                writer.scalar("Loss/Batch/" + name.replace("loss", "Loss"), value, epoch * steps + first + offset)
    writer.write(
        {"kind": "step", "epoch": epoch, "step": first + len(rows) - 1, **rows[-1], "samples_per_second": speed}
    )


def _write_epoch(
    run: RunContext, writer: MetricsWriter, epoch: int, log: EpochLog, seconds: float, speed: float
) -> None:
    row = {"kind": "epoch", "epoch": epoch, "loss": log.mean("loss"), "lr": log.rows[-1]["lr"]}
    memory = peak_memory_mb(run.device)
    writer.write({**row, "seconds": seconds, "samples_per_second": speed, "memory_mb": memory})
    writer.scalar("Loss/Epoch/Loss_1", row["loss"] * SHOWN_SCALE, epoch)
    run.log.info(
        f"epoch {epoch}: loss {row['loss'] * SHOWN_SCALE:.4f} (x1000), lr {row['lr']:.6f}, {seconds:.1f} s, "
        f"{speed:.0f} samples/s, {memory:.0f} MB"
    )


def _evaluate(
    run: RunContext, state: RunState, probe: LinearProbe, writer: MetricsWriter, *, epoch: int | None
) -> None:
    """Judge the encoder by a linear SVM and keep the best one; epoch None stands for the untrained weights."""
    if probe is None:
        return
    started = time.perf_counter()
    result = probe.judge(state.model, choose=epoch in (None, last_epoch(run.config)))
    best = epoch is not None and result.accuracy > state.best_metrics.get("acc", 0.0)
    if epoch is not None:
        state.metrics = {**state.metrics, "acc": result.accuracy}
        writer.scalar("Metric/ACC", result.accuracy, epoch, split="test")
    if best:
        state.best_metrics = {"acc": result.accuracy, "epoch": epoch}
        save_checkpoint(run.folder / "ckpt-best.pth", state.checkpoint(run.config_dict()))
    row = {"kind": "svm", "epoch": epoch, "data": probe.name, "accuracy": result.accuracy, "C": result.C, "best": best}
    if result.chosen_C is not None:
        row.update(chosen_C=result.chosen_C, chosen_accuracy=result.chosen_accuracy)
    writer.write({**row, "seconds": time.perf_counter() - started})
    name = "random weights" if epoch is None else f"epoch {epoch}"
    run.log.info(f"{name}: {probe.describe(result)}" + (" (best)" if best else ""))


def _save(run: RunContext, state: RunState, *, evaluations: list[int]) -> None:
    state.pending["evaluations"] = evaluations
    if is_main():
        save_last(state, run.folder, run.config_dict())


def _explain(run: RunContext, batches, epoch: int, step: int) -> UserError:
    """Say which clouds led to a loss that is not finite."""
    batch = next(batches.epoch(epoch, first_step=step))
    names = batches.cloud_set.names
    samples = [names[i] if names else f"#{i}" for i in batch.indices.tolist()]
    kept = run.folder / "ckpt-last.pth"
    return UserError(
        f"loss or gradient is not finite in epoch {epoch}, step {step} (clouds {', '.join(samples[:8])}"
        f"{', ...' if len(samples) > 8 else ''}); the update was skipped and the run stopped. "
        + (f"The last good checkpoint is {kept}. " if kept.exists() else "There is no checkpoint yet. ")
        + "Lower optimizer.kwargs.lr, set grad_norm_clip, or use --precision fp32."
    )


def _report(run: RunContext, state: RunState, clouds, probe) -> None:
    """Write report.html and gallery.png; a report that cannot be written does not lose the run."""
    try:
        path = write_report(
            run.folder,
            config=run.config_dict(),
            gallery=reconstruction_gallery(state.model, clouds, run.seed, run.device),
            confusion=None if probe is None else probe.confusion(),
            title=f"Pre-training {run.config.model.NAME}: {run.args.exp_name}",
        )
        run.log.info(f"report: {path}")
    except (OSError, ValueError) as error:
        run.log.warning(f"report: could not be written ({error})")


def _conclude(run: RunContext) -> None:
    """Say what pre-training was worth: the linear SVM on the untrained and on the trained encoder."""
    lines = (run.folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    judged = [row for row in map(json.loads, lines) if row["kind"] == "svm"]
    compared = {
        "random weights": judged[:1] if judged and judged[0]["epoch"] is None else [],
        "pre-trained": judged[-1:],
    }
    for name, rows in compared.items():
        for row in rows:
            text = f"{name:>14}: linear SVM on {row['data']} {100 * row['accuracy']:.1f} % at C {row['C']:g}"
            if row.get("chosen_C") is not None:
                text += f", {100 * row['chosen_accuracy']:.1f} % at C {row['chosen_C']:g} (cross-validated on the training features)"
            run.log.info(text)


def peak_memory_mb(device: torch.device) -> float:
    """Return the peak memory of this process so far, in MB: the device's where there is one, else the resident set (0 on Windows)."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    if sys.platform == "win32":
        return 0.0
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20
