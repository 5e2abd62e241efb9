"""The shared loop: one epoch of any method."""

import contextlib
import signal
from collections.abc import Callable, Iterable
from functools import partial

import torch
from torch import Tensor

from tools.graphs import StepGraph
from tools.steps import SideStream, Step, run_ahead
from utils.dist import all_reduce_sum, world_size
from utils.errors import UserError

AUTOCAST_DTYPES = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


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


class StopRequest:
    """Remember SIGTERM and Ctrl-C until the loop reaches a point where it can save.

    Use as a context manager; a second Ctrl-C interrupts at once.
    """

    def __init__(self):
        self.signal_number = 0
        self._previous = {}

    def __enter__(self) -> "StopRequest":
        for number in (signal.SIGTERM, signal.SIGINT):
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


def autocast(device: torch.device, precision: str):
    """Return the autocast context of a precision; fp32 is none."""
    dtype = AUTOCAST_DTYPES[precision]
    return contextlib.nullcontext() if dtype is None else torch.autocast(device.type, dtype=dtype)


class EpochLog:
    """Collect the losses of an epoch on the device and hand them out at intervals, with one synchronisation each.

    Args:
        flush: called with (step of the first row, list of dicts of floats) every `every` steps and at the end.
        rows: rows of this epoch from before an interruption.

    Raises:
        NonFiniteLoss: on reading, when a step since the last reading was not finite.
    """

    def __init__(self, flush: Callable[[int, list[dict]], None], *, every: int, rows: Iterable[dict] = ()):
        self.rows = list(rows)
        self._flush, self._every = flush, every
        self._window: list[tuple[Tensor, list[str], float]] = []

    def add(self, values: dict[str, Tensor], rate: float, finite: Tensor) -> None:
        """Book one step; nothing is read from the device until the interval is over."""
        scalars = [value.detach().to(torch.float64) for value in values.values()]
        self._window.append((torch.stack([*scalars, finite.to(torch.float64)]), list(values), rate))
        if len(self._window) >= self._every:
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
        return sum(row[name] for row in self.rows) / max(len(self.rows), 1)


