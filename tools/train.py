"""The training loop: prepare, forward and backward, update, log, save, stop.

`Trainer` is the whole loop, written plainly. `Task` is what a command gives it: how a batch becomes the inputs of a
model, how these become losses, and what is evaluated. `tools/accelerate.py` wraps the loop from outside and changes
none of its numbers; it may be left out.
"""

import contextlib
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from datasets.batches import Batch, Batches
from datasets.clouds import CloudSet
from models.layers.norm import BatchNorm
from tools.context import RunContext
from tools.optim import batch_norm_momentum, build_schedule, group_rate
from tools.run_state import RunState
from utils.config.schema import RunConfig
from utils.device import autocast, peak_memory_mb
from utils.dist import all_reduce_sum, barrier, is_main, world_size
from utils.errors import UserError
from utils.files import save_checkpoint
from utils.log import MetricsWriter
from utils.seed import step_seed

Values = dict[str, Tensor]  # scalars of a step: "loss", and others for the log


class NonFiniteLoss(UserError):
    """A loss or gradient was NaN or infinite; the update was skipped and the run must stop."""

    def __init__(self, step: int):
        super().__init__(f"loss or gradient is not finite at step {step}")
        self.step = step


class Interrupted(Exception):
    """The run was asked to stop and has saved; `signal_number` says by what."""

    def __init__(self, signal_number: int):
        super().__init__(f"stopped by {signal.Signals(signal_number).name}")
        self.signal_number = signal_number


@dataclass(frozen=True)
class Display:
    """How the log and TensorBoard show the losses of a task.

    Args:
        scale: factor of the loss in the log and in `epoch_tag`; metrics.jsonl has plain numbers.
        epoch_tag: published name of the epoch's mean loss in TensorBoard.
        epoch_loss: which loss that is.
        batch_tags: published names of what a step returns; the part behind "Loss/Batch/".
    """

    scale: float
    epoch_tag: str
    batch_tags: dict[str, str]
    epoch_loss: str = "loss"

    def shown(self, values: dict[str, float]) -> dict[str, float]:
        """Return scalars as the log shows them: losses, whatever they are called, with the factor and its name."""
        unit = f" (x{self.scale:.0f})" if self.scale != 1 else ""
        losses = {name: value for name, value in values.items() if name.startswith("loss")}
        others = {name: value for name, value in values.items() if name not in losses}
        return {f"{name}{unit}": value * self.scale for name, value in losses.items()} | others

    def tag(self, name: str, span: str = "Batch") -> str:
        """Return the name of a scalar in TensorBoard."""
        return f"Loss/{span}/{self.batch_tags.get(name) or name.replace('loss', 'Loss')}"


class Task:
    """What a run trains.

    Args:
        run: configuration, flags, folder, device and log.
        model: the model, on the device of the run.
        clouds: the training set.

    Attributes:
        ema: an average of the model, which checkpoints hold, or None.
        updates_per_batch: optimizer steps on one gradient, of which only the last one uses it clipped.
        asynchronous: whether `evaluate` and saving may go on while training does.
    """

    display: Display
    ema: nn.Module | None = None
    updates_per_batch: int = 1
    asynchronous: ClassVar[bool] = False

    def __init__(self, run: RunContext, model: nn.Module, clouds: CloudSet):
        self.run, self.model, self.clouds = run, model, clouds

    def prepare(self, batch: Batch, epoch: int) -> Any:
        """Make the inputs of the model from a batch.

        Must not read trainable weights: it may run while the previous step is still executing.
        """
        raise NotImplementedError

    def complete(self, batch: Batch, epoch: int, inputs: Any) -> Any:
        """Add to the inputs what follows from the weights as they are now; nothing is drawn or copied to the device after it."""
        return inputs

    def compute(self, model: nn.Module, inputs: Any) -> Values:
        """Return the scalars of a step; `model` is the task's model, wrapped where there are several processes."""
        raise NotImplementedError

    def after_update(self) -> None:
        """Follow each update of the weights."""

    def begin_epoch(self, epoch: int) -> bool:
        """Follow the epoch that begins; return whether other parameters train now."""
        return False

    def set_mode(self) -> None:
        """Bring the model into training mode."""
        self.model.train()

    def before_training(self, trainer: "Trainer") -> None:
        """Do what comes before the first epoch of a run, and again where it goes on."""

    def due(self, epoch: int) -> bool:
        """Say whether the model is evaluated after an epoch."""
        return epoch % self.run.args.val_freq == 0 or epoch == last_epoch(self.run.config)

    def after_epoch(self, trainer: "Trainer", epoch: int) -> None:
        """Do what follows each epoch, once its checkpoint is written."""

    def evaluate(self, trainer: "Trainer", epoch: int) -> None:
        """Evaluate the model as it is after an epoch."""


