"""A training run around its loop: state restored, metrics opened, trained, reported."""

import contextlib

import torch
from torch import nn

from models.layers.norm import convert_sync_batchnorm
from tools.context import RunContext
from tools.optim import build_optimizer
from tools.run_state import RunState
from tools.tracking import Tracker
from tools.train import StopRequest, Task, Trainer, last_epoch
from utils.dist import is_main
from utils.errors import UserError
from utils.log import MetricsWriter
from utils.metrics_log import read_rows

FEW_UPDATES = 100


class Session(Task):
    """A task with what a command does around its training.

    Attributes:
        drop_last: whether the last batch of an epoch is left out where it is smaller than the others.
    """

    drop_last: bool = True

    def open_evaluation(self) -> None:
        """Load what evaluates the model, on the first process."""

    def describe(self, steps: int) -> str:
        """Say what is trained on, in one line; `steps` an epoch."""
        raise NotImplementedError

    def finish(self, trainer: Trainer) -> None:
        """Do what comes after the last epoch, before the report, on all processes."""

    def write_report(self) -> None:
        """Write the report of the run."""
        raise NotImplementedError

    def conclude(self, state: RunState) -> dict[str, float]:
        """Log and return what the run was worth, by what the numbers are."""
        raise NotImplementedError

    def report(self) -> None:
        """Write the report; one that cannot be written does not lose the run."""
        try:
            self.write_report()
        except (OSError, ValueError) as error:
            self.run.log.warning(f"report: could not be written ({error})")


def run_session(session: Session) -> dict[str, float]:
    """Train a task from its beginning, or on from its last checkpoint; returns what it concludes, on the first process.

    Raises:
        UserError: bad input, or a loss that is not finite; the last good checkpoint is kept.
        Interrupted: asked to stop; the state is saved and `--resume` continues it.
    """
    run = session.run
    batches = run.batches(session.clouds, run.config.total_bs, shard=run.args.shard_set, drop_last=session.drop_last)
    state = open_state(run, session.model, ema=session.ema)
    if state.pending["step"] >= max(len(batches), 1) and state.pending["step"]:
        raise UserError(
            f"{run.folder / 'ckpt-last.pth'}: has done {state.pending['step']} steps of an epoch, which has {len(batches)} now; resume "
            "with the clouds and the batch size of the run"
        )
    if is_main():
        session.open_evaluation()
    writer = open_metrics(run, state)
    tracker = open_tracker(run, writer)
    run.log.info(session.describe(len(batches)))
    updates = len(batches) * (last_epoch(run.config) + 1) // run.config.step_per_update
    if updates < FEW_UPDATES:
        run.log.info(f"{updates} updates in all: enough to see that everything runs, too few to learn much")
    try:
        with StopRequest() as stop:
            trainer = trainer_class()(session, state, batches, writer=writer, stop=stop)
            with contextlib.closing(trainer):
                trainer.train()
                trainer.finish_pending()
                session.finish(trainer)
    finally:
        if tracker is not None:
            tracker.close()
        if is_main():
            writer.close()
            session.report()
    return session.conclude(state) if is_main() else {}


def open_tracker(run: RunContext, writer: MetricsWriter | None) -> Tracker | None:
    """Let a service follow the rows that are written, where `--track` asks for one."""
    service = getattr(run.args, "track", None)
    if service is None or writer is None:
        return None
    writer.follower = Tracker(service, run.folder, run.config_dict())
    return writer.follower


def trainer_class() -> type[Trainer]:
    """Return the training loop with its accelerators, or, where `tools/accelerate.py` is left out, the plain one."""
    try:
        from tools.accelerate import AcceleratedTrainer
    except ModuleNotFoundError as error:
        if error.name != f"{__package__}.accelerate":
            raise
        return Trainer
    return AcceleratedTrainer


def open_state(run: RunContext, model: nn.Module, *, ema: nn.Module | None = None) -> RunState:
    """Give a model its optimizer, and synchronised batch norms with `--sync_bn`; `--resume` restores what was saved.

    Args:
        ema: an average of the model that is saved and restored with it.

    Raises:
        UserError: the checkpoint to resume from does not fit.
    """
    config, args = run.config, run.args
    if args.sync_bn:
        convert_sync_batchnorm(model)
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
    writer = MetricsWriter(
        run.folder,
        resume_from=following,
        pending=state.pending["evaluations"],
        boards=getattr(run.args, "log_dir", None),
    )
    last = [row for row in read_rows(writer.path) if row["kind"] == "epoch" and row.get("epoch") == state.epoch]
    if last and last[-1].get("loss") != state.metrics.get("loss", last[-1].get("loss")):
        run.log.warning(
            f"{writer.path}: its row of epoch {state.epoch} is of another run, and so may be the rows before it"
        )
    writer.describe(run.config_dict())
    return writer
