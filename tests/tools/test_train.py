"""The training loop: accumulation, clipping, non-finite steps, where it may stop, and what it writes."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import main
from tests.commands import TIMING, rows
from tests.training import DISPLAY, Stop, toy_run, toy_trainer
from tools.train import EpochLog, NonFiniteLoss, StopRequest, Trainer
from utils.files import read_checkpoint

pytestmark = pytest.mark.usefixtures("no_pictures")

ROOT = Path(__file__).parents[2]


def toy(values, *, every=100, stop=None, first=0, updates_per_batch=1, lr=1.0, **keys):
    """Train one weight on the losses weight * value with plain SGD; returns the weight, the log and what was flushed."""
    model = torch.nn.Module()
    model.weight = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([model.weight], lr=lr, fused=True)
    batches = [SimpleNamespace(step=step, value=value, stream=str) for step, value in enumerate(values)]
    trainer = toy_trainer(
        toy_run(lr=lr, **keys),
        model,
        optimizer,
        batches,
        lambda batch: {"loss": (model.weight * batch.value).sum(), "loss_extra": torch.tensor(2.0)},
        stop=stop,
        updates_per_batch=updates_per_batch,
    )
    flushed = []
    trainer.state.pending["step"] = first
    log = EpochLog(lambda at, rows: flushed.append((at, len(rows))), every=every)
    complete = trainer.train_steps(0, log)
    return model.weight, log, flushed, complete


def test_plain_steps_and_log():
    weight, log, flushed, complete = toy([1.0, 2.0, 3.0], every=2)
    assert complete and weight.item() == -6.0
    log.read()
    assert flushed == [(0, 2), (2, 1)]
    assert [row["loss_extra"] for row in log.rows] == [2.0] * 3 and log.rows[0]["lr"] == 1.0


def test_an_epoch_goes_on_where_it_was_interrupted():
    assert toy([1.0, 2.0, 4.0], first=1)[0].item() == -6.0


def test_accumulation_divides_and_steps_on_what_is_left():
    weight, *_ = toy([1.0, 2.0, 4.0], accum=2)
    assert weight.item() == pytest.approx(-(1.5 + 4.0))


def test_published_accumulation_sums_and_keeps_what_is_left():
    weight, *_ = toy([1.0, 2.0, 4.0], accum=2, divide=False)
    assert weight.item() == -3.0 and weight.grad.item() == 4.0


def test_clipping_and_two_updates_per_batch():
    assert toy([3.0], clip=1.0)[0].item() == pytest.approx(-1.0, rel=1e-5)
    assert toy([3.0], clip=1.0, updates_per_batch=2)[0].item() == pytest.approx(-4.0, rel=1e-5)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_non_finite_steps_change_nothing_and_are_reported_at_the_next_reading(bad):
    weight, log, *_ = toy([1.0, bad, 2.0])
    assert weight.item() == -3.0
    with pytest.raises(NonFiniteLoss, match="step 1") as caught:
        log.read()
    assert caught.value.step == 1


def test_stops_between_updates_only():
    stop = Stop(lambda count: count == 2)
    weight, log, _, complete = toy([1.0] * 5, accum=2, stop=stop)
    assert not complete and weight.item() == -2.0 and stop.count == 2
    log.read()
    assert len(log.rows) == 4
    assert toy([1.0] * 2, stop=Stop(lambda count: count == 2))[3], "the end of an epoch is no stop in the middle of it"


def test_stop_request_remembers_a_signal():
    import os
    import signal

    with StopRequest() as stop:
        assert not stop.agreed(torch.device("cpu"))
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.agreed(torch.device("cpu")) and stop.signal_number == signal.SIGTERM
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


class Notebook:
    """A writer that remembers all it was given."""

    def __init__(self):
        self.scalars, self.rows = [], []

    def scalar(self, tag, value, step):
        self.scalars.append((tag, step, value))

    def write(self, row):
        self.rows.append(row)


def test_losses_have_their_published_names_and_are_written_once():
    """Of several losses each has a curve, a step at a time and, scaled, an epoch at a time."""
    row = {"loss": 0.5, "loss_pc": 0.25, "log_guided": 0.75, "lr": 1e-3}
    log = EpochLog(lambda first, rows: None, every=10, rows=[row])
    trainer = SimpleNamespace(
        task=SimpleNamespace(display=DISPLAY),
        writer=Notebook(),
        steps=4,
        _epoch_name=lambda epoch: f"epoch {epoch}",
        state=SimpleNamespace(metrics={name: value for name, value in row.items() if name != "lr"}),
        run=SimpleNamespace(
            device=SimpleNamespace(type="cpu"),
            log=SimpleNamespace(info=lambda text: None),
            config=SimpleNamespace(log_every=10),
        ),
    )
    Trainer._write_steps(trainer, 2, 3, [row], 100.0)
    Trainer._write_epoch(trainer, 2, log, 1.0, 100.0)
    assert sorted(trainer.writer.scalars) == sorted(
        [
            ("Loss/Batch/Loss", 11, 0.5),
            ("Loss/Batch/Loss_pc", 11, 0.25),
            ("Loss/Batch/log_guided", 11, 0.75),
            ("Loss/Batch/LR", 11, 1e-3),
            ("Loss/Epoch/Loss_1", 2, 500),
            ("Loss/Epoch/Loss_pc", 2, 250),
        ]
    )
    trainer.task.display = replace(DISPLAY, epoch_loss="loss_pc")
    Trainer._write_epoch(trainer, 2, log, 1.0, 100.0)
    assert trainer.writer.scalars[-2:] == [("Loss/Epoch/Loss_1", 2, 250), ("Loss/Epoch/Loss_pc", 2, 250)]


RUNS = {
    "debug/point-mae": ("dataset.svm.train.clouds=40", "dataset.svm.test.clouds=20", "svm.cross_validate=false"),
    "fine-tuning/point-mae/debug": ("dataset.val.clouds=20",),
    "segmentation/point-mae/debug": (
        "dataset.val.clouds=20",
        "dataset.val.N_POINTS=256",
        "dataset.train.N_POINTS=256",
        "legacy=[double_step]",
    ),
}


def arguments(recipe, name, *flags):
    settings = (
        *RUNS[recipe],
        "max_epoch=1",
        "max_epoch_inclusive=false",
        "total_bs=4",
        "dataset.train.clouds=20",
        "log_every=1",
        "step_per_update=2",
    )
    sets = [part for setting in settings for part in ("--set", setting)]
    path = str(ROOT / "cfgs" / f"{recipe}.yaml")
    task = [] if recipe.startswith("debug/") else ["--scratch_model"]
    return ["--config", path, "--exp_name", name, "--device", "cpu", *task, *flags, *sets]


def test_training_needs_no_accelerators(tmp_path, monkeypatch):
    """With `tools/accelerate.py` replaced by nothing each task trains, and to the same numbers."""
    monkeypatch.chdir(tmp_path)
    for recipe in RUNS:
        assert main.main(arguments(recipe, "fast")) == 0
    commands = [arguments(recipe, "plain") for recipe in RUNS]
    program = (
        f"import sys; sys.modules['tools.accelerate'] = None; sys.path.insert(0, {str(ROOT)!r})\n"
        "from tools.session import Session; Session.report = lambda self: None\n"
        f"import main; sys.exit(max(main.main(argv) for argv in {commands!r}))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    for recipe in RUNS:
        folder = tmp_path / "experiments" / recipe
        kinds = ("step", "epoch", "svm", "val", "parts")
        assert rows(folder / "plain", *kinds) == rows(folder / "fast", *kinds) and "seconds" in TIMING
        a, b = (read_checkpoint(folder / name / "ckpt-last.pth")["base_model"] for name in ("plain", "fast"))
        assert all(torch.equal(value, b[key]) for key, value in a.items())


def test_micro_batches_auto_needs_the_accelerators():
    trainer = SimpleNamespace(run=toy_run(micro_batches="auto"))
    with pytest.raises(ValueError, match=r"--micro_batches auto: needs tools/accelerate.py; give a number"):
        Trainer.before_steps(trainer, 0)