class StopRequest:
    """Remember signals that ask to stop until the loop reaches a point where it can save.

    Those are Ctrl-C, SIGTERM, SIGHUP of a terminal that closes, and SIGUSR1 and SIGUSR2 of schedulers whose time is up. Use as a
    context manager; a second Ctrl-C interrupts at once. Outside the main thread, which alone may have handlers, nothing is heard.
    """

    names = ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2")

    def __init__(self):
        self.signal_number = 0
        self._previous = {}

    def __enter__(self) -> "StopRequest":
        if threading.current_thread() is not threading.main_thread():
            return self
        for number in (getattr(signal, name) for name in self.names if hasattr(signal, name)):
            if signal.getsignal(number) not in (signal.SIG_IGN, None):  # nohup has SIGHUP ignored
                self._previous[number] = signal.signal(number, self._remember)
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _remember(self, number: int, _frame) -> None:
        if self.signal_number == signal.SIGINT == number:
            raise KeyboardInterrupt
        self.signal_number = number

    def agreed(self, device: torch.device) -> bool:
        """Say whether any process was asked to stop; all processes get the same answer."""
        if world_size() == 1:
            return bool(self.signal_number)
        votes = all_reduce_sum(torch.tensor([float(self.signal_number > 0)], device=device))
        if votes.item() and not self.signal_number:
            self.signal_number = signal.SIGTERM
        return bool(votes.item())


class EpochLog:
    """Collect the scalars of an epoch on the device and hand them out at intervals, with one synchronisation each.

    Args:
        flush: called with (step of the first row, list of dicts of floats) at each multiple of `every` steps of the epoch and at
            the end; a run that goes on in the middle keeps to these multiples.
        rows: rows of this epoch from before an interruption.

    Raises:
        NonFiniteLoss: on reading, when a step since the last reading was not finite.
    """

    def __init__(self, flush: Callable[[int, list[dict]], None], *, every: int, rows: Iterable[dict] = ()):
        self.rows = list(rows)
        self._flush, self._every = flush, every
        self._window: list[tuple[Tensor, list[str], float]] = []

    def add(self, values: Values, rate: float, finite: Tensor) -> None:
        """Add one step; nothing is read from the device until the interval is over."""
        scalars = [value.detach().to(torch.float64) for value in values.values()]
        self._window.append((torch.stack([*scalars, finite.to(torch.float64)]), list(values), rate))
        if (len(self.rows) + len(self._window)) % self._every == 0:
            self.read()

    def read(self) -> None:
        """Bring the window to the host, averaged over the processes, check that every step was finite, hand it out."""
        if not self._window:
            return
        window, self._window = self._window, []
        table = all_reduce_sum(torch.stack([scalars for scalars, _, _ in window])) / world_size()
        first = len(self.rows)
        for offset, ((*values, finite), (_, names, rate)) in enumerate(zip(table.tolist(), window, strict=True)):
            if finite < 1:  # on any process
                raise NonFiniteLoss(first + offset)
            self.rows.append({**dict(zip(names, values, strict=True)), "lr": rate})
        self._flush(first, self.rows[first:])

    def mean(self, name: str) -> float:
        """Return the mean of a scalar over the epoch."""
        return sum(row[name] for row in self.rows) / max(len(self.rows), 1)


