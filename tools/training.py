"""What the training runners share: one epoch with its progress, log and metrics, and how it saves, stops and explains itself."""

import contextlib
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from datasets.batches import Batch, Batches
from models.layers.norm import BatchNorm, convert_sync_batchnorm
from tools.compile import compile_model
from tools.context import RunContext, distribute
from tools.deferred import Deferred
from tools.engine import EpochLog, Interrupted, NonFiniteLoss, StopRequest, train_one_epoch
from tools.fitting import Rehearsal, out_of_memory, rehearse, too_large
from tools.graphs import StepGraph, open_graph
from tools.optim import batch_norm_momentum, build_optimizer, build_schedule
from tools.run_state import RunState
from tools.steps import SideStream, Step, map_tensors
from utils.config.schema import RunConfig
from utils.dist import barrier, is_main, rank, world_size
from utils.errors import UserError
from utils.files import save_checkpoint
from utils.log import MetricsWriter
from utils.seed import generator, step_seed


@dataclass(frozen=True)
class Display:
    """How the log and TensorBoard show the losses of a runner.

    Args:
        scale: factor of the loss in the log and in `epoch_tag`; metrics.jsonl has plain numbers.
        epoch_tag: published name of the epoch's mean loss in TensorBoard.
        batch_tags: published names of what a step returns; the part behind "Loss/Batch/".
    """

    scale: float
    epoch_tag: str
    batch_tags: dict[str, str]

    def tag(self, name: str, span: str = "Batch") -> str:
        return f"Loss/{span}/{self.batch_tags.get(name) or name.replace('loss', 'Loss')}"