def train_one_epoch(
    step: Step | Callable,
    batches: Iterable,
    optimizer: torch.optim.Optimizer,
    *,
    steps: int,
    schedule: Callable[[int, float], float],
    epoch: int,
    accum: int = 1,
    divide: bool = True,
    clip: float | None = None,
    precision: str = "fp32",
    scaler: torch.amp.GradScaler | None = None,
    after_update: Callable[[], None] | None = None,
    updates_per_batch: int = 1,
    pieces: int = 1,
    hold: Callable = contextlib.nullcontext,
    side: SideStream | None = None,
    graph: StepGraph | None = None,
    log: EpochLog,
    may_stop: Callable[[int], bool] = lambda position: False,
) -> bool:
    """Train on the batches of one epoch.

    Args:
        step: maps a batch to a dict of scalar tensors: "loss", and others to log; taken apart or whole.
        batches: what is left of the epoch; each has `.step`, its index in the epoch.
        steps: batches of a whole epoch.
        schedule: (epoch, fraction of it) -> learning rate, multiplied by each group's "lr_scale" where it has one.
        accum: batches per update. With `divide` each loss is divided by the batches of its update and what is left at the end of the
            epoch is an update of its own; without (published) losses are summed and left-over gradients wait for the next epoch.
        clip: largest L2 norm of the gradient.
        updates_per_batch: optimizer steps on one gradient; only the last one sees it clipped.
        pieces: how many a batch goes through the model in, one after the other, to save memory.
        hold: context in which gradients are not averaged over the processes yet.
        side: where `step.ahead` runs for the next batch while this one trains; None: nowhere, each batch in its turn.
        graph: records forward, backward and update of whole batches, one an update; None: they run as they are.
        may_stop: asked between updates, with the number of batches done.

    Returns:
        True where the epoch is complete, False where `may_stop` ended it early.

    A non-finite gradient skips the update on the device, without the host knowing; `log` finds it at its next reading.
    """
    device = optimizer.param_groups[0]["params"][0].device
    step = step if isinstance(step, Step) else Step.whole(step)

    def ahead(batch):
        with autocast(device, precision):
            return step.ahead(batch) if pieces == 1 else None

    def whole(inputs) -> tuple[dict[str, Tensor], Tensor]:
        with autocast(device, precision):
            values = step.compute(inputs)
        values["loss"].backward()
        finite = update(optimizer, clip=clip, scaler=None, repeats=updates_per_batch)
        values = {name: value.detach() for name, value in values.items()}
        return values, torch.isfinite(values["loss"]) & finite

    for batch, early in run_ahead(ahead, batches, side):
        rate = schedule(epoch, batch.step / steps)
        for group in optimizer.param_groups:
            group["lr"] = rate * group.get("lr_scale", 1.0)

        share = min(accum, steps - batch.step // accum * accum) if divide else 1
        position = batch.step + 1
        due = position % accum == 0 or (divide and position == steps)
        if graph is not None:
            with autocast(device, precision):
                inputs = step.ready(batch, early)
            values, finite = graph(whole, inputs, seed=partial(step.seed, batch))
        else:
            # Sums that outlive the epoch must be those of all processes, because one of them saves them.
            shared = "each" if not divide else "last" if due else "none"
            context = {"device": device, "precision": precision, "scaler": scaler, "hold": hold}
            values = _accumulate(step, batch, early, pieces=pieces, share=share, shared=shared, **context)
            finite = torch.isfinite(values["loss"].detach())
            if due:
                finite &= update(optimizer, clip=clip, scaler=scaler, repeats=updates_per_batch)
        if due and after_update is not None:
            after_update()
        log.add(values, rate, finite)
        if position % accum == 0 and position < steps and may_stop(position):
            return False
    return True


def _accumulate(
    step: Step, batch, early, *, device, precision: str, scaler, pieces: int, share: int, shared: str, hold: Callable
) -> dict[str, Tensor]:
    """Add the gradients of a batch, divided by `share`, to those there are; returns its values.

    Args:
        early: what `step.ahead` gave for the batch, where it goes through the model in one piece.
        shared: which of the pieces have the gradients averaged over the processes: "each", "last" or "none".
    """
    cut = [batch] if pieces == 1 else batch.split(pieces)
    collected = []
    for piece in cut:
        weight = 1.0 if pieces == 1 else len(piece.indices) / len(batch.indices)
        joint = shared == "each" or (shared == "last" and piece is cut[-1])
        with contextlib.nullcontext() if joint else hold():
            with autocast(device, precision):
                values = step.finish(piece, early) if pieces == 1 else step(piece)
            loss = values["loss"] * weight / share
            (loss if scaler is None else scaler.scale(loss)).backward()
        collected.append((weight, values))
    return _joined(collected)


def _joined(collected: list[tuple[float, dict[str, Tensor]]]) -> dict[str, Tensor]:
    """Return the values of a batch from those of its pieces, weighted by their shares."""
    if len(collected) == 1:
        return collected[0][1]
    return {name: sum(weight * values[name].detach() for weight, values in collected) for name in collected[0][1]}


def check_precision(precision: str, device: torch.device) -> None:
    """Raise where a device cannot compute in a precision.

    Raises:
        UserError: bf16 on a CUDA device without it; it would be emulated, slower than fp32.
    """
    if precision == "bf16" and device.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        name = torch.cuda.get_device_name(device)
        raise UserError(f"--precision bf16: {device} ({name}) has none; use --precision fp16 or fp32")


def update(optimizer: torch.optim.Optimizer, *, clip: float | None, scaler, repeats: int) -> Tensor:
    """Step the optimizer and clear the gradients; returns a device bool, False where the gradient was not finite."""
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
        finite = torch.ones_like(finite)  # The scaler skips such steps itself and lowers its scale; they are no fault.
    optimizer.zero_grad(set_to_none=True)
    return finite