class Trainer:
    """Train a task from the state it is in, epoch by epoch, up to the last one.

    Args:
        writer: where numbers go; None on all processes but the first.
        stop: what remembers that the run was asked to stop.

    Attributes:
        wrapped: the model, which averages gradients over the processes where there are several.
        micro_batches: how many parts a batch goes through the model in, one after the other, to save memory.
    """

    def __init__(
        self, task: Task, state: RunState, batches: Batches, *, writer: MetricsWriter | None, stop: StopRequest
    ):
        self.task, self.run, self.state, self.batches = task, task.run, state, batches
        self.writer, self.stop = writer, stop
        config, parts = self.run.config, self.run.args.micro_batches
        self.micro_batches = 1 if parts == "auto" else parts
        self.steps, self.accumulated = len(batches), config.step_per_update
        self.divides = "undivided_accumulation" not in config.legacy_names()
        self.schedule = build_schedule(config.scheduler, config.optimizer.kwargs.lr)
        self.wrapped = self.distributed()
        self._began = time.perf_counter(), self._steps_left(state.epoch + 1, state.pending["step"])

    def distributed(self) -> nn.Module:
        """Wrap the model as it is for several processes."""
        every_step = self.accumulated == self.run.args.micro_batches == 1
        return distribute(self.state.model, self.run.device, every_step=every_step)

    # The run: epochs, each saved and, where it is due, evaluated.

    def train(self) -> None:
        """Train what is left of the run. A checkpoint is written before an evaluation and after it, so that either may be interrupted.

        Raises:
            UserError: a loss or gradient that is not finite, or a batch that does not fit into memory.
            Interrupted: asked to stop; the state is saved.
        """
        task, state, last = self.task, self.state, last_epoch(self.run.config)
        task.before_training(self)
        for epoch in list(state.pending["evaluations"]):
            task.evaluate(self, epoch)
            self.save(evaluations=[])
        for epoch in range(state.epoch + 1, last + 1):
            if task.begin_epoch(epoch):
                self.wrapped = self.distributed()
            task.set_mode()
            self.train_epoch(epoch)
            due = task.due(epoch)
            self.finish_pending()  # results of the epoch before are for its own checkpoint
            state.epoch = epoch
            self.save(evaluations=[epoch] if due else [])
            task.after_epoch(self, epoch)
            if due:
                task.evaluate(self, epoch)
            if not self.asynchronous or epoch == last:
                self.save(evaluations=[])
            barrier()
            if epoch < last and self.stop.agreed(self.run.device):
                if self.asynchronous:
                    self.save(evaluations=[])
                raise Interrupted(self.stop.signal_number)

    def train_epoch(self, epoch: int) -> None:
        """Train what is left of one epoch, and save and stop in the middle of it where that is asked for."""
        run, state, config = self.run, self.state, self.run.config
        if config.bnmscheduler is not None:
            self.set_momentum(batch_norm_momentum(config.bnmscheduler, epoch))
        bar = run.log.progress(self.steps, self._epoch_name(epoch), done=state.pending["step"])
        self.before_steps(epoch)

        def flush(first: int, rows: list[dict]) -> None:
            shown = self.task.display.shown({name: rows[-1][name] for name in ("loss", "lr")})
            run_left = self._time_left(self._steps_left(epoch, first + len(rows)))
            bar.update(len(rows), samples=len(rows) * config.total_bs, run_left=run_left, **shown)
            if self.writer is not None:
                self._write_steps(epoch, first, rows, bar.samples_per_second)

        log = EpochLog(flush, every=config.log_every, rows=state.pending["rows"])
        started, first = time.perf_counter(), len(log.rows)
        try:
            complete = self.train_steps(epoch, log)
            log.read()
        except NonFiniteLoss as error:
            raise self._explain(epoch, error.step) from error
        finally:
            bar.close()
        if not complete:
            state.pending.update(step=len(log.rows), rows=log.rows)
            self.save(evaluations=[])
            raise Interrupted(self.stop.signal_number)
        state.pending.update(step=0, rows=[])
        state.metrics = {name: log.mean(name) for name in log.rows[-1] if name != "lr"}
        if self.writer is not None:
            seconds = time.perf_counter() - started
            self._write_epoch(epoch, log, seconds, (len(log.rows) - first) * config.total_bs / seconds)

    def train_steps(self, epoch: int, log: EpochLog) -> bool:
        """Train on the batches that are left of an epoch; returns False where it was stopped before its end."""
        rate = self.set_rate(epoch)
        for batch, inputs in self.prepared(epoch):
            if self.run.config.scheduler.per_step:
                rate = self.set_rate(epoch, batch.step / self.steps)
            values, finite = self.step(batch, epoch, inputs)
            log.add(values, rate, finite)
            if self._stops_after(batch):
                return False
        return True

    # One step.

    def prepared(self, epoch: int) -> Iterator[tuple[Batch, Any]]:
        """Yield batches with what the task prepares of each; micro-batches are prepared one by one, later."""
        for batch in self.batches.epoch(epoch, first_step=self.state.pending["step"]):
            inputs = None
            if self.micro_batches == 1:
                with self.autocast():
                    inputs = self.task.prepare(batch, epoch)
            yield batch, inputs

    def set_rate(self, epoch: int, fraction: float = 0.0) -> float:
        """Give each parameter group the learning rate of an epoch, or of a fraction of it; returns the rate itself."""
        config = self.run.config

        def raised(scale: float) -> float:
            return build_schedule(config.scheduler, config.optimizer.kwargs.lr * scale)(epoch, fraction)

        rate = self.schedule(epoch, fraction)
        for group in self.state.optimizer.param_groups:
            group["lr"] = group_rate(group, rate, raised)
        return rate

    def step(self, batch: Batch, epoch: int, inputs: Any) -> tuple[Values, Tensor]:
        """Run forward, backward and, where it is due, the update; returns scalars, and whether all was finite, on the device."""
        values = self.forward_backward(batch, epoch, inputs)
        finite = torch.isfinite(values["loss"].detach())
        if self._updates_after(batch):
            finite &= self.update()
            self.task.after_update()
        return values, finite

    def forward_backward(self, batch: Batch, epoch: int, inputs: Any) -> Values:
        """Add the gradients of a batch to those there are; returns its scalars."""
        parts = [batch] if self.micro_batches == 1 else batch.split(self.micro_batches)
        collected = []
        for part in parts:
            weight = 1.0 if self.micro_batches == 1 else len(part.indices) / len(batch.indices)
            with self._averaging(batch, last=part is parts[-1]):
                values = self.forward(part, epoch, inputs)
                loss = values["loss"] * weight / self._share(batch)
                (loss if self.state.scaler is None else self.state.scaler.scale(loss)).backward()
            collected.append((weight, values))
        if len(collected) == 1:
            return values
        return {name: sum(weight * values[name].detach() for weight, values in collected) for name in values}

    def forward(self, batch: Batch, epoch: int, inputs: Any = None) -> Values:
        """Return the scalars of a batch or micro-batch; `inputs` None = it is not prepared yet."""
        with self.autocast():
            inputs = self.task.prepare(batch, epoch) if inputs is None else inputs
            inputs = self.task.complete(batch, epoch, inputs)
            self.seed_layers(batch, epoch)
            return self.task.compute(self.wrapped, inputs)

    def update(self) -> Tensor:
        """Step the optimizer; returns a device bool, False where the gradient was not finite and nothing was changed."""
        clip, repeats = self.run.config.grad_norm_clip, self.task.updates_per_batch
        return update(self.state.optimizer, clip=clip, scaler=self.state.scaler, repeats=repeats)

    def seed_layers(self, batch: Batch, epoch: int) -> None:
        """Seed what layers draw in a step, such as drop path: for the global batch, so the same on every process."""
        torch.manual_seed(step_seed(self.run.config.seed, epoch, batch.step, batch.stream("layers 0")))

    def autocast(self) -> contextlib.AbstractContextManager:
        """Return the context of the run's precision."""
        return autocast(self.run.device, self.run.config.precision)

    def set_momentum(self, momentum: float) -> None:
        """Give all batch norms a momentum."""
        for module in self.state.model.modules():
            if isinstance(module, BatchNorm):
                module.momentum = momentum

    def _updates_after(self, batch: Batch) -> bool:
        """Say whether a batch is the last one of an update.

        Where losses are divided, what is left at the end of the epoch is an update of its own; as published (legacy
        undivided_accumulation) losses are summed, and left-over gradients wait for the next epoch.
        """
        position = batch.step + 1
        return position % self.accumulated == 0 or (self.divides and position == self.steps)

    def _share(self, batch: Batch) -> int:
        """Return what the loss of a batch is divided by: the number of batches of its update."""
        first = batch.step // self.accumulated * self.accumulated
        return min(self.accumulated, self.steps - first) if self.divides else 1

    def _averaging(self, batch: Batch, *, last: bool) -> contextlib.AbstractContextManager:
        """Return the context of a backward pass: gradients are averaged over the processes by the last one before an update.

        Sums that outlive the epoch must be those of all processes, because one of them saves them.
        """
        if not self.divides or (last and self._updates_after(batch)):
            return contextlib.nullcontext()
        return getattr(self.wrapped, "no_sync", contextlib.nullcontext)()

    def _stops_after(self, batch: Batch) -> bool:
        """Say whether the run was asked to stop here, between two updates and not at the end of the epoch.

        Several processes must agree, which costs a synchronisation: they do so at the log interval only.
        """
        position = batch.step + 1
        if position % self.accumulated or position >= self.steps:
            return False
        asked = world_size() == 1 or position % self.run.config.log_every == 0
        return asked and self.stop.agreed(self.run.device)

    # What accelerators replace: here everything happens at once.

    asynchronous = False  # whether what is started goes on while training does

    def before_steps(self, epoch: int) -> None:
        """Do what comes before the steps of an epoch; its time does not count."""
        if self.run.args.micro_batches == "auto":
            raise UserError("--micro_batches auto: needs tools/accelerate.py; give a number")

    def start(self, work: Callable[[], Any], then: Callable[[Any], None] = lambda result: None) -> None:
        """Do `work`, which touches no device and no weights, and hand its result to `then`."""
        then(work())

    def finish_pending(self) -> None:
        """Wait for what was started, and hand out its results."""

    def close(self) -> None:
        """Finish what was started."""
        self.finish_pending()

    # Saving and writing.

    def save(self, *, evaluations: list[int]) -> None:
        """Write `ckpt-last.pth`, after which the evaluations of these epochs are still to be done."""
        self.finish_pending()
        self.state.pending["evaluations"] = evaluations
        if self.writer is not None:
            self.writer.flush()  # what the checkpoint takes for written must be
        if is_main():
            checkpoint = self.snapshot()
            self.start(lambda: save_checkpoint(self.run.folder / "ckpt-last.pth", checkpoint))

    def snapshot(self) -> dict:
        """Return the checkpoint of the state as it is."""
        return self.state.checkpoint(self.run.config_dict())

    def first_batch(self, epoch: int) -> Batch:
        """Return the batch that comes next in an epoch."""
        return next(self.batches.epoch(epoch, first_step=self.state.pending["step"]))

    def _write_steps(self, epoch: int, first: int, rows: list[dict], speed: float) -> None:
        for offset, row in enumerate(rows):
            for name, value in row.items():
                self.writer.scalar(self.task.display.tag(name), value, epoch * self.steps + first + offset)
        done = first + len(rows)
        if done % self.run.config.log_every and done < self.steps:
            return  # stopped between two rows: the run that goes on writes the next one
        position = {"kind": "step", "epoch": epoch, "step": done - 1}
        self.writer.write({**position, **rows[-1], "samples_per_second": speed})

    def _write_epoch(self, epoch: int, log: EpochLog, seconds: float, speed: float) -> None:
        means, rate, display = self.state.metrics, log.rows[-1]["lr"], self.task.display
        memory = peak_memory_mb(self.run.device)
        row = {"kind": "epoch", "epoch": epoch, **means, "lr": rate}
        self.writer.write({**row, "seconds": seconds, "samples_per_second": speed, "memory_mb": memory})
        self.writer.scalar(display.epoch_tag, means[display.epoch_loss] * display.scale, epoch)
        for name, value in means.items():
            if name.startswith("loss_"):
                self.writer.scalar(display.tag(name, "Epoch"), value * display.scale, epoch)
        shown = ", ".join(f"{name} {value:.4f}" for name, value in display.shown(means).items())
        self.run.log.info(
            f"{self._epoch_name(epoch)}: {shown}, lr {rate:.6f}, {seconds:.1f} s, {speed:.0f} samples/s, {memory:.0f} MB"
        )

    def _epoch_name(self, epoch: int) -> str:
        """Return the number of an epoch, which files have too and which counts from 0, and which one of how many it is."""
        return f"epoch {epoch} ({epoch + 1} of {last_epoch(self.run.config) + 1})"

    def _steps_left(self, epoch: int, done: int) -> int:
        """Return the steps that a run has left, of which an epoch has done some."""
        return (last_epoch(self.run.config) + 1 - epoch) * self.steps - done

    def _time_left(self, steps: int) -> float:
        """Estimate the seconds that steps take by what this process has done so far, evaluations and saving included."""
        started, before = self._began
        return (time.perf_counter() - started) / max(before - steps, 1) * steps

    def _explain(self, epoch: int, step: int) -> UserError:
        """Say which clouds led to a loss that is not finite."""
        batch = next(self.batches.epoch(epoch, first_step=step))
        names = self.batches.cloud_set.names
        samples = [names[i] if names else f"#{i}" for i in batch.indices.tolist()]
        kept = self.run.folder / "ckpt-last.pth"
        return UserError(
            f"loss or gradient is not finite in epoch {epoch}, step {step} (clouds {', '.join(samples[:8])}"
            f"{', ...' if len(samples) > 8 else ''}); the update was skipped and the run stopped. "
            + (f"The last good checkpoint is {kept}. " if kept.exists() else "There is no checkpoint yet. ")
            + "Lower optimizer.kwargs.lr, set grad_norm_clip, or use --precision fp32."
        )