@dataclass
class Training:
    """A run that trains: its state, its batches, where its numbers go, and whether it was asked to stop."""

    run: RunContext
    state: RunState
    batches: Batches
    writer: MetricsWriter | None  # None on all processes but the first
    stop: StopRequest
    display: Display
    after_update: Callable[[], None] | None = None
    updates_per_batch: int = 1  # optimizer steps on one gradient, of which the last one sees it clipped
    pieces: int = 0  # that batches go through the model in; 0 before the first step
    deferred: Deferred = field(default_factory=Deferred)  # what is done beside training
    graph: StepGraph | None = field(init=False, default=None)
    side: SideStream | None = field(init=False, default=None)
    wrapped: nn.Module = field(init=False)  # the model, for several processes where there are

    def __post_init__(self):
        whole = self.run.config.step_per_update == 1 and self.run.args.micro_batches == 1
        self.wrapped = distribute(self.state.model, self.run.device, every_step=whole)

    def epoch(self, epoch: int, step: Step | Callable[..., dict[str, Tensor]]) -> None:
        """Train what is left of one epoch; `step` maps a batch to a dict of scalars with "loss", in the same way each epoch.

        Raises:
            UserError: a loss or gradient that is not finite, or a batch that does not fit into memory.
            Interrupted: asked to stop; the state is saved in mid-epoch.
        """
        run, state, config = self.run, self.state, self.run.config
        if config.bnmscheduler is not None:
            self._set_momentum(batch_norm_momentum(config.bnmscheduler, epoch))
        done = state.pending["step"]
        bar = run.log.progress(len(self.batches), f"epoch {epoch}/{last_epoch(config)}", done=done)

        def seed(batch):
            torch.manual_seed(step_seed(run.seed, epoch, batch.step, batch.stream(f"layers {rank()}")))

        step = replace(step, seed=seed) if isinstance(step, Step) else Step.whole(step, seed=seed)
        rehearsal = Rehearsal(run, state.model, step)
        if not self.pieces:
            self.pieces = rehearse(rehearsal, self._batch(epoch, done))
            self.graph = open_graph(run, step, state, pieces=self.pieces)
            self.side = SideStream(run.device) if run.device.type == "cuda" else None

        def flush(first: int, rows: list[dict]) -> None:
            shown = rows[-1]["loss"] * self.display.scale
            bar.update(len(rows), loss=shown, lr=rows[-1]["lr"], samples=len(rows) * config.total_bs)
            if self.writer is not None:
                self._write_steps(epoch, first, rows, bar.samples_per_second)

        log = EpochLog(flush, every=config.log_every, rows=state.pending["rows"])
        started, first = time.perf_counter(), len(log.rows)
        try:
            complete = self._train(step, epoch, log)
            log.read()
        except NonFiniteLoss as error:
            raise self._explain(epoch, error.step) from error
        except RuntimeError as error:
            if not out_of_memory(error):
                raise
            complete = None  # What the exception holds is freed before smaller batches are tried.
        finally:
            bar.close()
        if complete is None:
            raise too_large(rehearsal, self._batch(epoch, done), self.pieces)
        if not complete:
            state.pending.update(step=len(log.rows), rows=log.rows)
            self.save(evaluations=[])
            raise Interrupted(self.stop.signal_number)
        state.pending.update(step=0, rows=[])
        state.metrics = {name: log.mean(name) for name in log.rows[-1] if name != "lr"}
        if self.writer is not None:
            seconds = time.perf_counter() - started
            self._write_epoch(epoch, log, seconds, (len(log.rows) - first) * config.total_bs / seconds)

    def _set_momentum(self, momentum: float) -> None:
        """Give all batch norms a momentum; a recording, which holds the one before fast, is forgotten where it is another one."""
        norms = [module for module in self.state.model.modules() if isinstance(module, BatchNorm)]
        if self.graph is not None and any(norm.momentum != momentum for norm in norms):
            self.graph.forget()
        for norm in norms:
            norm.momentum = momentum

    def draw(self, epoch: int, batch: Batch) -> Callable[[str], torch.Generator]:
        """Return what gives a step its random numbers: stream -> generator."""
        return lambda stream: generator(self.run.seed, epoch, batch.step, batch.stream(stream))

    def _train(self, step, epoch: int, log: EpochLog) -> bool:
        config, state, device = self.run.config, self.state, self.run.device
        return train_one_epoch(
            step,
            self.batches.epoch(epoch, first_step=state.pending["step"]),
            state.optimizer,
            steps=len(self.batches),
            schedule=build_schedule(config.scheduler, config.optimizer.kwargs.lr),
            epoch=epoch,
            accum=config.step_per_update,
            divide="undivided_accumulation" not in config.legacy_names(),
            clip=config.grad_norm_clip,
            precision=config.precision,
            scaler=state.scaler,
            after_update=self.after_update,
            updates_per_batch=self.updates_per_batch,
            pieces=self.pieces,
            hold=getattr(self.wrapped, "no_sync", contextlib.nullcontext),
            side=self.side,
            graph=self.graph,
            log=log,
            # Several processes must agree, which costs a synchronisation: they do so at the log interval only.
            may_stop=lambda position: (
                (world_size() == 1 or position % config.log_every == 0) and self.stop.agreed(device)
            ),
        )

    def _batch(self, epoch: int, step: int) -> Batch:
        return next(self.batches.epoch(epoch, first_step=step))

    def save(self, *, evaluations: list[int]) -> None:
        """Write `ckpt-last.pth`, which owes the evaluations of these epochs; any other one is booked before."""
        self.deferred.finish()
        self.state.pending["evaluations"] = evaluations
        if is_main():
            checkpoint = self.snapshot()
            self.deferred.start(lambda: save_checkpoint(self.run.folder / "ckpt-last.pth", checkpoint))

    def snapshot(self) -> dict:
        """Return the checkpoint of the state as it is; where it is used beside training, it is a copy."""
        checkpoint = self.state.checkpoint(self.run.config_dict())
        if not self.deferred.beside:
            return checkpoint
        return map_tensors(lambda tensor: tensor.detach().to("cpu", copy=True), checkpoint)

    def stop_if_asked(self, epoch: int) -> None:
        """Raise Interrupted between two epochs where the run was asked to stop; the state is saved by then, and owes nothing."""
        if epoch < last_epoch(self.run.config) and self.stop.agreed(self.run.device):
            if self.deferred.beside:
                self.save(evaluations=[])
            raise Interrupted(self.stop.signal_number)

    def _write_steps(self, epoch: int, first: int, rows: list[dict], speed: float) -> None:
        steps = len(self.batches)
        for offset, row in enumerate(rows):
            for name, value in row.items():
                self.writer.scalar(self.display.tag(name), value, epoch * steps + first + offset)
        position = {"kind": "step", "epoch": epoch, "step": first + len(rows) - 1}
        self.writer.write({**position, **rows[-1], "samples_per_second": speed})

    def _write_epoch(self, epoch: int, log: EpochLog, seconds: float, speed: float) -> None:
        means, rate = self.state.metrics, log.rows[-1]["lr"]
        memory = peak_memory_mb(self.run.device)
        row = {"kind": "epoch", "epoch": epoch, **means, "lr": rate}
        self.writer.write({**row, "seconds": seconds, "samples_per_second": speed, "memory_mb": memory})
        shown = means["loss"] * self.display.scale
        self.writer.scalar(self.display.epoch_tag, shown, epoch)
        for name, value in means.items():
            if name.startswith("loss_"):
                self.writer.scalar(self.display.tag(name, "Epoch"), value * self.display.scale, epoch)
        for name in (name for name in means if name.startswith("loss_")):
            self.writer.scalar(f"Loss/Epoch/{name.replace('loss', 'Loss')}", means[name] * self.display.scale, epoch)
        unit = f" (x{self.display.scale:.0f})" if self.display.scale != 1 else ""
        others = "".join(f", {name} {value:.4f}" for name, value in means.items() if name != "loss")
        self.run.log.info(
            f"epoch {epoch}: loss {shown:.4f}{unit}{others}, lr {rate:.6f}, {seconds:.1f} s, {speed:.0f} samples/s, {memory:.0f} MB"
        )

    def _explain(self, epoch: int, step: int) -> UserError:
        """Say which clouds led to a loss that is not finite."""
        batch = self._batch(epoch, step)
        names = self.batches.cloud_set.names
        samples = [names[i] if names else f"#{i}" for i in batch.indices.tolist()]
        kept = self.run.folder / "ckpt-last.pth"
        return UserError(
            f"loss or gradient is not finite in epoch {epoch}, step {step} (clouds {', '.join(samples[:8])}"
            f"{', ...' if len(samples) > 8 else ''}); the update was skipped and the run stopped. "
            + (f"The last good checkpoint is {kept}. " if kept.exists() else "There is no checkpoint yet. ")
            + "Lower optimizer.kwargs.lr, set grad_norm_clip, or use --precision fp32."
        )


