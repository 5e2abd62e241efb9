"""The log, progress, and rows of metrics that survive interruptions."""

import io
import json
import logging
import sys

import pytest
import torch

from utils.errors import UserError
from utils.log import Logger, MetricsWriter, format_seconds, track

tensorboardX = pytest.importorskip("tensorboardX")


@pytest.fixture
def log(tmp_path):
    with Logger(tmp_path / "run") as logger:
        yield logger


def test_lines_go_to_the_file_and_to_stderr(log, capsys):
    log.info("hello 100%")
    logging.getLogger("m2ae.config").warning("keys left out")
    logging.getLogger("some.library").warning("from a library")
    logging.getLogger("some.library").info("chatter")
    log.info("quiet", file_only=True)
    text, shown = log.path.read_text(), capsys.readouterr().err
    for line in ("hello 100%", "keys left out", "from a library"):
        assert line in text and line in shown
    assert "quiet" in text and "quiet" not in shown and "chatter" not in text
    assert log.path.parent.name == "run" and len(log.path.stem) == len("20200101_000000")


def test_other_processes_are_silent(tmp_path, capsys):
    with Logger(tmp_path / "run", rank=1) as logger:
        logger.info("hello")
        logger.warning("hello")
        bar = logger.progress(10, "epoch")
        bar.update(5, samples=50, loss=1.0)
        bar.close()
    assert not (tmp_path / "run").exists() and capsys.readouterr().err == ""


def test_two_loggers_one_after_the_other(tmp_path):
    with Logger(tmp_path / "a") as first:
        first.info("one")
    with Logger(tmp_path / "b") as second:
        second.info("two")
    assert first.path.read_text().count("\n") == 1 and second.path.read_text().count("\n") == 1


def test_a_logger_that_was_not_closed_is_replaced(tmp_path):
    first = Logger(tmp_path / "a")
    with Logger(tmp_path / "b") as second:
        second.info("two")
    assert first.path.read_text() == "" and second.path.read_text().count("\n") == 1
    first.close()


def test_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write the log in"):
        Logger(tmp_path / "file" / "run")


def test_progress_lines_without_a_terminal(log):
    bar = log.progress(100, "epoch 3/10", done=20)
    bar.update(20, loss=23.456789, lr=1e-4, samples=640)
    assert bar.done == 40 and bar.samples_per_second > 0
    bar.close()
    line = log.path.read_text()
    assert "epoch 3/10 [40/100] loss 23.46, lr 0.0001, samples/s " in line and " left" in line