def update(
    optimizer: torch.optim.Optimizer, *, clip: float | None, scaler: torch.amp.GradScaler | None, repeats: int
) -> Tensor:
    """Step the optimizer and clear the gradients; returns a device bool, False where the gradient was not finite.

    Such a step is skipped on the device, without the host knowing; `EpochLog` finds it at its next reading.

    Args:
        clip: largest L2 norm of the gradient.
        repeats: optimizer steps on this gradient; only the last one uses it clipped.
    """
    parameters = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    if scaler is not None:
        scaler.unscale_(optimizer)
    norm = torch.nn.utils.get_total_norm([p.grad for p in parameters])
    finite = torch.isfinite(norm)
    for repeat in range(repeats):
        if clip is not None and repeat == repeats - 1:
            torch.nn.utils.clip_grads_with_norm_(parameters, clip, norm)
        if scaler is not None:
            scaler.step(optimizer)
        else:
            optimizer.found_inf = (~finite).float()
            optimizer.step()
    if scaler is not None:
        scaler.update()
        finite = torch.ones_like(finite)  # The scaler skips such steps itself and lowers its scale; they are no error.
    optimizer.zero_grad(set_to_none=True)
    return finite


def distribute(model: nn.Module, device: torch.device, *, every_step: bool = True) -> nn.Module:
    """Wrap a model so that gradients are averaged over the processes; with one process it stays as it is.

    Args:
        every_step: whether each backward pass averages. The order of averaging can then be fixed in advance, because
            all parameters that train get a gradient in every step.
    """
    if world_size() == 1:
        return model
    ids = [device.index] if device.type == "cuda" else None
    # Gradients live in the buffers that are averaged, without a copy.
    return nn.parallel.DistributedDataParallel(
        model, device_ids=ids, gradient_as_bucket_view=True, static_graph=every_step
    )


def last_epoch(config: RunConfig) -> int:
    """Return the index of the last epoch: as published, `max_epoch` itself still runs."""
    return config.max_epoch if config.max_epoch_inclusive else config.max_epoch - 1
