"""How a run that trains shows its numbers."""

from types import SimpleNamespace

import pytest

from tools.engine import EpochLog
from tools.training import Display, Training

DISPLAY = Display(scale=1000.0, epoch_tag="Loss/Epoch/Loss_1", batch_tags={"loss": "Loss", "lr": "LR"})


class Notebook:
    """A writer that remembers."""

    def __init__(self):
        self.scalars, self.rows = {}, []

    def scalar(self, tag, value, step):
        self.scalars[tag] = (value, step)

    def write(self, row):
        self.rows.append(row)


def test_losses_have_their_published_names():
    """Of several losses each has a curve, a step at a time and, scaled, an epoch at a time."""
    row = {"loss": 0.5, "loss_pc": 0.25, "log_guided": 0.75, "lr": 1e-3}
    log = EpochLog(lambda first, rows: None, every=10, rows=[row])
    training = SimpleNamespace(
        display=DISPLAY,
        writer=Notebook(),
        batches=[None] * 4,
        state=SimpleNamespace(metrics={name: value for name, value in row.items() if name != "lr"}),
        run=SimpleNamespace(device=SimpleNamespace(type="cpu"), log=SimpleNamespace(info=lambda text: None)),
    )
    Training._write_steps(training, 2, 3, [row], 100.0)
    Training._write_epoch(training, 2, log, 1.0, 100.0)
    written = training.writer.scalars
    assert written["Loss/Batch/Loss"] == (0.5, 11) and written["Loss/Batch/Loss_pc"] == (0.25, 11)
    assert written["Loss/Batch/LR"] == (1e-3, 11)
    assert written["Loss/Epoch/Loss_1"] == (pytest.approx(500), 2)
    assert written["Loss/Epoch/Loss_pc"] == (pytest.approx(250), 2)
    assert not any(tag.startswith("Loss/Epoch/log") for tag in written)