def test_progress_bar_on_a_terminal(log, monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    with log.progress(4, "epoch 0") as bar:
        bar.update(2, loss=1.5, samples=8)
        log.info("said above the bar")
    shown, text = terminal.getvalue(), log.path.read_text()
    assert "epoch 0" in shown and "said above the bar" in shown
    assert "[2/4] loss 1.5" in text and "[2/4] loss 1.5" not in shown


def test_seconds():
    assert [format_seconds(value) for value in (0, 59.6, 61, 3723)] == ["0:00", "1:00", "1:01", "1:02:03"]


def run_rows(writer, epochs, first_step=0):
    for epoch in epochs:
        for step in range(first_step if epoch == epochs[0] else 0, 4):
            writer.write({"kind": "step", "epoch": epoch, "step": step, "loss": epoch + step / 10})
            writer.scalar("Loss/Batch/Loss", epoch + step / 10, epoch * 4 + step)
        writer.write({"kind": "epoch", "epoch": epoch, "loss": float(epoch)})
        writer.scalar("Loss/Epoch/Loss_1", epoch, epoch)
        writer.write({"kind": "svm", "epoch": epoch, "accuracy": 0.5})
        writer.scalar("Metric/ACC", 0.5, epoch, split="test")


def rows(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def scalars(folder):
    """Return the scalars of all event files, sorted: (split, tag, step, value)."""
    from tensorboardX.proto.event_pb2 import Event

    from utils.event_files import _records

    found = []
    for path in folder.glob("TFBoard/*/events*"):
        for _, payload in _records(path.read_bytes()):
            event = Event.FromString(payload)
            found += [(path.parent.name, v.tag, event.step, round(v.simple_value, 4)) for v in event.summary.value]
    return sorted(found)


@pytest.mark.parametrize("stopped_at", [(0, 0), (1, 0), (1, 2), (2, 3)])
def test_resumed_metrics_equal_uninterrupted_ones(tmp_path, stopped_at):
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    for folder in (whole, resumed):
        with MetricsWriter(folder) as writer:
            writer.write({"kind": "svm", "epoch": None, "accuracy": 0.3})
            run_rows(writer, [0, 1, 2])
    # The log ran ahead of the checkpoint, and the last line was cut short by the kill.
    with (resumed / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "step", "epo')
    epoch, step = stopped_at
    with MetricsWriter(resumed, resume_from=stopped_at) as writer:
        if stopped_at == (0, 0):
            writer.write({"kind": "svm", "epoch": None, "accuracy": 0.3})
        run_rows(writer, list(range(epoch, 3)), first_step=step)
    assert rows(resumed) == rows(whole)
    assert scalars(resumed) == scalars(whole) and len(scalars(whole)) == 18


def test_tensorboard_gets_the_configuration_once(tmp_path):
    config = {"model": {"NAME": "Point_MAE", "dims": [1, 2]}, "seed": 3}
    for start in ((0, 0), (1, 0)):  # the second goes on with the first
        with MetricsWriter(tmp_path, resume_from=start) as writer:
            writer.describe(config)
            writer.scalar("Loss/Epoch/Loss_1", 1.0, start[0])
    tags = [tag for _, tag, _, _ in scalars(tmp_path)]
    assert tags.count("Configuration/text_summary") == 1 and tags.count("_hparams_/experiment") == 1
    content = b"".join(path.read_bytes() for path in tmp_path.glob("TFBoard/train/events*"))
    assert b"model.NAME" in content and b"Point_MAE" in content and b"seed: 3" in content


def test_pending_evaluations_are_not_doubled(tmp_path):
    with MetricsWriter(tmp_path) as writer:
        run_rows(writer, [0, 1])
    with MetricsWriter(tmp_path, resume_from=(2, 0), pending=[1]) as writer:
        writer.write({"kind": "svm", "epoch": 1, "accuracy": 0.6})
    judged = [(row["epoch"], row["accuracy"]) for row in rows(tmp_path) if row["kind"] == "svm"]
    assert judged == [(0, 0.5), (1, 0.6)]


def test_rows_are_flushed_and_valid_json(tmp_path):
    writer = MetricsWriter(tmp_path)
    writer.write({"kind": "step", "loss": torch.tensor(0.5), "lr": float("nan"), "speed": float("inf"), "names": [1]})
    assert rows(tmp_path) == [{"kind": "step", "loss": 0.5, "lr": None, "speed": None, "names": [1]}]
    writer.close()
    with MetricsWriter(tmp_path) as writer:
        writer.write({"kind": "again"})
    assert len(rows(tmp_path)) == 2


def test_without_tensorboard(tmp_path, monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    with MetricsWriter(tmp_path) as writer:
        writer.scalar("a", 1, 0)
        writer.scalar("a", 2, 1, split="test")
        writer.write({"kind": "step"})
    notes = [record for record in caplog.records if "tensorboardX is not installed" in record.getMessage()]
    assert len(notes) == 1 and not (tmp_path / "TFBoard").exists() and len(rows(tmp_path)) == 1


def test_metrics_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot write metrics.jsonl in .*file"):
        MetricsWriter(tmp_path / "file")


def test_progress_tells_the_time_left_of_the_run(log):
    with log.progress(4, "epoch 0 (1 of 3)") as bar:
        bar.update(2, run_left=3723.0, **{"loss (x1000)": 1.5})
    assert "epoch 0 (1 of 3) [2/4] loss (x1000) 1.5" in log.path.read_text()
    assert log.path.read_text().endswith(" left of the epoch, 1:02:03 of the run\n")


def test_long_phases_tell_how_far_they_are(log, monkeypatch):
    assert list(track([1, 2, 3], "short")) == [1, 2, 3]
    assert log.path.read_text() == ""
    monkeypatch.setattr("utils.log.SAY_EVERY", 0.0)
    assert list(track(iter("abc"), "features", 3)) == ["a", "b", "c"]
    lines = [line.partition("features ")[2] for line in log.path.read_text().splitlines()]
    assert lines == ["[1/3], 0:00 left", "[2/3], 0:00 left"]
    log.close()
    assert list(track([1, 2], "without a log")) == [1, 2]
    assert "without a log" not in log.path.read_text()