def run_epochs(
    training: Training,
    step: Callable[[int], Step],
    *,
    set_mode: Callable[[], None],
    due: Callable[[int], bool],
    evaluate: Callable[[int], None],
) -> None:
    """Train what is left of a run, and judge the model after the epochs that are due; the state is saved around both.

    Args:
        step: epoch -> what its steps compute.
        set_mode: brings the model into training mode.
        due: says of an epoch whether it is judged.
        evaluate: judges the model as it is after an epoch.
    """
    state = training.state
    for epoch in list(state.pending["evaluations"]):
        evaluate(epoch)
        training.save(evaluations=[])
    for epoch in range(state.epoch + 1, last_epoch(training.run.config) + 1):
        set_mode()
        training.epoch(epoch, step(epoch))
        judged = due(epoch)
        state.epoch = epoch
        training.save(evaluations=[epoch] if judged else [])
        if judged:
            evaluate(epoch)
        training.save(evaluations=[])
        barrier()
        training.stop_if_asked(epoch)


def last_epoch(config: RunConfig) -> int:
    """Return the index of the last epoch: as published, `max_epoch` itself still runs."""
    return config.max_epoch if config.max_epoch_inclusive else config.max_epoch - 1


def open_state(run: RunContext, model: nn.Module, *, ema: nn.Module | None = None) -> RunState:
    """Make a model ready to train as the flags ask (`--sync_bn`, `--compile`), with its optimizer; `--resume` restores both.

    Args:
        ema: an average of the model that is saved and restored with it.

    Raises:
        UserError: the checkpoint to resume from does not fit.
    """
    config, args = run.config, run.args
    if args.sync_bn:
        convert_sync_batchnorm(model)
    if args.compile:
        compile_model(model, run.device)
    scaler = torch.amp.GradScaler(run.device.type) if config.precision == "fp16" else None
    state = RunState(model, build_optimizer(model, config.optimizer), run.seed, scaler=scaler, ema=ema)
    last = run.folder / "ckpt-last.pth"
    if args.resume and last.exists():
        state.restore(last)
        run.log.info(f"resuming after epoch {state.epoch}, step {state.pending['step']}")
    return state


def open_metrics(run: RunContext, state: RunState) -> MetricsWriter | None:
    """Open the metrics on the first process and drop the rows that will be written again.

    Those are all rows where an earlier run died before its first checkpoint.
    """
    if not is_main():
        return None
    following = (state.epoch + 1, state.pending["step"])
    return MetricsWriter(
        run.folder,
        resume_from=following,
        pending=state.pending["evaluations"],
        boards=getattr(run.args, "log_dir", None),
    )


def peak_memory_mb(device: torch.device) -> float:
    """Return the peak memory of this process so far, in MB: the device's where there is one, else the resident set (0 on Windows)."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    if sys.platform == "win32":
        return 0.0
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20
